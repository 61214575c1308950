"""Ranks of targets: the primitive that metrics, groups and significance are computed from."""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_sigma.errors import UserError

PADDING_ITEM = 0
METRICS = ("hit", "ndcg", "mrr")
# What NumPy and its zip reader raise for a file that is damaged or another's.
_NOT_ARRAYS = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, RuntimeError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """One entry an evaluated user.

    Attributes:
        user: (n,) tokens, as in the data.
        target: (n,) tokens of the items to be found.
        history_length: (n,) int64, all interactions before the target.
        rank: (n,) float64, 1 = first; half a place where the target shares its score with another item.
    """

    user: np.ndarray
    target: np.ndarray
    history_length: np.ndarray
    rank: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they stand in ranks-valid.npz and ranks-test.npz."""
        return {name: getattr(self, name) for name in ("user", "target", "history_length", "rank")}

    @classmethod
    def load(cls, path: str | Path) -> "Ranks":
        """Read a ranks file; runs nothing that it may contain. Raises UserError for any other file."""
        names = ("user", "target", "history_length", "rank")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                ranks = cls(**{name: arrays[name] for name in names})
        except _NOT_ARRAYS as error:
            raise UserError(f"{path}: not a file of ranks ({error})") from None
        kinds = {name: getattr(ranks, name).dtype.kind for name in names}
        if kinds != {"user": "U", "target": "U", "history_length": "i", "rank": "f"}:
            raise UserError(f"{path}: not a file of ranks (arrays of other kinds)")
        if len({getattr(ranks, name).shape for name in names}) > 1 or ranks.rank.ndim != 1 or not len(ranks.rank):
            raise UserError(f"{path}: not a file of ranks (arrays of different lengths, or of none)")
        if not (np.isfinite(ranks.rank) & (ranks.rank >= 1)).all():
            raise UserError(f"{path}: not a file of ranks (a rank is at least 1)")
        return ranks


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each row's target among all items but the padding item: (B, V), (B,) -> (B,) float64 on the CPU.

    1 + the number of better items + half the number of others with the same score: the mean over all orders of equal
    scores, so that a scorer that cannot tell items apart does not hit. Raises FloatingPointError if a score is NaN or
    infinite.
    """
    items = scores[:, PADDING_ITEM + 1 :]
    if not torch.isfinite(items).all():
        row = int((~torch.isfinite(items)).any(1).nonzero()[0, 0])
        raise FloatingPointError(f"row {row} of the batch has scores that are NaN or infinite")
    own = scores.gather(1, targets[:, None])
    better = (items > own).sum(1)
    equal = (items == own).sum(1) - 1
    return (1 + better.double() + equal.double() / 2).cpu()


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
