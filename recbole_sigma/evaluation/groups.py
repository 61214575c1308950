"""Groups of users by the length of their full history (SIGMA, Figure 3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from recbole_sigma.errors import UserError

BOUNDS = (5, 20)
_NAMES = ("Short", "Medium", "Long")


@dataclass(frozen=True)
class UserGroup:
    """Users whose history length is in [low, high). `members` are their places, (n,) bool."""

    low: int
    high: float
    name: str
    members: np.ndarray

    @property
    def count(self) -> int:
        """How many users."""
        return int(self.members.sum())

    @property
    def title(self) -> str:
        """`Short 0-5`, half-open; `Long 20+`."""
        lengths = f"{self.low}+" if math.isinf(self.high) else f"{self.low}-{self.high:.0f}"
        return f"{self.name} {lengths}".strip()


def user_groups(history_length: np.ndarray, bounds: Sequence[int] = BOUNDS) -> list[UserGroup]:
    """Part users by history length: below the first bound, from each bound to the next, from the last on.

    Each user is in one group: a length equal to a bound belongs to the longer side. Groups may be empty.
    Raises UserError for bounds that do not grow.
    """
    edges = [0, *bounds, math.inf]
    if len(bounds) < 1 or any(low >= high for low, high in pairwise(edges)):
        raise UserError(f"bounds of user groups must grow from 1 on, as 5,20 do; got {','.join(map(str, bounds))!r}")
    names = _NAMES if len(bounds) == len(_NAMES) - 1 else ("",) * (len(bounds) + 1)
    groups = []
    for (low, high), name in zip(pairwise(edges), names, strict=True):
        groups.append(UserGroup(int(low), high, name, (history_length >= low) & (history_length < high)))
    return groups
