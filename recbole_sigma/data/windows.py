"""Training rows that hold many samples each: a history once, with a target at every position."""

from collections.abc import Iterator

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_sigma.data.prefixes import LIST_LENGTH, LIST_SUFFIX, Prefixes, Rows, gather, positions


class Windows:
    """The samples of `prefixes` as windows: one pass of a causal model over a window gives all its prefixes.

    A window is the range of interactions `start` to `stop`: all but the last are read, each position predicts the next.
    A history of at most `max_length` items before its last target is one window, in which positions see exactly what
    prefixes see. A longer one is cut into windows of `max_length` that overlap by half: every sample is a target in one
    window, with all earlier items or at least half of `max_length` of them. RecBole takes it for an Interaction.
    """

    any_length = True

    def __init__(self, prefixes: Prefixes) -> None:
        self.flat = prefixes.flat
        self.start, self.first_target, self.stop = _cut(*_histories(prefixes), prefixes.max_length)
        self.n_targets = self.stop - self.first_target + 1  # samples of each window, (windows,)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: Rows) -> Interaction:
        """Windows as tensors: items read (B, L), their number (B,), and targets (B, L), 0 where there is none."""
        start, first, stop = (torch.from_numpy(of[rows]) for of in (self.start, self.first_target, self.stop))
        length = stop - start
        position, padding = positions(start, length, int(length.numpy().max(initial=1)))
        user, item, columns = self.flat.user, self.flat.item, self.flat.columns
        target = gather(columns[item], position + 1, padding | (position + 1 < first[:, None]))
        read = gather(columns[item], position, padding)
        fields = {user: columns[user][start], item: target, item + LIST_SUFFIX: read}
        return Interaction({**fields, LIST_LENGTH: length})

    def __iter__(self) -> Iterator[str]:
        return iter([*self.flat.columns, self.flat.item + LIST_SUFFIX, LIST_LENGTH])


def _histories(prefixes: Prefixes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of consecutive samples of a user: start of the history, first target and last target, (runs,) each."""
    targets = np.sort(prefixes.targets.astype(np.int64))
    user = prefixes.flat.columns[prefixes.flat.user].numpy()[targets]
    begins = np.flatnonzero(np.diff(targets, prepend=-1) != 1)
    begins = np.union1d(begins, np.flatnonzero(np.diff(user, prepend=-1)))
    last = np.append(begins[1:], len(targets)) - 1
    return prefixes.flat.starts(targets[begins]), targets[begins], targets[last]


def _cut(
    start: np.ndarray, first: np.ndarray, last: np.ndarray, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of the histories: start, first target, last target, (windows,) each."""
    step = max(max_length // 2, 1)
    reach = np.minimum(np.maximum(first, start + max_length), last)  # last target of a history's first window
    count = 1 - (reach - last) // step  # one, and as many of `step` targets as the rest needs
    history = np.repeat(np.arange(len(start)), count)
    number = np.arange(len(history)) - np.repeat(np.cumsum(count) - count, count)
    stop = np.minimum(reach[history] + number * step, last[history])
    first_target = np.where(number == 0, first[history], reach[history] + (number - 1) * step + 1)
    return np.maximum(start[history], stop - max_length), first_target, stop
