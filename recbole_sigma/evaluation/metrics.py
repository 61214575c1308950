"""Metrics at k, under RecBole's names: of the ranks of targets, and of the top-k lists; the names for display."""

from collections.abc import Iterable, Sequence

import numpy as np

METRICS = ("hit", "ndcg", "mrr")  # of every evaluation, and of every table
RANK_METRICS = (*METRICS, "recall", "precision", "map")
LIST_METRICS = ("itemcoverage", "giniindex", "averagepopularity", "tailpercentage", "shannonentropy")
_TITLES = {
    "hit": "HR", "recall": "Recall", "precision": "Precision", "itemcoverage": "ItemCoverage",
    "giniindex": "GiniIndex", "averagepopularity": "AveragePopularity", "tailpercentage": "TailPercentage",
    "shannonentropy": "ShannonEntropy",
}  # fmt: skip


def metric_title(metric: str) -> str:
    """The papers' name for RecBole's: `HR@10` for `hit@10`."""
    name, _, k = metric.partition("@")
    title = _TITLES.get(name, name.upper())
    return f"{title}@{k}" if k else title


def gains_of_ranks(rank: np.ndarray, k: int, names: Iterable[str] = METRICS) -> dict[str, np.ndarray]:
    """Each sample's contribution to the metrics `names` at `k`: (n,) -> (n,) each.

    A sample has one target, so that recall is hit, precision is hit / k, NDCG is 1 / log2(rank + 1), and MRR and MAP
    are 1 / rank within the first k, and 0 beyond.
    """
    hit, reciprocal = np.ones_like(rank), 1 / rank
    gains = {"hit": hit, "recall": hit, "precision": hit / k, "ndcg": 1 / np.log2(rank + 1)}
    gains |= {"mrr": reciprocal, "map": reciprocal}
    return {name: np.where(rank <= k, gains[name], 0) for name in names}


def metrics_of_ranks(rank: np.ndarray, topk: Sequence[int], names: Iterable[str] = METRICS) -> dict[str, float]:
    """Means over samples, in full precision, by RecBole's names: (n,) -> `hit@10`, `ndcg@10`, `mrr@10`."""
    gains = {k: gains_of_ranks(rank, k, names) for k in topk}
    return {f"{name}@{k}": float(np.mean(gains[k][name])) for name in names for k in topk}


def metrics_of_lists(
    lists: np.ndarray, topk: Sequence[int], names: Iterable[str], counts: np.ndarray, tail_ratio: float
) -> dict[str, float]:
    """Metrics of the recommended items, (n, K) item ids, best first, as RecBole computes them.

    `counts` (V,): training samples with each item as target. Items that are never a target are not in the tail, and the
    padding item counts as an item of the coverage, as in RecBole.
    """
    known = np.flatnonzero(counts)
    rarest = known[np.argsort(counts[known], kind="stable")][: max(int(len(known) * tail_ratio), 1)]
    tail = np.zeros(len(counts), dtype=bool)
    tail[known[counts[known] <= tail_ratio] if tail_ratio > 1 else rarest] = True
    metrics: dict[str, float] = {}
    for k in topk:
        shown = lists[:, :k]
        times = np.bincount(shown.ravel(), minlength=len(counts))
        times = np.sort(times[times > 0])  # how often each recommended item is recommended
        share, n_items = times / shown.size, len(counts)
        place = np.arange(n_items - len(times) + 1, n_items + 1)
        values = {
            "itemcoverage": len(times) / n_items,
            "giniindex": ((2 * place - n_items - 1) * times).sum() / shown.size / n_items,
            "averagepopularity": counts[shown].mean(),
            "tailpercentage": tail[shown].mean(),
            "shannonentropy": -(share * np.log(share)).sum() / len(times),
        }
        metrics |= {f"{name}@{k}": float(values[name]) for name in names}
    return {f"{name}@{k}": metrics[f"{name}@{k}"] for name in names for k in topk}
