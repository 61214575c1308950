"""Run directories written by hand: nothing is trained, and each number can be computed from the ranks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recbole_sigma.evaluation.metrics import metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks

PROTOCOL = {
    "split": "leave-one-out per user: second to last item validation, last item test",
    "time_order": "exact",
    "ranking": "all items, seen items not masked, ties at mean rank",
    "max_item_list_length": 50,
    "selection": "validation NDCG@10, patience 10",
}
DATA = {"users": 6, "items": 1234, "interactions": 5678, "mean_length": 8.9, "sha256": "ab" * 32}


def write_run(
    parent: Path,
    model: str,
    rank: Sequence[float],
    *,
    seed: int = 2020,
    dataset: str = "tiny_50%",
    settings: Mapping[str, Any] | None = None,
    lengths: Sequence[int] | None = None,
    result: Mapping[str, Any] | None = None,
    users: Sequence[str] | None = None,
    stamp: str = "20260101-000000",
    masked: Sequence[float] | None = None,
) -> Path:
    """The directory of a finished run: `rank` is that of users u0, u1, ... on both splits; `result` changes entries.

    An entry that `result` sets to None is left out.
    """
    number = len(list(parent.glob("*"))) if parent.is_dir() else 0
    folder = begin_run(parent / f"{model}-{dataset}-{stamp}-{number:06x}", model, seed, dataset, settings)
    n = len(rank)
    ranks = Ranks(
        user=np.array(users or [f"u{user}" for user in range(n)]),
        target=np.array([f"i{user % 7}" for user in range(n)]),
        history_length=np.array(lengths or [3 + user % 30 for user in range(n)], dtype=np.int64),
        rank=np.array(rank, dtype=float),
        rank_masked=None if masked is None else np.array(masked, dtype=float),
    )
    for split in ("valid", "test"):
        np.savez_compressed(folder / f"ranks-{split}.npz", **ranks.arrays())
    metrics = metrics_of_ranks(ranks.rank, [10])
    content = {
        "model": model,
        "dataset": {**DATA, "name": dataset, "users": n},
        "seed": seed, "protocol": PROTOCOL, "epochs": 3, "best_epoch": 1, "valid": metrics, "test": metrics,
        "n_parameters": 892163, "seconds_per_epoch": 29.6, "eval_seconds": 4.8, "peak_memory_mb": 812.5,
        "device": "cpu (x86_64)", "backend": "numba 0.68.1", "threads": 1, "processes": 1,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "command": f"recbole-sigma train --model={model} --seed={seed}", **(result or {}),
    }  # fmt: skip
    if ranks.rank_masked is not None:
        content["seen_masked"] = dict.fromkeys(("valid", "test"), metrics_of_ranks(ranks.rank_masked, [10]))
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    score = metrics["ndcg@10"]
    rows = ["epoch,loss,train_seconds,hit@10,ndcg@10,mrr@10,eval_seconds"]
    rows += [",".join(map(str, (epoch, 9 - epoch, 1.5, *[score * factor] * 3, 0.2))) for epoch, factor in CURVE]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


CURVE = ((0, 0.7), (1, 1.0), (2, 0.95))


def begin_run(
    folder: Path, model: str, seed: int = 2020, dataset: str = "tiny_50%", settings: Mapping[str, Any] | None = None
) -> Path:
    """The directory of an unfinished run."""
    folder.mkdir(parents=True)
    content = {"model": model, "dataset": dataset, "seed": seed, "epochs": 300, "hidden_size": 64, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder
