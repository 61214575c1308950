"""Ranks of targets, from which metrics, user groups and significance are computed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_sigma.errors import UserError

PADDING_ITEM = 0
_KINDS = {"user": "U", "target": "U", "history_length": "i", "rank": "f"}  # of the arrays' dtypes


@dataclass(frozen=True)
class Ranks:
    """One entry per evaluated user, (n,) each."""

    user: np.ndarray  # ids as in the data
    target: np.ndarray  # ids of the target items
    history_length: np.ndarray  # int64, number of interactions before the target
    rank: np.ndarray  # float64, 1 is the first; fractional where other items have the target's score

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as in ranks-valid.npz and ranks-test.npz."""
        return {name: getattr(self, name) for name in _KINDS}

    @classmethod
    def load(cls, path: str | Path) -> "Ranks":
        """Read a ranks file without executing anything in it. Raises UserError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _KINDS}
        except Exception as error:  # NumPy and its zip reader raise almost anything for a damaged file
            raise UserError(f"{path}: not a file of ranks ({error})") from None
        rank = arrays["rank"]
        if {name: array.dtype.kind for name, array in arrays.items()} != _KINDS:
            raise UserError(f"{path}: not a file of ranks (arrays of other types)")
        if len({array.shape for array in arrays.values()}) > 1 or rank.ndim != 1 or not len(rank):
            raise UserError(f"{path}: not a file of ranks (arrays of different lengths, or empty)")
        if not (np.isfinite(rank) & (rank >= 1)).all():
            raise UserError(f"{path}: not a file of ranks (a rank is a number from 1 on)")
        return cls(**arrays)


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each row's target among all items but the padding item: (B, V), (B,) -> (B,) float64 on the CPU.

    1 + the items with higher scores + half the others with the same score: the mean over all orders of equal scores, so
    that constant scores are no hits. Raises FloatingPointError if a score is NaN or infinite.
    """
    items = scores[:, PADDING_ITEM + 1 :]
    if not torch.isfinite(items).all():
        row = int((~torch.isfinite(items)).any(1).nonzero()[0, 0])
        raise FloatingPointError(f"row {row} of the batch has scores that are NaN or infinite")
    own = scores.gather(1, targets[:, None])
    better = (items > own).sum(1)
    equal = (items == own).sum(1) - 1
    return (1 + better.double() + equal.double() / 2).cpu()
