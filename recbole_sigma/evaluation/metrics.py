"""Metrics of ranks: HR, NDCG and MRR at k, by RecBole's names; and the names that people read."""

import numpy as np

METRICS = ("hit", "ndcg", "mrr")


def metric_title(metric: str) -> str:
    """RecBole's `hit@10` as the papers write it, `HR@10`."""
    name, _, k = metric.partition("@")
    title = "HR" if name == "hit" else name.upper()
    return f"{title}@{k}" if k else title


def gains_of_ranks(rank: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """What each user adds to the metrics at `k`: (n,) by `hit`, `ndcg`, `mrr`.

    One target a user: NDCG is 1 / log2(rank + 1) and MRR 1 / rank within the first k, 0 beyond.
    """
    gains = {"hit": np.ones_like(rank), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}
    return {name: np.where(rank <= k, gains[name], 0) for name in METRICS}


def metrics_of_ranks(rank: np.ndarray, topk: list[int]) -> dict[str, float]:
    """Means over users, full precision, by RecBole's names: `hit@10`, `ndcg@10`, `mrr@10`."""
    gains = {k: gains_of_ranks(rank, k) for k in topk}
    return {f"{name}@{k}": float(np.mean(gains[k][name])) for name in METRICS for k in topk}
