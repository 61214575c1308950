"""What models cost (SIGMA, Table 3): training steps and inference of all in turn, in one process.

A machine's speed drifts; what is measured in turn drifts alike, so that the ratios hold. The first round compiles and
does not count. Memory is measured in a round of its own, in which freed memory is given back before each step.
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from tabulate import tabulate
from tqdm import tqdm

from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.environment import device_name, versions
from recbole_sigma.experiment.spec import Experiment, Planned
from recbole_sigma.runs.result import data_facts
from recbole_sigma.training.allocator import keep_freed_memory

HEADERS = ("", "parameters", "seconds an epoch", "inference, ms a batch", "training, MB", "inference, MB")


@dataclass
class Cost:
    """Of one arm: seconds of each step, and the most memory (MB) that a step held beyond what there was before."""

    label: str
    n_parameters: int
    steps_an_epoch: int
    train: list[float] = field(default_factory=list)
    inference: list[float] = field(default_factory=list)
    train_mb: float = float("nan")
    inference_mb: float = float("nan")

    def row(self) -> list[Any]:
        """As HEADERS say; medians over rounds."""
        epoch = statistics.median(self.train) * self.steps_an_epoch
        inference = 1000 * statistics.median(self.inference)
        return [self.label, self.n_parameters, epoch, inference, self.train_mb, self.inference_mb]


@dataclass(frozen=True)
class Measured:
    """The arms' costs on one data set: its statistics and checksum, what it was measured on, steps of each arm."""

    dataset: str
    data: dict[str, Any]
    costs: list[Cost]
    machine: list[str]
    rounds: int

    def as_text(self) -> str:
        """In Markdown, with all that one must know to cite it."""
        table = tabulate(ratios(self.costs), HEADERS, tablefmt="github", colalign=("left", *["right"] * 5))
        size = ", ".join(f"{self.data[key]:,} {key}" for key in ("users", "items", "interactions"))
        facts = [f"{self.dataset}: {size}, SHA-256 {self.data['sha256']}", *self.machine]
        note = f"Medians of {self.rounds} steps of each in turn; in brackets the multiple of {self.costs[0].label}."
        lines = "\n".join(f"- {fact}" for fact in facts)
        return f"## {self.dataset}\n\n{table}\n\n{note}\n\n{lines}\n"


class _Racer:
    """An arm, its data and optimiser."""

    def __init__(self, planned: Planned) -> None:
        config = self.config = planned.config
        init_seed(config["seed"], config["reproducibility"])
        self.train_data, _, self.test_data = data_preparation(config, create_dataset(config))
        self.device = config["device"]
        self.model = config.model_class(config, self.train_data.dataset).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config["learning_rate"])
        parameters = sum(each.numel() for each in self.model.parameters())
        self.cost = Cost(planned.arm.label, parameters, len(self.train_data))
        self._training, self._testing = _forever(self.train_data), _forever(self.test_data)

    def train(self) -> None:
        """One step, its batch included."""
        batch = next(self._training).to(self.device)
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
        self.model.full_sort_predict(next(self._testing)[0].to(self.device))


def efficiency(experiment: Experiment, rounds: int) -> list[Measured]:
    """Costs of the arms on each data set, the first seed's."""
    plans = [planned for planned in experiment.runs() if planned.seed == experiment.seeds[0]]
    if plans[0].config["threads"]:
        torch.set_num_threads(plans[0].config["threads"])
    keep_freed_memory()
    return [_measured([each for each in plans if each.dataset == name], rounds) for name in experiment.datasets]


def _measured(plans: Sequence[Planned], rounds: int) -> Measured:
    racers = [_Racer(planned) for planned in plans]
    with tqdm(total=(rounds + 2) * len(racers), unit="step", ncols=100, disable=None) as progress:
        progress.set_description(plans[0].dataset)
        for number in range(rounds + 1):
            for racer in racers:
                seconds = [_seconds(work, racer.device) for work in (racer.train, racer.infer)]
                if number:
                    racer.cost.train.append(seconds[0])
                    racer.cost.inference.append(seconds[1])
                progress.update()
        for racer in racers:
            racer.cost.train_mb = _peak_mb(racer.train, racer.device)
            racer.cost.inference_mb = _peak_mb(racer.infer, racer.device)
            progress.update()
    data = data_facts(racers[0].train_data.dataset)
    return Measured(plans[0].dataset, data, [racer.cost for racer in racers], _machine(racers[0]), rounds)


def _machine(racer: _Racer) -> list[str]:
    config = racer.config
    longest, batches = config["MAX_ITEM_LIST_LENGTH"], (config["train_batch_size"], config["eval_batch_size"])
    return [
        f"{device_name(racer.device)}, {torch.get_num_threads()} threads",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"histories of at most {longest} items, batches of {batches[0]:,} in training and {batches[1]:,} in inference",
    ]


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _peak_mb(work: Callable[[], None], device: torch.device) -> float:
    """The most memory that `work` held beyond what was held before; NaN where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    reset = Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        work()
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")  # the peak starts at what is held now
    before = _status_kb("VmHWM")
    work()
    return (_status_kb("VmHWM") - before) * 1024 / 1e6


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def ratios(costs: Sequence[Cost]) -> list[list[Any]]:
    """Rows of HEADERS, with the first arm's multiples of time in brackets."""
    first = costs[0].row()
    return [
        [
            *row[:2],
            *(f"{value:.1f} ({value / first[place]:.2f})" for place, value in enumerate(row[2:4], 2)),
            *(f"{value:.0f}" for value in row[4:]),
        ]
        for row in (cost.row() for cost in costs)
    ]
