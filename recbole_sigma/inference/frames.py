"""Tables of pandas and polars: interactions to histories, and recommendations to a table of the same kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from recbole_sigma.errors import UserError


def is_frame(table: Any) -> bool:
    """Whether it is a DataFrame of pandas or polars."""
    return type(table).__name__ == "DataFrame" and type(table).__module__.partition(".")[0] in ("pandas", "polars")


def histories_of(frame: Any, user: str, item: str, time: str | None) -> tuple[list[Any], list[list[Any]]]:
    """Users in order of their first row, and each one's items, by `time` if there is such a column. UserError."""
    for name in (user, item):
        if name not in frame.columns:
            raise UserError(f"histories: the table has no column {name!r}, only {', '.join(map(str, frame.columns))}")
    numbers, users = pd.factorize(frame[user].to_numpy())
    if (numbers < 0).any() or pd.isna(frame[item].to_numpy()).any():
        raise UserError(f"histories: a row of the table has no {user} or no {item}")
    keys = [numbers] if time not in frame.columns else [frame[time].to_numpy(), numbers]
    order = np.lexsort(keys)  # stable
    ends = np.cumsum(np.bincount(numbers, minlength=len(users)))[:-1]
    items = np.split(frame[item].to_numpy()[order], ends) if len(users) else []
    return users.tolist(), [each.tolist() for each in items]


def frame_of(
    like: Any, users: Sequence[Any], lists: Sequence[Sequence[tuple[str, float]]], names: Sequence[str]
) -> Any:
    """A table of the kind of `like` with a row per recommended item: user, item, score, rank (1 is the best)."""
    user, item = names
    columns = {
        user: [who for who, row in zip(users, lists, strict=True) for _ in row],
        item: [each for row in lists for each, _ in row],
        "score": [score for row in lists for _, score in row],
        "rank": [rank for row in lists for rank, _ in enumerate(row, 1)],
    }
    return type(like)(columns)
