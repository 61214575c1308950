"""Ranks of targets, from which metrics, user groups and significance are computed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_sigma.errors import UserError

PADDING_ITEM = 0
_KINDS = {"user": "U", "target": "U", "history_length": "i", "rank": "f"}  # of the arrays' dtypes
_OPTIONAL = {"target_frequency": "i", "target_age": "f", "rank_masked": "f"}  # runs of older versions have none


@dataclass(frozen=True)
class Ranks:
    """One entry per evaluated sample, (n,) each. Leave-one-out has one sample per user, other splits may have more."""

    user: np.ndarray  # ids as in the data
    target: np.ndarray  # ids of the target items
    history_length: np.ndarray  # int64, number of interactions before the target
    rank: np.ndarray  # float64, 1 is the first; fractional where other items have the target's score
    target_frequency: np.ndarray | None = None  # int64, training interactions with the target
    target_age: np.ndarray | None = None  # float64, days from the end of training to the target; of a split by time
    rank_masked: np.ndarray | None = None  # float64, of `masked_ranks`; None where that is `rank` or is not known
    lists: np.ndarray | None = None  # (n, K) numbers of the best items, best first; not saved

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as in ranks-valid.npz and ranks-test.npz."""
        return {name: getattr(self, name) for name in (*_KINDS, *_OPTIONAL) if getattr(self, name) is not None}

    @classmethod
    def load(cls, path: str | Path) -> "Ranks":
        """Read a ranks file without executing anything in it. Raises UserError for any other file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in (*_KINDS, *_OPTIONAL) if name in file or name in _KINDS}
        except Exception as error:  # NumPy and its zip reader raise almost anything for a damaged file
            raise UserError(f"{path}: not a file of ranks ({error})") from None
        rank = arrays["rank"]
        kinds = {name: kind for name, kind in (_KINDS | _OPTIONAL).items() if name in arrays}
        if {name: array.dtype.kind for name, array in arrays.items()} != kinds:
            raise UserError(f"{path}: not a file of ranks (arrays of other types)")
        if len({array.shape for array in arrays.values()}) > 1 or rank.ndim != 1 or not len(rank):
            raise UserError(f"{path}: not a file of ranks (arrays of different lengths, or empty)")
        all_ranks = np.concatenate([rank, arrays.get("rank_masked", rank)])
        if not (np.isfinite(all_ranks) & (all_ranks >= 1)).all():
            raise UserError(f"{path}: not a file of ranks (a rank is a number from 1 on)")
        return cls(**arrays)


def target_ranks(scores: Tensor, targets: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Rank of each row's target among all items but the padding item: (B, V), (B,) -> (B,) float64 on the CPU.

    1 + the items with higher scores + half the others with the same score: the mean over all orders of equal scores, so
    that constant scores are no hits. With `candidates` (B, n), among those and the target; an item counts once.
    Raises FloatingPointError if a score is NaN or infinite.
    """
    items = scores[:, PADDING_ITEM + 1 :]
    if not all(torch.isfinite(extreme) for extreme in torch.aminmax(items)):  # ten times as fast as a look at each item
        row = int((~torch.isfinite(items)).any(1).nonzero()[0, 0])
        raise FloatingPointError(f"row {row} of the batch has scores that are NaN or infinite")
    own = scores.gather(1, targets[:, None])
    if candidates is None:
        hits = torch.empty_like(items, dtype=torch.float32)  # counts to 2^24; a sum of bools takes three times as long
        better, equal = torch.gt(items, own, out=hits).sum(1), torch.eq(items, own, out=hits).sum(1) - 1
    else:
        candidates = candidates.sort(1).values
        again = candidates.diff(dim=1, prepend=torch.full_like(candidates[:, :1], -1)) == 0
        drawn = scores.gather(1, candidates).masked_fill(again, -torch.inf)
        better, equal = (drawn > own).sum(1), (drawn == own).sum(1)
    return (1 + better.double() + equal.double() / 2).cpu()


def masked_ranks(ranks: Tensor, scores: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
    """The same targets' ranks among the items that are not in the user's history, from the same scores: (B,) float64.

    `ranks` (B,) are those of `target_ranks` among all items, `seen` (B, W) the items of the histories, 0 where there is
    none. A target that is in the history cannot be recommended: it is ranked last.
    """
    seen, targets = seen.sort(1).values, targets[:, None]
    counts = (seen != PADDING_ITEM) & (seen.diff(dim=1, prepend=torch.full_like(seen[:, :1], -1)) != 0)
    again = (seen == targets).any(1).cpu()
    theirs, own = scores.gather(1, seen), scores.gather(1, targets)
    better, equal = ((theirs > own) & counts).sum(1), ((theirs == own) & counts).sum(1)
    masked = ranks - (better.double() + equal.double() / 2).cpu()
    return masked.masked_fill(again, scores.shape[1] - 1)


def top_items(scores: Tensor, k: int, targets: Tensor, candidates: Tensor | None = None) -> Tensor:
    """The best `k` items of each row, best first: (B, V), (B,) -> (B, min(k, V - 1)) int32 on the CPU.

    With `candidates` (B, n), of those and the target; where they are fewer than k, other items follow, as in RecBole.
    """
    if candidates is not None:
        candidates = torch.cat([targets[:, None], candidates], 1)
        allowed = torch.full_like(scores, -torch.inf)
        scores = allowed.scatter_(1, candidates, scores.gather(1, candidates))
    items = scores[:, PADDING_ITEM + 1 :]
    return (items.topk(min(k, items.shape[1])).indices + PADDING_ITEM + 1).int().cpu()
