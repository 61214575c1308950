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
    """Users whose history length is in [low, high). `members`: (n,) bool, True for the users of the group."""

    low: int
    high: float
    name: str
    members: np.ndarray

    @property
    def count(self) -> int:
        """Number of users."""
        return int(self.members.sum())

    @property
    def title(self) -> str:
        """The group as a person reads it: `Short 0-5` (half-open), `Long 20+`."""
        lengths = f"{self.low}+" if math.isinf(self.high) else f"{self.low}-{self.high:.0f}"
        return f"{self.name} {lengths}".strip()


def user_groups(history_length: np.ndarray, bounds: Sequence[int] = BOUNDS) -> list[UserGroup]:
    """Divide users by history length (n,); a length equal to a bound belongs to the longer. Groups may be empty.

    Raises UserError for bounds that are not ascending from 1 on.
    """
    edges = [0, *bounds, math.inf]
    if len(bounds) < 1 or any(low >= high for low, high in pairwise(edges)):
        bounds_text = ",".join(map(str, bounds))
        raise UserError(f"bounds of user groups must grow and be at least 1, as in 5,20; got {bounds_text!r}")
    names = _NAMES if len(bounds) == len(_NAMES) - 1 else ("",) * (len(bounds) + 1)
    return [
        UserGroup(int(low), high, name, (history_length >= low) & (history_length < high))
        for (low, high), name in zip(pairwise(edges), names, strict=True)
    ]
