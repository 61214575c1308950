"""Groups of test samples: by the user's history (SIGMA, Figure 3), and by the target's training frequency and age."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from recbole_sigma.errors import UserError

BOUNDS = (5, 20)
TARGET_BOUNDS = (1, 5, 20)
AGE_BOUNDS = (7, 30, 90, 180)  # days
_NAMES = ("Short", "Medium", "Long")
_TARGET_NAMES = ("Unseen", "Rare", "Common", "Frequent")


@dataclass(frozen=True)
class Group:
    """Samples whose history length, or target's training frequency or age, is in [low, high). `members`: (n,) bool."""

    low: int
    high: float
    name: str
    members: np.ndarray
    by: str = "history"  # or "target", "age"

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.members.sum())

    @property
    def title(self) -> str:
        """The group as a person reads it: `Short 0-5` (half-open), `Long 20+`."""
        numbers = f"{self.low}+" if math.isinf(self.high) else f"{self.low}-{self.high:.0f}"
        return f"{self.name} {numbers}".strip()


def user_groups(history_length: np.ndarray, bounds: Sequence[int] = BOUNDS) -> list[Group]:
    """Divide samples by history length (n,); a length equal to a bound belongs to the longer. Groups may be empty.

    Raises UserError for bounds that are not ascending from 1 on.
    """
    if len(bounds) < 1 or any(low >= high for low, high in pairwise([0, *bounds])):
        bounds_text = ",".join(map(str, bounds))
        raise UserError(f"bounds of user groups must grow and be at least 1, as in 5,20; got {bounds_text!r}")
    names = _NAMES if len(bounds) == len(_NAMES) - 1 else ("",) * (len(bounds) + 1)
    return _groups(history_length, bounds, names, "history")


def target_groups(frequency: np.ndarray) -> list[Group]:
    """Divide samples by the number of training interactions of their target, (n,): from unseen to frequent items."""
    return _groups(frequency, TARGET_BOUNDS, _TARGET_NAMES, "target")


def age_groups(age: np.ndarray) -> list[Group]:
    """Divide samples by the age of the model when their target happened, (n,): days since its training data ended."""
    return _groups(age, AGE_BOUNDS, ["Day"] * (len(AGE_BOUNDS) + 1), "age")


def _groups(values: np.ndarray, bounds: Sequence[int], names: Sequence[str], by: str) -> list[Group]:
    edges = pairwise([0, *bounds, math.inf])
    return [
        Group(int(low), high, name, (values >= low) & (values < high), by)
        for (low, high), name in zip(edges, names, strict=True)
    ]
