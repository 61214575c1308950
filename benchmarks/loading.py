"""From a file of interactions to the first batch: our converter and loader, RecBole's loader, RecTools' Dataset.

    python benchmarks/loading.py [--interactions=10000000] [--rivals=1000000] [--rectools=PYTHON]

Writes a synthetic CSV file of users with 20 interactions on average and measures each part in a process of its own;
imports are not counted, memory includes them. Rivals get a file of --rivals interactions and are compared on it.
RecTools reads the CSV file with pandas and is left out where the interpreter --rectools does not have it.
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
OURS, RIVALS = ("convert to 5-core", "convert", "load", "load 5-core"), ("RecBole", "RecBole 5-core")
RECTOOLS = """
import json, sys, time
import pandas as pd
from rectools.dataset import Dataset
started = time.time()
names = {"user": "user_id", "item": "item_id", "rating": "weight", "time": "datetime"}
frame = pd.read_csv(sys.argv[1]).rename(columns=names)
frame["datetime"] = pd.to_datetime(frame["datetime"], unit="s")
Dataset.construct(frame).get_user_item_matrix()
seconds = time.time() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_mb": peak * 1024 / 1e6}))
"""


def main() -> None:
    """Write the files, measure and print; with `--part`, be the process that is measured."""
    parser = command_parser(__doc__)
    parser.add_argument("--interactions", type=count, default=10_000_000, help="of the file for our parts alone")
    parser.add_argument("--rivals", type=count, default=1_000_000, help="interactions of the file for all")
    parser.add_argument("--rectools", default="python3", metavar="PYTHON", help="interpreter that has RecTools")
    parser.add_argument("--part", nargs=2, metavar=("PART", "DIRECTORY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps({"seconds": measure(args.part[0], Path(args.part[1])), "peak_mb": peak_resident_mb()}))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for interactions, parts in ((args.interactions, OURS), (args.rivals, OURS + RIVALS)):
            data = Path(directory, str(len(rows)))
            data.mkdir()
            write_synthetic(data / "raw.csv", interactions)
            for part in parts:
                figures = measure_alone([__file__, "--part", part, str(data)])
                if "failure" in figures:
                    parser.exit(1, f"{part}, {interactions:,} interactions: {figures['failure']}\n")
                rows.append({"interactions": interactions, "part": part, **figures})
        rectools = measure_alone(["-c", RECTOOLS, str(data / "raw.csv")], python=args.rectools)
        if "failure" not in rectools:
            rows.append({"interactions": args.rivals, "part": "RecTools", **rectools})
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, intfmt=",", floatfmt=("", "", ".2f", ".0f")))
    small = table.iloc[len(OURS) :].set_index("part")
    pairs = {"RecBole": "load", "RecBole 5-core": "load 5-core", "RecTools": "load"}
    for rival, ours in pairs.items():
        if rival in small.index:
            ratio = small.loc[rival, ["seconds", "peak_mb"]] / small.loc[ours, ["seconds", "peak_mb"]]
            print(
                f"{rival} / {ours}, {args.rivals:,} interactions: time {ratio.seconds:.1f}, memory {ratio.peak_mb:.1f}"
            )
    if "failure" in rectools:
        print(f"RecTools is not measured: {rectools['failure']}")


def write_synthetic(file: Path, interactions: int) -> None:
    """Users, items by popularity, ratings, times in seconds; lines in random order."""
    random = np.random.default_rng(0)
    users, items = max(interactions // 20, 1), max(interactions // 100, 100)
    with file.open("w", encoding="utf-8", newline="") as stream:
        for first in range(0, interactions, 1_000_000):
            n = min(1_000_000, interactions - first)
            frame = {
                "user": np.char.add("A1USER", random.integers(0, users, n).astype("U")),
                "item": np.char.add("B00", (items * random.random(n) ** 3).astype(np.int64).astype("U")),
                "rating": random.integers(1, 6, n),
                "time": random.integers(1_300_000_000, 1_600_000_000, n),
            }
            pd.DataFrame(frame).to_csv(stream, header=not first, index=False)


def measure(part: str, directory: Path) -> float:
    """Seconds of one part; `load` uses what `convert` wrote."""
    from recbole.data.dataset import SequentialDataset
    from recbole.data.utils import data_preparation as recbole_preparation

    from recbole_sigma.config.config import Config
    from recbole_sigma.convert import Filters, Source, convert
    from recbole_sigma.data.preparation import load

    if part.startswith("convert"):
        filters = Filters(k_core=5 if "core" in part else 0)
        started = timer()
        convert(Source((directory / "raw.csv",)), directory / NAME, filters, overwrite=True)
        return timer() - started
    core = {f"{side}_inter_num_interval": "[5,inf)" for side in ("user", "item")} if "core" in part else {}
    model = "SASRec" if part.startswith("RecBole") else "SIGMA"
    config = Config(model, NAME, settings={"data_path": str(directory), "use_gpu": False, **core})
    started = timer()
    if part.startswith("RecBole"):
        train = recbole_preparation(config, SequentialDataset(config))[0]
    else:
        train = load(config).train
    assert len(next(iter(train))) > 0
    return timer() - started


if __name__ == "__main__":
    main()
