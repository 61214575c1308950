"""Rows of different lengths as arguments: padded, (B, L, X) with `lengths`, or flat, (T, X) with `offsets`.

Flat rows follow each other without padding: row b is at offsets[b] .. offsets[b + 1] - 1, from 0 up to T.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def check_tensors(device: torch.device, **expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises unless each named tensor is None or a floating-point one of its expected shape, on `device`."""
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, not {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the first argument on {device}")


def check_rows(shape: torch.Size, lengths: Tensor | None, offsets: Tensor | None) -> None:
    """Raises unless the rows of an input of `shape` are within it; values are not read on CUDA (a synchronisation).

    `lengths`: an integer from 0 to L per row, for (B, L, X). `offsets`: ascending integers from 0 to T, for (T, X).
    """
    if offsets is not None:
        if lengths is not None:
            raise ValueError("lengths and offsets: give only one of them")
        if offsets.is_floating_point() or offsets.is_complex() or offsets.dtype == torch.bool:
            raise TypeError(f"offsets must be integers, not {offsets.dtype}")
        if offsets.dim() != 1 or not len(offsets):
            raise ValueError(f"offsets must have shape (rows + 1,), not {tuple(offsets.shape)}")
        ends = (int(offsets[0]), int(offsets[-1])) if offsets.device.type == "cpu" else (0, shape[0])
        if ends != (0, shape[0]) or (offsets.device.type == "cpu" and bool((offsets.diff() < 0).any())):
            raise ValueError(f"offsets must ascend from 0 to {shape[0]}")
    if lengths is None:
        return
    rows, length = shape[:2]
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, not {lengths.dtype}")
    if lengths.shape != (rows,):
        raise ValueError(f"lengths must have shape {(rows,)}, not {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and rows:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 0 or longest > length:
            raise ValueError(f"lengths must lie in 0 .. {length}, not in {shortest} .. {longest}")


def on_padded_rows(
    operation: Callable[..., Tensor], tensors: list[Tensor | None], offsets: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """`operation(*padded, lengths)` for kernels that need padding: flat rows (T, X) each -> (T, Y).

    `padded`: the tensors as (B, L, X), zero beyond each row's length; the result is (B, L, Y). Without `offsets` the
    tensors are padded rows already.
    """
    if offsets is None:
        return operation(*tensors, lengths)
    lengths = offsets.diff()
    width = max(int(lengths.max()), 1) if len(lengths) else 1
    item = torch.arange(len(next(x for x in tensors if x is not None)), device=offsets.device)
    row = torch.searchsorted(offsets, item, right=True) - 1  # without waiting for a GPU, unlike repeat_interleave
    slot = row * width + item - offsets[row]
    size = len(lengths), width
    padded = [
        None if x is None else x.new_zeros(size[0] * size[1], x.shape[1]).index_copy(0, slot, x).unflatten(0, size)
        for x in tensors
    ]
    return operation(*padded, lengths).flatten(0, 1).index_select(0, slot)
