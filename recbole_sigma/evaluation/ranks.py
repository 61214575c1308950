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
