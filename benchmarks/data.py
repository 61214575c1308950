"""Peak memory and time of our data set and of RecBole's, each measured in a process of its own.

    python benchmarks/data.py [--interactions=10000000] [--recbole=200000]

One run writes two synthetic files, a large one for our data set and one that RecBole can bear for both, and prints a
table. "reading" is our reader alone. Each step includes the ones before it: reading, data set, loaders, one epoch.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from timing import command_parser, count, measure_alone, peak_resident_mb
from torch.utils.benchmark import timer

NAME = "synthetic"
PARTS = ("imports", "reading", "ours", "ours, padded", "recbole")


def main() -> None:
    """Write the files, measure and print; with `--part`, be the process that is measured."""
    parser = command_parser(__doc__)
    parser.add_argument("--interactions", type=count, default=10_000_000, help="interactions of the large file")
    parser.add_argument("--recbole", type=count, default=200_000, help="interactions in the comparison with RecBole")
    parser.add_argument("--part", nargs=2, metavar=("PART", "DIRECTORY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        seconds = measure(args.part[0], Path(args.part[1]))
        print(json.dumps({"peak_mb": peak_resident_mb(), **dict(zip(("dataset_s", "epoch_s"), seconds, strict=True))}))
        return
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for interactions, parts in ((args.interactions, PARTS[:4]), (args.recbole, (PARTS[0], *PARTS[3:]))):
            data = Path(directory, str(len(rows)))
            write_synthetic(data, interactions)
            for part in parts:
                figures = measure_alone([__file__, "--part", part, str(data)])
                if "failure" in figures:
                    parser.exit(1, f"{part}, {interactions:,} interactions: {figures['failure']}\n")
                rows.append({"interactions": interactions, "part": part, **figures})
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, intfmt=",", floatfmt=("", "", ".0f", ".1f", ".1f")))
    large, small = (group.set_index("part") for _, group in table.groupby(np.arange(len(table)) >= 4))
    beyond = large.peak_mb["ours"] - large.peak_mb["reading"]
    per_interaction = beyond * 1e6 / args.interactions
    print(f"beyond reading, {args.interactions:,} interactions: {beyond:.0f} MB, {per_interaction:.0f} bytes each")
    small.peak_mb -= small.peak_mb["imports"]
    ratio = small.loc["recbole"].drop("interactions") / small.loc["ours, padded"].drop("interactions")
    print(
        f"RecBole's / ours, {args.recbole:,} interactions, same batches: memory beyond imports {ratio.peak_mb:.1f}, "
        f"data set {ratio.dataset_s:.1f}, epoch {ratio.epoch_s:.1f}"
    )


def write_synthetic(directory: Path, interactions: int) -> None:
    """Users of 20 interactions on average, items by popularity, times in seconds, lines in random order."""
    random = np.random.default_rng(0)
    users, items = max(interactions // 20, 1), max(interactions // 100, 100)
    frame = pd.DataFrame({
        "user_id:token": random.integers(0, users, interactions),
        "item_id:token": (items * random.random(interactions) ** 3).astype(np.int64),
        "timestamp:float": random.integers(1_300_000_000, 1_600_000_000, interactions),
    })  # fmt: skip
    (directory / NAME).mkdir(parents=True)
    frame.to_csv(directory / NAME / f"{NAME}.inter", sep="\t", index=False)


def measure(part: str, directory: Path) -> tuple[float, float]:
    """Seconds until the loaders are ready, and of one epoch of training and validation batches."""
    from recbole.data.dataset import SequentialDataset
    from recbole.data.utils import data_preparation as recbole_preparation
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec

    from recbole_sigma.config.config import Config
    from recbole_sigma.data import create_dataset, data_preparation
    from recbole_sigma.data.atomic import AtomicFormat, read_atomic

    model: Any = type("GRU4Rec", (GRU4Rec,), {"accepts_any_length": part == "ours"})
    config = Config(model, NAME, settings={"data_path": str(directory), "use_gpu": False})
    started = timer()
    if part == "imports":
        return 0.0, 0.0
    if part == "reading":
        ids = {"user_id": "USER_ID_FIELD", "item_id": "ITEM_ID_FIELD"}
        read_atomic(directory / NAME / f"{NAME}.inter", AtomicFormat(ids=ids, time={"timestamp": "TIME_FIELD"}))
        return timer() - started, 0.0
    if part == "recbole":
        train, valid, _ = recbole_preparation(config, SequentialDataset(config))
    else:
        train, valid, _ = data_preparation(config, create_dataset(config))
    ready = timer()
    assert sum(len(batch) for batch in train) + sum(len(batch[0]) for batch in valid) > 0
    return ready - started, timer() - ready


if __name__ == "__main__":
    main()
