"""How a model ages, and what continuing it on newer data changes: NDCG@10 on ml-100k by the time of the target.

    python benchmarks/freshness.py [--model=Mamba4Rec] [--seeds=1] [--epochs=30] [--scratch] [--out=freshness]

Trains on what happened before CUTS[0] (`old`), and continues that run with what happened before CUTS[1] (`init_from`);
with --scratch, also trains on the latter from scratch. Validation is the fortnight before a cut. Writes OUT.csv and
OUT.png: means over seeds.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from recbole_sigma import run
from recbole_sigma.data.dataset import SECONDS_PER_DAY
from recbole_sigma.evaluation.metrics import gains_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.runs.result import RunResult

CUTS = [datetime(1998, 1, 1, tzinfo=UTC).timestamp(), datetime(1998, 2, 15, tzinfo=UTC).timestamp()]
FORTNIGHT = 14 * SECONDS_PER_DAY


def gains(result: RunResult, cut: float) -> pd.DataFrame:
    """NDCG@10 of each test target, and the fortnight after CUTS[0] in which it happened."""
    ranks = Ranks.load(result.folder / "ranks-test.npz")
    assert ranks.target_age is not None
    time = cut - FORTNIGHT + ranks.target_age * SECONDS_PER_DAY  # ages count from the end of training
    return pd.DataFrame({"fortnight": (time - CUTS[0]) // FORTNIGHT, "ndcg": gains_of_ranks(ranks.rank, 10)["ndcg"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Mamba4Rec")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--checkpoint_dir", default="saved")
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--out", default="freshness")
    args = parser.parse_args()
    rows = []
    for seed in range(2020, 2020 + args.seeds):

        def train(cut: float, **settings: Any) -> RunResult:
            fixed = {"train_mode": "sequence", "use_gpu": False, "show_progress": False, "stopping_step": 3}
            fixed |= {"epochs": args.epochs, "checkpoint_dir": args.checkpoint_dir, "seed": seed}  # noqa: B023
            split = {"split": {"time": [cut - FORTNIGHT, cut]}}
            return run(args.model, "ml-100k", settings={**fixed, "eval_args": split, **settings})

        old = train(CUTS[0])
        ways = {
            "old": (old, CUTS[0]),
            "init_from": (train(CUTS[1], init_from=str(old.folder)), CUTS[1]),
            **({"from scratch": (train(CUTS[1]), CUTS[1])} if args.scratch else {}),
        }
        for name, (result, cut) in ways.items():
            per_fortnight = gains(result, cut).groupby("fortnight")["ndcg"].agg(["mean", "size"])
            epochs = len((result.folder / "metrics.csv").read_text().splitlines()) - 1
            rows += [(seed, name, epochs, *row) for row in per_fortnight.itertuples()]
    table = pd.DataFrame(rows, columns=["seed", "run", "epochs", "fortnight", "ndcg@10", "targets"])
    table.to_csv(f"{args.out}.csv", index=False)
    wide = table.pivot_table(index=["fortnight", "targets"], columns="run", values="ndcg@10", sort=False)
    wide = wide.groupby(level=0).first().join(table.query("run == 'old'").groupby("fortnight")["targets"].first())
    print(wide.to_markdown(floatfmt=".4f"), table.groupby("run")["epochs"].mean().to_markdown(), sep="\n\n")
    days = np.array(wide.index) * 14 + 7
    for name in wide.columns.drop("targets"):
        plt.plot(days, wide[name], marker="o", label=name)
    plt.axvline((CUTS[1] - CUTS[0]) / SECONDS_PER_DAY, color="grey", linestyle=":")
    plt.xlabel("days after the old model's training and validation data end")
    plt.ylabel("NDCG@10")
    plt.legend()
    plt.savefig(Path(f"{args.out}.png"), dpi=120)


if __name__ == "__main__":
    main()
