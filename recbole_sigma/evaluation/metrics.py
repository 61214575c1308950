"""HR, NDCG and MRR at k computed from ranks, under RecBole's names, and the names for display."""

import numpy as np

METRICS = ("hit", "ndcg", "mrr")


def metric_title(metric: str) -> str:
    """The papers' name for RecBole's: `HR@10` for `hit@10`."""
    name, _, k = metric.partition("@")
    title = "HR" if name == "hit" else name.upper()
    return f"{title}@{k}" if k else title


def gains_of_ranks(rank: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Each user's contribution to the metrics at `k`: (n,) -> `hit`, `ndcg`, `mrr`, (n,) each.

    With one target per user, NDCG is 1 / log2(rank + 1) and MRR is 1 / rank within the first k, and 0 beyond.
    """
    gains = {"hit": np.ones_like(rank), "ndcg": 1 / np.log2(rank + 1), "mrr": 1 / rank}
    return {name: np.where(rank <= k, gains[name], 0) for name in METRICS}


def metrics_of_ranks(rank: np.ndarray, topk: list[int]) -> dict[str, float]:
    """Means over users, in full precision, by RecBole's names: (n,) -> `hit@10`, `ndcg@10`, `mrr@10`."""
    gains = {k: gains_of_ranks(rank, k) for k in topk}
    return {f"{name}@{k}": float(np.mean(gains[k][name])) for name in METRICS for k in topk}
