"""Sampled evaluation: the items that a target is ranked among, instead of all."""

from collections.abc import Sequence

import numpy as np

_BLOCK = 1024  # rows whose candidates are drawn together, whatever the batches


class SampledItems:
    """`number` items for each evaluated row, drawn with replacement among all but the target.

    RecBole's protocol (RepeatableSampler), with one difference: RecBole draws other items in each evaluation. Here they
    depend on the seed, the split and the row only, so that epochs and models are compared on the same items.
    """

    def __init__(self, weights: np.ndarray, number: int, seed: Sequence[int]) -> None:
        """`weights` (V,) int64: how likely each item is, relative to the others; 0 for the padding item."""
        self._weights, self._ends = weights, np.cumsum(weights)
        self._number, self._seed = number, seed

    def draw(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Items for each of `rows` (n,), whose targets are (n,): (n, number)."""
        blocks, block_of_row = np.unique(rows // _BLOCK, return_inverse=True)
        size = _BLOCK, self._number
        drawn = np.stack([np.random.default_rng((*self._seed, int(block))).random(size) for block in blocks])
        own = self._weights[targets][:, None]
        point = (drawn[block_of_row, rows % _BLOCK] * (self._ends[-1] - own)).astype(np.int64)
        point += np.where(point >= self._ends[targets][:, None] - own, own, 0)  # leaves the target out
        return np.searchsorted(self._ends, point, side="right")
