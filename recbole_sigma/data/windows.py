"""Training rows that hold many samples each: a history once, with a target at every position."""

from collections.abc import Iterator

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_sigma.data.prefixes import LIST_LENGTH, LIST_SUFFIX, Prefixes, Rows


class Windows:
    """The samples of `prefixes` as windows: one pass of a causal model over a window gives all its prefixes.

    A window is the range of interactions `start` to `stop`: all but the last are read, each position predicts the next.
    A history of at most `max_length` items before its last target is one window, in which positions see exactly what
    prefixes see. A longer one is cut into windows of `max_length`, each of which brings `step` more targets: every
    sample is a target in one window, with all earlier items or at least `max_length - step + 1` of them. With `step` 1
    that is exactly what the prefix has. `step` None means 1 where that at most doubles the number of items read, and
    otherwise half of `max_length`. RecBole takes a Windows for an Interaction.
    """

    any_length = True

    def __init__(self, prefixes: Prefixes, step: int | None = None) -> None:
        self.flat, self.interactions = prefixes.flat, prefixes.interactions
        start, first, last = _histories(prefixes)
        self.cut = int((last - start > prefixes.max_length).sum())  # histories that need more than one window
        half = max(prefixes.max_length // 2, 1)
        if step is None:
            beyond = np.maximum(last - start - prefixes.max_length, 0)  # targets that need a window each
            read = int((last - start).sum())
            step = 1 if int(beyond.sum()) * prefixes.max_length <= read else half
        self.step = min(step, prefixes.max_length)
        self.start, self.first_target, self.stop = _cut(start, first, last, prefixes.max_length, self.step)
        self.n_targets = self.stop - self.first_target + 1  # samples of each window, (windows,)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: Rows) -> Interaction:
        """Windows as tensors: users and lengths (R,); items read and targets (T,), 0 where there is none.

        Windows follow each other without padding: T is the sum of their lengths.
        """
        start, first, stop = self.start[rows], self.first_target[rows], self.stop[rows]
        length = stop - start
        position = np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
        user, item = (self.flat.columns[name] for name in (self.flat.user, self.flat.item))
        target = item[torch.from_numpy(position + 1)]
        target[torch.from_numpy(position + 1 < np.repeat(first, length))] = 0
        read = item[torch.from_numpy(position)]
        fields = {self.flat.user: user[torch.from_numpy(start)], LIST_LENGTH: torch.from_numpy(length)}
        return Interaction({**fields, self.flat.item: target, self.flat.item + LIST_SUFFIX: read})

    def __iter__(self) -> Iterator[str]:
        return iter([*self.flat.columns, self.flat.item + LIST_SUFFIX, LIST_LENGTH])


def _histories(prefixes: Prefixes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of consecutive samples of a user: start of the history, first target and last target, (runs,) each."""
    targets = np.sort(prefixes.targets)  # between those of two users is the first interaction of the second
    begins = np.append(0, np.flatnonzero(np.diff(targets) != 1) + 1)[: len(targets)]
    first, last = (targets[rows].astype(np.int64) for rows in (begins, np.append(begins[1:], len(targets)) - 1))
    return prefixes.flat.starts(first), first, last


def _cut(
    start: np.ndarray, first: np.ndarray, last: np.ndarray, max_length: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of the histories: start, first target, last target, (windows,) each."""
    reach = np.minimum(np.maximum(first, start + max_length), last)  # last target of a history's first window
    count = 1 - (reach - last) // step  # one, and as many of `step` targets as the rest needs
    history = np.repeat(np.arange(len(start)), count)
    number = np.arange(len(history)) - np.repeat(np.cumsum(count) - count, count)
    stop = np.minimum(reach[history] + number * step, last[history])
    first_target = np.where(number == 0, first[history], reach[history] + (number - 1) * step + 1)
    return np.maximum(start[history], stop - max_length), first_target, stop
