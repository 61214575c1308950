"""What models cost (SIGMA, Table 3): steps of training and inference, timed for all arms in turn in one process.

The speed of a machine drifts; arms that are timed in turn drift together, so that the ratios hold. The first round
compiles and does not count. Memory is measured in a round of its own.
"""

import ctypes
import itertools
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import init_seed
from tabulate import tabulate
from tqdm import tqdm

from recbole_sigma.config.config import Config
from recbole_sigma.data.preparation import Data, load
from recbole_sigma.environment import device_name, versions
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.spec import Experiment
from recbole_sigma.quick_start import build_network, scan_backend
from recbole_sigma.runs.result import data_metadata
from recbole_sigma.training.allocator import keep_freed_memory
from recbole_sigma.training.trainer import SequenceTrainer

HEADERS = ("", "parameters", "seconds per epoch", "inference, ms per batch", "training, MB", "inference, MB")


def measure(experiment: Experiment, rounds: int) -> str:
    """The costs of all arms with the first seed, one section in Markdown per data set; `rounds` steps of each."""
    runs = [(arm.label, config) for arm, config in experiment.runs() if config["seed"] == experiment.seeds[0]]
    if threads := runs[0][1]["threads"]:
        torch.set_num_threads(threads)
    keep_freed_memory()
    by_dataset = ([run for run in runs if run[1].dataset == dataset] for dataset in experiment.datasets)
    return "\n".join(_section(same, rounds) for same in by_dataset)


def _section(runs: list[tuple[str, Config]], rounds: int) -> str:
    """The costs of arms with these labels, on the data set that they share."""
    arms = [_steps(config) for _, config in runs]
    config = runs[0][1]
    device = config["device"]
    seconds = np.empty((rounds + 1, len(arms), 2))  # of a step of training and of inference
    for number in tqdm(range(rounds + 1), desc=config.dataset, unit="round", ncols=100, disable=None):
        for column, (_, _, *steps) in enumerate(arms):
            for kind, step in enumerate(steps):
                started = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[number, column, kind] = time.perf_counter() - started
    costs = np.median(seconds[1:], axis=0) * [[len(data.train), 1000] for data, *_ in arms]
    rows = []
    for (label, _), (_, model, *steps), own in zip(runs, arms, costs, strict=True):
        times = [f"{cost:.1f} ({multiple:.2f})" for cost, multiple in zip(own, own / costs[0], strict=True)]
        memory = [f"{_peak_mb(step, device):.0f}" for step in steps]
        rows.append([label, sum(parameter.numel() for parameter in model.parameters()), *times, *memory])
    metadata = data_metadata(arms[0][0].dataset)
    size = ", ".join(f"{metadata[key]:,} {key}" for key in ("users", "items", "interactions"))
    sizes = dict.fromkeys(f"{own['train_batch_size']:,}" for _, own in runs)
    batches = f"{', '.join(sizes)} in training and {config['eval_batch_size']:,} in inference"
    return f"""## {config.dataset}

{tabulate(rows, HEADERS, tablefmt="github", colalign=("left", *["right"] * 5))}

Medians of {rounds} steps of each arm in turn; in brackets the multiple of {rows[0][0]}.

- {config.dataset}: {size}, SHA-256 {metadata["sha256"]}
- {device_name(device)}, {torch.get_num_threads()} threads
- {", ".join(f"{name} {version}" for name, version in versions().items())}
- histories of at most {config["MAX_ITEM_LIST_LENGTH"]} items, batches of {batches}
"""


def _steps(config: Config) -> tuple[Data, Any, Callable[[], None], Callable[[], None]]:
    """The data and model of an arm, and functions: one step of training, the scores of one batch of test users."""
    scan_backend(config)
    if getattr(config.model_class, "fits_at_once", False):
        raise UserError(f"{config.model} is not trained by steps, whose cost could be measured")
    init_seed(config["seed"], config["reproducibility"])
    data = load(config)
    if not len(data.test.dataset):
        raise UserError(f"eval_args: {config.dataset} is split without test users, whose scores could be timed")
    model: Any = build_network(config, data)
    trainer = SequenceTrainer(config, model)
    # Epoch after epoch, each shuffled again; the making of a batch counts.
    batches = itertools.chain.from_iterable(itertools.repeat(data.train))
    test_batches = itertools.chain.from_iterable(itertools.repeat(data.test))

    def train() -> None:
        model.train()
        trainer.step(next(batches), "while it was timed")

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        model.full_sort_predict(next(test_batches)[0].to(config["device"]))

    return data, model, train, infer


def _peak_mb(step: Callable[[], None], device: torch.device) -> float:
    """The most memory that `step` held on top of what was held before; NaN where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that was freed earlier would be used first, uncounted
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts at what is held now
    status = Path("/proc/self/status")
    before_text = status.read_text()
    step()
    held, peak = (int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) for text in (before_text, status.read_text()))
    return (peak - held) * 1024 / 1e6
