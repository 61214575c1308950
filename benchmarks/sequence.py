"""One training epoch in `train_mode: sequence` against `train_mode: prefix`, on the same items to be predicted.

    python benchmarks/sequence.py --dataset=ml-100k --lengths=50,200

Steps of both modes are interleaved, so that the machine's drift cancels; an epoch is the median step times the number
of steps. The first two steps, which compile, do not count.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from recbole.utils import init_seed
from tabulate import tabulate
from tqdm import tqdm

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.training.allocator import keep_freed_memory

MODES = ("prefix", "sequence")
WARM_UP = 2


def contestant(model: str, mode: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """A model, its optimiser, its batches, and the seconds its steps will take."""
    settings = {"data_path": args.data_path, "use_gpu": args.gpu, "MAX_ITEM_LIST_LENGTH": length, "train_mode": mode}
    config = Config(model, args.dataset, settings=settings)
    init_seed(config["seed"], True)
    loader = data_preparation(config, create_dataset(config))[0]
    network = config.model_class(config, loader.dataset).to(config["device"]).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config["learning_rate"])
    made = {"model": network, "optimizer": optimizer, "batches": iter(loader), "steps": len(loader), "seconds": []}
    return {**made, "device": config["device"]}


def step(each: dict[str, Any]) -> None:
    """One batch: drawn, scored, differentiated, applied."""
    started = time.perf_counter()
    batch = next(each["batches"]).to(each["device"])
    each["optimizer"].zero_grad()
    each["model"].calculate_loss(batch).backward()
    each["optimizer"].step()
    if each["device"].type == "cuda":
        torch.cuda.synchronize()
    each["seconds"].append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--models", default="Mamba4Rec,RecMamba")
    parser.add_argument("--lengths", default="50,200", help="MAX_ITEM_LIST_LENGTH")
    parser.add_argument("--steps", type=int, default=9, help=f"steps of each, the first {WARM_UP} not counted")
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    cases = [(model, int(length)) for model in args.models.split(",") for length in args.lengths.split(",")]
    rows = []
    for model, length in tqdm(cases, disable=None):
        racing = [contestant(model, mode, length, args) for mode in MODES]
        for _ in range(args.steps):
            for each in racing:
                step(each)
        prefix, sequence = (statistics.median(each["seconds"][WARM_UP:]) * each["steps"] for each in racing)
        rows.append([model, length, prefix, sequence, prefix / sequence])
    print(f"{args.dataset}, {torch.get_num_threads()} threads; seconds an epoch")
    print(tabulate(rows, headers=["model", "maximum", *MODES, "times faster"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
