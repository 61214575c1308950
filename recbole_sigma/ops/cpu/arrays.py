"""Tensors as the arrays that kernels take."""

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]


def as_array(tensor: Tensor) -> Array:
    """A C-contiguous array; it shares the tensor's memory where that is contiguous."""
    return tensor.detach().contiguous().numpy()


def as_rows(tensor: Tensor) -> Array:
    """(B, L, X) -> (B, L, X or more), C-contiguous, for kernels that touch the first X of each row only.

    A slice of wider rows, as `chunk` and `split` of a projection give, is not copied: the array is as wide as those
    rows. Its last row then reaches beyond the slice, perhaps beyond the memory, and must be left alone there.
    """
    rows, length, width = tensor.shape
    pitch = tensor.stride(1)
    if tensor.numel() == 0 or tensor.stride(2) != 1 or pitch < width or tensor.stride(0) != length * pitch:
        return as_array(tensor)
    array = tensor.detach().numpy()
    strides = tuple(step * array.itemsize for step in (length * pitch, pitch, 1))
    return np.lib.stride_tricks.as_strided(array, (rows, length, pitch), strides)
