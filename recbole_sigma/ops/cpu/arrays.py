"""Tensors as arguments of the kernels: NumPy arrays."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


def as_array(tensor: Tensor) -> Array:
    """A C-contiguous array; it shares the tensor's memory where that is contiguous."""
    return tensor.detach().contiguous().numpy()


def as_rows(tensor: Tensor) -> Array:
    """(T, X) -> (T, X or more), C-contiguous, for kernels that access the first X of the last axis only.

    A slice of a wider tensor, as from `chunk` and `split`, is not copied: the array is as wide as that tensor and must
    not be accessed beyond the slice, at its end perhaps beyond the memory.
    """
    length, width = tensor.shape
    pitch = tensor.stride(0)
    if tensor.numel() == 0 or tensor.stride(1) != 1 or pitch < width:
        return as_array(tensor)
    array = tensor.detach().numpy()
    return np.lib.stride_tricks.as_strided(array, (length, pitch), (pitch * array.itemsize, array.itemsize))


@dataclass(frozen=True)
class RowLayout:
    """Where the rows are in flat arrays: row b at starts[b] .. starts[b + 1] - 1, its first lengths[b] items real."""

    starts: Array  # (B + 1,) int64
    lengths: Array  # (B,) int64

    @classmethod
    def of(cls, shape: tuple[int, ...], lengths: Tensor | None, offsets: Tensor | None) -> "RowLayout":
        """Of an input (B, L, X) with its `lengths` (B,) or all real, or of a flat one, (T, X), with its `offsets`."""
        if offsets is not None:
            starts = as_array(offsets.cpu().long())
            return cls(starts, np.diff(starts))
        rows, length = shape[:2]
        real = np.full(rows, length, np.int64) if lengths is None else as_array(lengths.cpu().long())
        return cls(np.arange(rows + 1, dtype=np.int64) * length, real)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))
