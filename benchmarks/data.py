"""Peak memory and seconds of our data set and RecBole's, each in a process of its own.

    python benchmarks/data.py [--interactions=10000000] [--recbole=200000]

One run makes two synthetic files, a large one for ours and one that RecBole can bear for both, and prints a table.
"Reading" is our reader alone. A step includes the ones above it in its row: reading, data set, loaders, one epoch.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NAME = "synthetic"


def main() -> None:
    """Parse the command line; with `--part`, be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--recbole", type=int, default=200_000, help="interactions in the comparison with RecBole")
    parser.add_argument("--part", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        measure(PARTS[args.part[0]], Path(args.part[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        write_synthetic(large, args.interactions)
        write_synthetic(small, args.recbole)
        plan = [(large, args.interactions, what) for what in ("imports", "reading", "ours", "ours, padded")]
        plan += [(small, args.recbole, what) for what in ("imports", "ours, padded", "recbole")]
        rows = [(n, what, run_part(what, data)) for data, n, what in plan]
    report(rows)


def report(rows: list[tuple[int, str, dict[str, float]]]) -> None:
    """The table, the difference that the design limits, and the ratio to RecBole."""
    print(f"{'interactions':>12}  {'what':14}{'peak MB':>9}{'data set s':>12}{'epoch s':>9}")
    for n, what, got in rows:
        print(f"{n:>12,}  {what:14}{got['peak_mb']:>9.0f}{got['dataset_s']:>12.1f}{got['epoch_s']:>9.1f}")
    peak = {(n, what): got for n, what, got in rows}
    n, small = rows[0][0], rows[-1][0]
    beyond = peak[n, "ours"]["peak_mb"] - peak[n, "reading"]["peak_mb"]
    print(f"beyond reading the file, {n:,} interactions: {beyond:.0f} MB, {beyond * 1e6 / n:.0f} bytes an interaction")
    base = peak[small, "imports"]["peak_mb"]
    ours, theirs = peak[small, "ours, padded"], peak[small, "recbole"]
    memory = (theirs["peak_mb"] - base) / (ours["peak_mb"] - base)
    seconds = {step: theirs[step] / ours[step] for step in ("dataset_s", "epoch_s")}
    print(
        f"RecBole's / ours, {small:,} interactions, same batches: memory beyond imports {memory:.1f}, "
        f"data set {seconds['dataset_s']:.1f}, epoch {seconds['epoch_s']:.1f}"
    )


def write_synthetic(folder: Path, interactions: int) -> None:
    """Users of 20 interactions on average, items by popularity, epoch seconds, lines in random order."""
    random = np.random.default_rng(0)
    path = folder / NAME
    path.mkdir(parents=True)
    users, items = max(interactions // 20, 1), max(interactions // 100, 100)
    popularity = (items * random.random(interactions) ** 3).astype(np.int64)
    frame = pd.DataFrame(
        {
            "user_id:token": random.integers(0, users, interactions),
            "item_id:token": popularity,
            "timestamp:float": random.integers(1_300_000_000, 1_600_000_000, interactions),
        }
    )
    frame.to_csv(path / f"{NAME}.inter", sep="\t", index=False)


def run_part(what: str, folder: Path) -> dict[str, float]:
    """Measure one part in a fresh process."""
    command = [sys.executable, __file__, "--part", what, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(part: Callable[[Path], tuple[float, float]], folder: Path) -> None:
    """Print what `part` took as one line of JSON."""
    dataset_s, epoch_s = part(folder)
    print(json.dumps({"peak_mb": peak_mb(), "dataset_s": dataset_s, "epoch_s": epoch_s}))


def peak_mb() -> float:
    """Most memory that this process ever held. (Linux's getrusage counts the parent's before exec, too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def make_config(folder: Path, any_length: bool) -> Any:
    """A Config on the synthetic data, for a model that takes batches of any length or for RecBole's GRU4Rec."""
    from recbole.model.sequential_recommender.gru4rec import GRU4Rec

    from recbole_sigma import Config

    model = type("GRU4Rec", (GRU4Rec,), {"accepts_any_length": any_length})
    return Config(model, NAME, settings={"data_path": str(folder), "use_gpu": False})


def only_imports(folder: Path) -> tuple[float, float]:
    """What Python, torch and RecBole take."""
    import recbole_sigma.data  # noqa: F401

    make_config(folder, any_length=True)
    return 0.0, 0.0


def reading(folder: Path) -> tuple[float, float]:
    """Our reader, nothing else."""
    from recbole_sigma.data.atomic import AtomicFormat, read_atomic

    make_config(folder, any_length=True)
    started = time.perf_counter()
    ids = {"user_id": "USER_ID_FIELD", "item_id": "ITEM_ID_FIELD"}
    table = read_atomic(folder / NAME / f"{NAME}.inter", AtomicFormat(ids=ids, time={"timestamp": "TIME_FIELD"}))
    seconds = time.perf_counter() - started
    assert len(table.frame)
    return seconds, 0.0


def ours(folder: Path, any_length: bool = True) -> tuple[float, float]:
    """SequenceDataset, its loaders, one epoch of batches and one validation."""
    from recbole_sigma.data import create_dataset, data_preparation

    return set_up_and_iterate(create_dataset, data_preparation, make_config(folder, any_length))


def recbole(folder: Path) -> tuple[float, float]:
    """RecBole's SequentialDataset and loaders, the same."""
    from recbole.data import data_preparation
    from recbole.data.dataset import SequentialDataset

    import recbole_sigma  # noqa: F401

    return set_up_and_iterate(SequentialDataset, data_preparation, make_config(folder, any_length=False))


def set_up_and_iterate(create: Callable[..., Any], prepare: Callable[..., Any], config: Any) -> tuple[float, float]:
    """Seconds until the loaders stand, and seconds of one epoch of training and validation batches."""
    started = time.perf_counter()
    train, valid, _ = prepare(config, create(config))
    ready = time.perf_counter()
    rows = sum(len(batch) for batch in train) + sum(len(batch[0]) for batch in valid)
    assert rows > 0
    return ready - started, time.perf_counter() - ready


PARTS: dict[str, Callable[[Path], tuple[float, float]]] = {
    "imports": only_imports,
    "reading": reading,
    "ours": ours,
    "ours, padded": lambda folder: ours(folder, any_length=False),
    "recbole": recbole,
}

if __name__ == "__main__":
    main()
