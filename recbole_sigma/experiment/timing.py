"""What models cost (SIGMA, Table 3): steps of training and inference, timed for all arms in turn in one process.

The speed of a machine drifts; arms that are timed in turn drift together, so that the ratios hold. The first round
compiles and does not count. Memory is measured in a round of its own, with freed memory returned before each step.
"""

import ctypes
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from tabulate import tabulate
from tqdm import tqdm

from recbole_sigma.data.preparation import load
from recbole_sigma.environment import device_name, versions
from recbole_sigma.experiment.spec import Experiment, Planned
from recbole_sigma.registry import build_model
from recbole_sigma.runs.result import data_metadata
from recbole_sigma.training.allocator import keep_freed_memory

HEADERS = ("", "parameters", "seconds per epoch", "inference, ms per batch", "training, MB", "inference, MB")


class _Timed:
    """One arm with its data and optimiser; seconds of each step, the first included."""

    def __init__(self, planned: Planned) -> None:
        config = self.config = planned.config
        init_seed(config["seed"], config["reproducibility"])
        self.data = load(config)
        self.device = config["device"]
        self.model: Any = build_model(config, self.data.train.dataset)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config["learning_rate"])
        # Epoch after epoch, each shuffled again.
        self.batches = itertools.chain.from_iterable(itertools.repeat(self.data.train))
        self.test_batches = itertools.chain.from_iterable(itertools.repeat(self.data.test))
        self.label = planned.arm.label
        self.train_seconds: list[float] = []
        self.inference_seconds: list[float] = []

    def train(self) -> None:
        """One training step, including the making of its batch."""
        batch = next(self.batches).to(self.device)
        self.model.train()
        self.optimizer.zero_grad()
        losses = self.model.calculate_loss(batch)
        loss: Any = sum(losses) if isinstance(losses, tuple) else losses
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> None:
        """Scores of all items for one batch of test users."""
        self.model.eval()
        self.model.full_sort_predict(next(self.test_batches)[0].to(self.device))

    def times(self) -> tuple[float, float]:
        """Medians without the first round: seconds per epoch of training, milliseconds per batch of inference."""
        per_step = statistics.median(self.train_seconds[1:])
        return len(self.data.train) * per_step, 1000 * statistics.median(self.inference_seconds[1:])


def measure(experiment: Experiment, rounds: int) -> str:
    """The costs of all arms with the first seed, one section in Markdown per data set; `rounds` steps of each."""
    plans = [planned for planned in experiment.runs() if planned.seed == experiment.seeds[0]]
    if plans[0].config["threads"]:
        torch.set_num_threads(plans[0].config["threads"])
    keep_freed_memory()
    sections = []
    for dataset in experiment.datasets:
        arms = [_Timed(planned) for planned in plans if planned.dataset == dataset]
        with tqdm(total=(rounds + 2) * len(arms), desc=dataset, unit="step", ncols=100, disable=None) as progress:
            for _, arm in itertools.product(range(rounds + 1), arms):
                arm.train_seconds.append(_seconds(arm.train, arm.device))
                arm.inference_seconds.append(_seconds(arm.infer, arm.device))
                progress.update()
            rows = []
            for arm in arms:
                times = zip(arm.times(), arms[0].times(), strict=True)
                row: list[Any] = [arm.label, sum(parameter.numel() for parameter in arm.model.parameters())]
                row += [f"{own:.1f} ({own / first:.2f})" for own, first in times]
                rows.append([*row, *(f"{_peak_mb(step, arm.device):.0f}" for step in (arm.train, arm.infer))])
                progress.update()
        config, data = arms[0].config, data_metadata(arms[0].data.dataset)
        size = ", ".join(f"{data[key]:,} {key}" for key in ("users", "items", "interactions"))
        batches = f"{config['train_batch_size']:,} in training and {config['eval_batch_size']:,} in inference"
        sections.append(f"""## {dataset}

{tabulate(rows, HEADERS, tablefmt="github", colalign=("left", *["right"] * 5))}

Medians of {rounds} steps of each arm in turn; in brackets the multiple of {arms[0].label}.

- {dataset}: {size}, SHA-256 {data["sha256"]}
- {device_name(arms[0].device)}, {torch.get_num_threads()} threads
- {", ".join(f"{name} {version}" for name, version in versions().items())}
- histories of at most {config["MAX_ITEM_LIST_LENGTH"]} items, batches of {batches}
""")
    return "\n".join(sections)


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _peak_mb(step: Callable[[], None], device: torch.device) -> float:
    """The most memory that `step` held on top of what was held before; NaN where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        step()
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak restarts at what is held now
    before = _peak_of_process()
    step()
    return (_peak_of_process() - before) / 1e6


def _peak_of_process() -> int:
    """Bytes, since /proc/self/clear_refs was written."""
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])
