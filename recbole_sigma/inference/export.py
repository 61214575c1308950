"""A trained model as one file for other runtimes, ONNX or torch.export: item numbers of histories to their best items.

The file is in a directory with all that belongs to it, in the layout of Hugging Face's hub. `Recommender.load`
reads that directory, too.
"""

import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.config.schema import identity
from recbole_sigma.config.values import dump_settings
from recbole_sigma.errors import UserError, one_line
from recbole_sigma.inference.card import model_card
from recbole_sigma.inference.recommender import Recommender
from recbole_sigma.model.by_length import ByLength
from recbole_sigma.model.ensemble import Ensemble
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.runs.files import json_text
from recbole_sigma.runs.reader import RecordedRun, read_runs

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # item numbers (B, L) -> scores, items (B, k)

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
EXPORTABLE = ("SIGMA", "Mamba4Rec", "RecMamba", "EMARec", "ECHO", "SASRec", "LinRec", "GRU4Rec", "BERT4Rec", "Ensemble")
TOLERANCE = 1e-4  # of scores against ours, relative where they are above 1
CHECKED = 64  # histories that are compared
LARGEST = 1_500_000_000  # bytes of weights within the .onnx file, which holds at most 2 GB; more are a file beside it
SIZES = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1)}


class TopK(nn.Module):
    """What is exported: item numbers of histories, oldest first, (B, L) -> scores and numbers of the best items, (B, k)

    A number of 0 is no item: padding, or an item that the model does not know. As `Recommender.recommend`, it reads the
    last MAX_ITEM_LIST_LENGTH items, leaves out all items of the history, and gives an empty history the most popular
    items. Where fewer than k items are left, the rest have the number 0 and the score -inf.
    """

    counts: Tensor  # (V,), of each item in training

    def __init__(self, recommender: Recommender, k: int, exclude_seen: bool) -> None:
        super().__init__()
        self.model = recommender.model
        self.k = min(k, len(recommender.items))
        self.exclude_seen = exclude_seen
        self.max_length = recommender.max_length
        unknown = torch.full((len(recommender.items) + 1,), -torch.inf)  # in a run of an older version
        self.register_buffer("counts", recommender.counts if len(recommender.counts) else unknown)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) int64 -> (B, k) float32, (B, k) int64"""
        count = (history > 0).sum(1, keepdim=True)
        rows = {self.model.ITEM_SEQ: self._recent(history, count)}
        rows[self.model.ITEM_SEQ_LEN] = count[:, 0].clamp(1, self.max_length)
        scores = self.model.full_sort_predict(rows)[:, : self.counts.shape[0]]
        scores = torch.where(count > 0, scores, self.counts)
        if self.exclude_seen:
            scores = scores.scatter(1, history.clamp(min=0), -torch.inf)
        best, numbers = F.pad(scores[:, 1:], (1, 0), value=-torch.inf).topk(self.k)
        return best, numbers.masked_fill(best == -torch.inf, 0)

    def _recent(self, history: Tensor, count: Tensor) -> Tensor:
        """The last `max_length` items of each history without gaps, right-padded: (B, L) -> (B, width)"""
        # never 1, a size that torch.export would take for a constant
        width = torch.sym_min(history.shape[1] + 1, self.max_length)
        slot = (history > 0).cumsum(1) - 1 - (count - self.max_length).clamp(min=0)
        kept = (history > 0) & (slot >= 0)
        slots = history.new_zeros(history.shape[0], width + 1)  # the last one takes what is not kept
        return slots.scatter(1, torch.where(kept, slot, width), torch.where(kept, history, 0))[:, :-1]


def export(
    checkpoint: Path, out: Path, form: Literal["onnx", "torch"] = "onnx", k: int = 10, exclude_seen: bool = True,
    model: str | type | None = None,
) -> float:  # fmt: skip
    """Write the model of a run directory to the new directory `out`; returns the largest difference from our scores.

    Scores are compared on CHECKED random histories; the difference is relative where they exceed 1. `k` and
    `exclude_seen` are part of the exported file. `model` as for `Recommender.load`. Raises UserError for a model that
    cannot be exported, for packages that are missing, and if `out` is not empty.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None] if form == "onnx" else []
    if missing:
        raise UserError(f"--format=onnx: {', '.join(missing)} not installed; pip install 'recbole-sigma[export]'")
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out: {str(out)!r} exists and is not an empty directory")
    recommender = Recommender.load(checkpoint, "cpu", model)
    run = read_runs([checkpoint])[0]
    network = TopK(recommender, k, exclude_seen).eval()
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        predict = write_model(network, partial / FILES[form])
        difference = _difference(predict, recommender, network)
        if not difference <= TOLERANCE:
            raise UserError(f"--format={form}: scores differ by {difference:.1e} from ours; nothing was written")
        _write_rest(partial, run, recommender, network, form)
        partial.replace(out)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return difference


def write_model(network: TopK, path: Path) -> Predict:
    """Write the network as .onnx or .pt2, as the path's ending says; returns what the written file computes.

    Raises UserError for a model that cannot be exported.
    """
    name = type(network.model).__name__
    if not isinstance(network.model, (SequenceModel, ByLength, Ensemble)):
        raise UserError(f"model: {name} cannot be exported; these can: {', '.join(EXPORTABLE)}, and own SequenceModels")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                network, (torch.ones(3, 2, dtype=torch.int64),), dynamic_shapes={"history": SIZES}, strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip
        except Exception as error:  # a model's code is executed with symbols, and may raise anything
            raise UserError(f"model: {name} cannot be recorded by torch.export: {one_line(error)[:300]}") from None
        for graph in (each for each in program.graph_module.modules() if isinstance(each, torch.fx.GraphModule)):
            for node in graph.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names files of this machine
        return (_write_onnx if path.suffix == ".onnx" else _write_torch)(program, network, path)


def _write_onnx(program: torch.export.ExportedProgram, network: TopK, path: Path) -> Predict:
    """Write model.onnx; returns it as a function, run by onnxruntime."""
    import onnxruntime

    names: dict[str, Any] = {"input_names": ["history"], "output_names": ["scores", "items"]}
    onnx: Any = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes={"history": SIZES}, **names)
    size = sum(each.numel() * each.element_size() for each in network.state_dict().values())
    onnx.save(path, external_data=size > LARGEST)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda history: session.run(None, {"history": history})


def _write_torch(program: torch.export.ExportedProgram, network: TopK, path: Path) -> Predict:
    """Write model.pt2; returns it as a function."""
    content = io.BytesIO()  # torch's writer aborts the process on a full disk
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    module = torch.export.load(path).module()

    def predict(history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            scores, items = module(torch.from_numpy(history))
        return scores.numpy(), items.numpy()

    return predict


def _difference(predict: Predict, recommender: Recommender, network: TopK) -> float:
    """The largest difference of scores from `Recommender`'s on random histories; inf where only one has an item."""
    generator = np.random.default_rng(0)
    longest = recommender.max_length + 3
    lengths = [1, longest, *generator.integers(1, longest, CHECKED - 2)]
    rows = [generator.integers(1, len(recommender.items) + 1, length) for length in lengths]
    history = np.stack([np.pad(row, (0, longest - len(row))) for row in rows])
    ours = recommender.scores(rows)
    if network.exclude_seen:
        ours = ours.scatter(1, torch.from_numpy(history), -torch.inf)
    largest = 0.0
    for n, width in ((1, 1), (CHECKED, longest)):
        scores, items = (torch.from_numpy(each) for each in predict(history[:n, :width]))
        for expected in (ours[:n].topk(network.k).values, ours[:n].gather(1, items)):
            distance = (scores - expected).abs() / expected.abs().clamp(min=1)
            largest = max(largest, float(distance.masked_fill(scores == expected, 0).nan_to_num(torch.inf).max()))
    return largest


def _write_rest(directory: Path, run: RecordedRun, recommender: Recommender, network: TopK, form: str) -> None:
    """Weights, settings, vocabulary and model card."""
    assert run.folder is not None
    for name in ("model.safetensors", "items.json", "item_info.json"):
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, directory / name)
    settings = identity(recommender.config.settings())  # paths and the machine's settings stay here
    (directory / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
    config = {
        "library": "recbole-sigma", "model": run.model, "file": FILES[form], "n_items": len(recommender.items),
        "max_length": network.max_length, "k": network.k, "exclude_seen": network.exclude_seen, "settings": settings,
    }  # fmt: skip
    (directory / "config.json").write_text(json_text(config), encoding="utf-8")
    card = model_card(run, FILES[form], network.k, network.exclude_seen, network.max_length)
    (directory / "README.md").write_text(card, encoding="utf-8")
