"""Samples of a sequential data set as index ranges over flat arrays; a row is padded only when it is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

# Names of fields that are made for batches: RecBole's defaults, which are fixed here.
LIST_SUFFIX = "_list"  # of the history of a field
LIST_LENGTH = "item_length"  # the length of the history
NEG_PREFIX = "neg_"  # of the fields of a negative item

Rows = int | slice | list[int] | np.ndarray | Tensor


@dataclass(frozen=True)
class FlatHistories:
    """All interactions by (user, time): user u owns `user_start[u]:user_start[u + 1]`.

    In files that list the history of each sample, `segment` is the sample of each interaction, and a sample owns
    `user_start[sample]:user_start[sample + 1]`, of which the last interaction is its target.
    """

    columns: dict[str, Tensor]  # (interactions, ...) each
    user_start: np.ndarray  # (users + 1,), or (samples + 1,) with `segment`
    user: str  # the names of the fields with the ids
    item: str
    segment: np.ndarray | None = None  # (interactions,)
    _copies: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict)

    def starts(self, positions: np.ndarray) -> np.ndarray:
        """Where the histories begin that contain `positions`: (n,) -> (n,)"""
        owner = self.columns[self.user].numpy() if self.segment is None else self.segment
        return self.user_start[owner[positions]]

    def column(self, name: str, device: torch.device) -> Tensor:
        """A column on `device`, copied there once for all splits."""
        if self.columns[name].device == device:
            return self.columns[name]
        if (name, device) not in self._copies:
            self._copies[name, device] = self.columns[name].to(device)
        return self._copies[name, device]


@dataclass(eq=False, repr=False)
class Prefixes:
    """The samples of one split; to RecBole's code it looks like the Interaction that `inter_feat` would be.

    A sample is the position of its target in the flat arrays. Its history is the range that ends there and starts at
    the user's first interaction, or `max_length` before the target. Memory: one integer per sample.

    With `any_length`, a batch has user, item, item list and length, padded to its longest row; otherwise every loaded
    field and its list, padded to `max_length`, as RecBole's own models expect. It is put together on `device`.
    """

    flat: FlatHistories
    targets: np.ndarray
    max_length: int
    any_length: bool
    device: torch.device = field(default=torch.device("cpu"))
    _dropped: frozenset[str] = frozenset()

    def ranges(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Start and stop of the histories of `rows`, both (n,); the target is at stop."""
        stop = self.targets[self._index(rows)].astype(np.int64)
        return stop - np.minimum(self.history_lengths(rows), self.max_length), stop

    def history_lengths(self, rows: Rows) -> np.ndarray:
        """All interactions before the target, not truncated: (n,) int64."""
        stop = self.targets[self._index(rows)].astype(np.int64)
        return stop - self.flat.starts(stop)

    def seen(self, rows: Rows) -> Tensor:
        """The items of the histories, not truncated, padded on the right with 0: (n, longest), on the CPU."""
        stop = self.targets[self._index(rows)].astype(np.int64)
        first = self.flat.starts(stop)
        start, length = torch.from_numpy(np.stack([first, stop - first]))
        return gather(self.flat.columns[self.flat.item], *positions(start, length, int(length.max())))

    def select(self, rows: np.ndarray) -> "Prefixes":
        """The samples `rows` (n,), over the same flat arrays."""
        return replace(self, targets=self.targets[rows])

    def interactions(self) -> np.ndarray:
        """Positions of all interactions that the samples show, each once, in no order: (n,).

        They are the targets and each user's first item. Of histories that a file lists they are the targets and each
        history that is not the end of the user's sample with the next shorter history, target included.
        """
        length, stop = self.history_lengths(slice(None)), self.targets.astype(np.int64)
        if self.flat.segment is None:
            return np.concatenate([stop, stop[length == 1] - 1])
        item, user = (self.flat.columns[name].numpy() for name in (self.flat.item, self.flat.user))
        order = np.lexsort([length, user[stop]])
        length, stop = length[order], stop[order]
        before = np.roll(stop, 1)  # the target of the sample with the next shorter history
        new = (user[stop] != user[before]) | (length > np.roll(length, 1) + 1)
        new[:1] = True  # nothing is before it
        owner = np.repeat(np.arange(len(stop)), length)
        back = np.arange(len(owner)) - np.repeat(length.cumsum() - length, length)  # from the newest item on
        at = stop[owner] - 1 - back
        new[owner[item[at] != item[(before[owner] - back).clip(0)]]] = True
        return np.concatenate([stop, at[new[owner]]])

    def batch(self, rows: Rows) -> Interaction:
        """`rows` as tensors on `device`, padded on the right with 0."""
        ranges = np.stack(self.ranges(rows))
        width = int((ranges[1] - ranges[0]).max(initial=1)) if self.any_length else self.max_length
        start, stop = torch.from_numpy(ranges).to(self.device)  # all that a batch sends there
        length = stop - start
        where, padding = positions(start, length, width)
        plain = [self.flat.user, self.flat.item] if self.any_length else self.flat.columns
        fields = {name: self.flat.column(name, self.device)[stop] for name in plain if name not in self._dropped}
        if LIST_LENGTH not in self._dropped:
            fields[LIST_LENGTH] = length
        for name, listed in self._list_fields().items():
            if not self.any_length or listed == self.flat.item:
                fields[name] = gather(self.flat.column(listed, self.device), where, padding)
        return Interaction(fields)

    @property
    def columns(self) -> list[str]:
        """Names of all fields, those that are built on demand included."""
        names = [name for name in self.flat.columns if name not in self._dropped]
        if LIST_LENGTH not in self._dropped:
            names.append(LIST_LENGTH)
        return names + list(self._list_fields())

    def __getitem__(self, key: str | Rows) -> "Tensor | HistoryColumn | Interaction":
        """A field of all samples, or the batch of some."""
        if not isinstance(key, str):
            return self.batch(key)
        if key in self._dropped:
            raise KeyError(key)
        if key == LIST_LENGTH:
            return self._lengths
        lists = self._list_fields()
        if key in lists:
            return HistoryColumn(self, lists[key])
        return self.flat.columns[key][torch.from_numpy(self.targets.astype(np.int64))]

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def drop(self, columns: str, inplace: bool = True) -> None:
        """Leave a field out of all further batches (RecBole's `unused_col`)."""
        self._dropped |= {columns}

    @cached_property
    def _lengths(self) -> Tensor:
        """Lengths of all samples; kept, because RecBole's FEARec asks for them at every row."""
        start, stop = self.ranges(slice(None))
        return torch.from_numpy(stop - start)

    def _list_fields(self) -> dict[str, str]:
        """List field -> the field that it lists."""
        pairs = {name + LIST_SUFFIX: name for name in self.flat.columns if name != self.flat.user}
        return {name: field for name, field in pairs.items() if name not in self._dropped}

    def _index(self, rows: Rows) -> np.ndarray:
        """Rows in any form that RecBole uses -> (n,) positions or a mask."""
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)))
        return np.atleast_1d(np.asarray(rows, dtype=np.int64 if isinstance(rows, list) and not rows else None))


class HistoryColumn:
    """One list field of all samples; rows are built when they are indexed."""

    def __init__(self, prefixes: Prefixes, field: str) -> None:
        self._prefixes = prefixes
        self._field = field

    def __len__(self) -> int:
        return len(self._prefixes)

    def __getitem__(self, rows: "Rows | tuple[Any, ...]") -> Tensor:
        """The history of one sample (max_length, ...) for an int, otherwise those of several (n, max_length, ...).

        A tuple indexes that tensor further: `[:, :5]` is the first five items of each history.
        """
        if isinstance(rows, tuple):
            if rows and isinstance(rows[0], slice):  # only these rows are built
                return self[rows[0]][(slice(None), *rows[1:])]
            return self[:][rows]
        samples = self._prefixes
        start, stop = map(torch.from_numpy, samples.ranges(rows))
        where, padding = positions(start, stop - start, samples.max_length)
        histories = gather(samples.flat.columns[self._field], where, padding)
        several = isinstance(rows, slice | list) or np.asarray(rows).ndim > 0
        return histories if several else histories[0]


def positions(start: Tensor, length: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions of histories in the flat arrays, 0 where there is none, and where that is: (n,) twice -> (n, width)"""
    if start.device.type != "cpu":
        return _positions_on_device(start, length, width)
    step = np.arange(width)  # NumPy's loops wait for no other thread
    padding = step >= length.numpy()[:, None]
    where = np.where(padding, 0, start.numpy()[:, None] + step)
    return torch.from_numpy(where), torch.from_numpy(padding)


def _positions_on_device(start: Tensor, length: Tensor, width: int) -> tuple[Tensor, Tensor]:
    step = torch.arange(width, device=start.device)
    padding = step >= length[:, None]
    return (start[:, None] + step).masked_fill_(padding, 0), padding


def gather(column: Tensor, where: Tensor, padding: Tensor) -> Tensor:
    """(interactions, ...), (n, width), (n, width) -> (n, width, ...), zero where there is padding"""
    rows = column[where]
    rows[padding] = 0
    return rows
