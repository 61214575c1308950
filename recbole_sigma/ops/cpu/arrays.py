"""Tensors as arguments of the kernels: NumPy arrays."""

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


def as_array(tensor: Tensor) -> Array:
    """A C-contiguous array; it shares the tensor's memory where that is contiguous."""
    return tensor.detach().contiguous().numpy()


def as_rows(tensor: Tensor) -> Array:
    """(B, L, X) -> (B, L, X or more), C-contiguous, for kernels that access the first X of the last axis only.

    A slice of a wider tensor, as from `chunk` and `split`, is not copied: the array is as wide as that tensor and must
    not be accessed beyond the slice, at its end perhaps beyond the memory.
    """
    rows, length, width = tensor.shape
    pitch = tensor.stride(1)
    if tensor.numel() == 0 or tensor.stride(2) != 1 or pitch < width or tensor.stride(0) != length * pitch:
        return as_array(tensor)
    array = tensor.detach().numpy()
    strides = tuple(step * array.itemsize for step in (length * pitch, pitch, 1))
    return np.lib.stride_tricks.as_strided(array, (rows, length, pitch), strides)


def row_ends(rows: int, length: int, lengths: Tensor | None) -> Array:
    """The lengths, or `length` for each row if there are none: (B,) int64."""
    return np.full(rows, length, np.int64) if lengths is None else as_array(lengths.cpu().long())
