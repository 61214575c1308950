"""The model card of an exported model: README.md with the metadata that Hugging Face's hub reads."""

from typing import Any

import yaml
from tabulate import tabulate

from recbole_sigma.evaluation.metrics import metric_title
from recbole_sigma.runs.reader import RecordedRun

_ONNX = """\
    import json
    import numpy as np
    import onnxruntime

    items = json.load(open("items.json"))                       # item ids by number; number 0 is padding
    numbers = {item: number for number, item in enumerate(items)}
    session = onnxruntime.InferenceSession("model.onnx")
    history = np.array([[numbers.get(item, 0) for item in ["A", "B"]]])     # unknown items are 0, too
    scores, best = session.run(None, {"history": history})
    print([items[number] for number in best[0]])"""
_TORCH = """\
    import json
    import torch

    items = json.load(open("items.json"))                       # item ids by number; number 0 is padding
    numbers = {item: number for number, item in enumerate(items)}
    model = torch.export.load("model.pt2").module()
    history = torch.tensor([[numbers.get(item, 0) for item in ["A", "B"]]])     # unknown items are 0, too
    scores, best = model(history)
    print([items[number] for number in best[0]])"""


def model_card(run: RecordedRun, file: str, k: int, exclude_seen: bool, max_length: int) -> str:
    """README.md: what the model is, how it is used, and its results with their protocol, where the run has them."""
    seen = "leaves out the items of the history" if exclude_seen else "may contain items of the history"
    sections = [
        f"---\n{yaml.safe_dump(_metadata(run, file), sort_keys=False, allow_unicode=True)}---",
        f"# {run.model} on {run.dataset}",
        "Recommends the next items after a history of items. Trained and exported by recbole-sigma.",
        f"`{file}` takes `history`, item numbers (batch, length), int64, oldest first, any batch and any length; 0 is "
        f"padding. It returns `scores` (batch, {k}) and `items` (batch, {k}), item numbers, best first. A list {seen}. "
        f"The last {max_length} items of a history are read. A history without an item gets the most popular items of "
        f"training, with their counts as scores. Where fewer than {k} items are left, the rest are number 0 with the "
        "score -inf.",
        f"## Use\n\n{_ONNX if file.endswith('.onnx') else _TORCH}",
        "`recbole_sigma.Recommender.load(DIRECTORY)` reads this directory, too.",
        "## Results\n\n" + (_results(run) if run.complete else f"None: the run is {run.problem}."),
        f"## Settings\n\n`config.yaml` has all of them; head: {run.settings.get('head', 'plain')}, seed {run.seed}.\n\n"
        "No licence is stated here: add `license:` above before you publish the model.",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(run: RecordedRun, file: str) -> dict[str, Any]:
    """The hub's metadata: https://huggingface.co/docs/hub/model-cards"""
    kind = "onnx" if file.endswith(".onnx") else "pytorch"
    data: dict[str, Any] = {
        "library_name": "recbole-sigma",
        "tags": ["recommendation", "sequential-recommendation", run.model.rpartition(":")[2], kind],
    }
    if run.complete:
        metrics = [
            {"type": name, "value": value, "name": f"{metric_title(name)} ({split})"}
            for split in reversed(run.splits)
            for name, value in run.result[split].items()
        ]
        result = {
            "task": {"type": "recommendation", "name": "Sequential recommendation"},
            "dataset": {"type": run.dataset, "name": run.dataset},
            "metrics": metrics,
        }
        data["model-index"] = [{"name": f"{run.model} on {run.dataset}", "results": [result]}]
    return data


def _results(run: RecordedRun) -> str:
    """Tables of metrics, protocol and data."""
    result = run.result
    names = dict.fromkeys(name for split in run.splits for name in result[split])
    metrics = [[metric_title(name), *(f"{result[split][name]:.4f}" for split in run.splits)] for name in names]
    counts = {name: result["dataset"][name] for name in ("users", "items", "interactions", "sha256")}
    facts = result["protocol"] | {f"data: {name}": value for name, value in counts.items()}
    facts |= {"parameters": result["n_parameters"], "best epoch": result["best_epoch"], "trained on": result["device"]}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    tables = (metrics, ["", *run.splits]), ([*facts.items()], ["protocol", ""])
    return "\n\n".join(tabulate(rows, titles, "github", disable_numparse=True) for rows, titles in tables)
