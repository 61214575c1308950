"""One training epoch of each model through our loader against RecBole's SASRec through RecBole's, on the same prefixes.

    python benchmarks/epoch.py --data_path=data --dataset=amazon-beauty
    python benchmarks/epoch.py --data_path=data --models=SIGMA,Mamba4Rec --steps=20

Steps of all are interleaved, so that the machine's drift cancels; an epoch is the median step times the number of
steps. RecBole's part is its own code: SequentialDataset, TrainDataLoader, SASRec with padding to MAX_ITEM_LIST_LENGTH.
(Two favours to it: anomaly detection, which RecBole switches on for the whole process, is off, see compat.py; and the
allocator keeps freed memory as in our runs, see memory.py. `--plain_malloc` leaves the allocator as it is elsewhere.)
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import data_preparation as recbole_preparation
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.utils import init_seed
from tabulate import tabulate

import recbole_sigma  # noqa: F401  makes RecBole work on today's packages
from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.training.allocator import keep_freed_memory

RIVAL = SASRec.__name__
MODELS = ("SIGMA", "Mamba4Rec", "ECHO", "RecMamba", "LinRec", "GRU4Rec", "SASRec", "BERT4Rec", "FEARec")


class Contestant:
    """A model, its loader and its optimiser; trains a step at a time."""

    def __init__(self, label: str, config: Config, loader: Any) -> None:
        init_seed(config["seed"], True)
        self.label = label
        self.model = config.model_class(config, loader.dataset).to(config["device"]).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config["learning_rate"])
        self.loader, self.device = loader, config["device"]
        self.batches: Iterator[Any] = iter(loader)
        self.seconds: list[float] = []

    def step(self) -> None:
        """One batch: drawn, scored, differentiated, applied."""
        started = time.perf_counter()
        batch = next(self.batches).to(self.device)
        self.optimizer.zero_grad()
        self.model.calculate_loss(batch).backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - started)

    @property
    def epoch(self) -> float:
        """Seconds; the first step, which compiles, does not count."""
        return statistics.median(self.seconds[1:]) * len(self.loader)


def contestants(args: argparse.Namespace) -> list[Contestant]:
    """Our models through our loader, then the rival through RecBole's."""
    settings = {"data_path": args.data_path, "use_gpu": args.gpu, "MAX_ITEM_LIST_LENGTH": args.length}
    made = []
    for name in args.models.split(","):
        config = Config(name, args.dataset, settings=settings)
        made.append(Contestant(name, config, data_preparation(config, create_dataset(config))[0]))
    rival = Config(SASRec, args.dataset, settings=settings)
    made.append(Contestant(f"RecBole's {RIVAL}", rival, recbole_preparation(rival, SequentialDataset(rival))[0]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--length", type=int, default=50, help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--steps", type=int, default=12, help="steps of each, the first not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--plain_malloc", action="store_true", help="the allocator as RecBole leaves it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.plain_malloc:
        keep_freed_memory()

    racing = contestants(args)
    for _ in range(args.steps):
        for each in racing:
            each.step()
    rival = racing[-1].epoch
    rows = [[each.label, len(each.loader), each.epoch, rival / each.epoch] for each in racing]
    print(f"{args.dataset}, length {args.length}, {args.threads} threads, {args.steps - 1} steps each, interleaved")
    print(
        tabulate(rows, headers=["", "steps an epoch", "seconds an epoch", f"times faster than {RIVAL}"], floatfmt=".1f")
    )


if __name__ == "__main__":
    main()
