"""Which interactions are kept; arrays in, row numbers out."""

from collections.abc import Callable

import numpy as np

from recbole_sigma.convert.formats import Filters

Refuse = Callable[[np.ndarray], np.ndarray]  # number of interactions of each id -> which ids must go


def without_refused(
    user: np.ndarray, item: np.ndarray, refuse_user: Refuse, refuse_item: Refuse, sizes: tuple[int, int] = (1, 1)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop refused users and items together, count again, and repeat until nothing is refused.

    `user` and `item` (n,) are ids from 0, of at least `sizes` users and items. Returns the row numbers
    that are left, and which users and items were refused.
    """
    rows = np.arange(len(user), dtype=np.int64)
    users, items = (np.bincount(ids, minlength=size) for ids, size in zip((user, item), sizes, strict=True))
    no_user, no_item = np.zeros(len(users), bool), np.zeros(len(items), bool)
    while True:
        no_user |= refuse_user(users)
        no_item |= refuse_item(items)
        dropped = no_user[user] | no_item[item]
        if not dropped.any():
            return rows, no_user, no_item
        users -= np.bincount(user[dropped], minlength=len(users))
        items -= np.bincount(item[dropped], minlength=len(items))
        user, item, rows = user[~dropped], item[~dropped], rows[~dropped]


def kept_rows(
    filters: Filters, user: np.ndarray, item: np.ndarray, time: np.ndarray, rating: np.ndarray
) -> np.ndarray | range:
    """Row numbers, ascending, that pass the filters; a missing rating (NaN) does not reach a smallest rating."""
    if filters.min_rating is None and filters.duplicates == "keep" and filters.k_core < 2:
        return range(len(user))
    rows = np.arange(len(user), dtype=np.int64)
    if filters.min_rating is not None:
        rows = np.flatnonzero(rating >= filters.min_rating)
    if filters.duplicates != "keep":
        pair = user[rows].astype(np.int64) * (int(item.max(initial=0)) + 1) + item[rows]
        order = np.lexsort((time[rows], pair))  # stable: equal times in the order of the file
        new = np.append(True, pair[order][1:] != pair[order][:-1])[: len(order)]
        if filters.duplicates == "last":
            new = np.append(new[1:], True)[: len(order)]
        rows = np.sort(rows[order[new]])
    if filters.k_core > 1:
        few = lambda counts: counts < filters.k_core  # noqa: E731
        rows = rows[without_refused(user[rows], item[rows], few, few)[0]]
    return rows
