"""Weighted sums of decaying averages: one function for CPU and CUDA."""

import torch
from torch import Tensor

from recbole_sigma.ops.rows import check_rows, check_tensors
from recbole_sigma.ops.scan import selective_scan
from recbole_sigma.ops.traced import exporting


def moving_averages(
    values: Tensor, log_decay: Tensor, weight: Tensor, lengths: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Several linear recurrences per channel over each row of a batch, and their weighted sum.

        s_(t,n) = exp(log_decay_n) s_(t-1,n) + values_t,     s_(0,n) = 0
        y_t = sum_n weight_n s_(t,n)

    The selective scan with a constant step and one state (S4D, arXiv 2206.11893), which it is on CUDA and in exports;
    the kernel on CPU reads each value once for all recurrences of its channel. For the gradient it computes a row's
    states again, in memory of (longest row, D, N) per thread.

    Args:
        values: (B, L, D); log_decay, weight: (D, N), log_decay below 0
        lengths: (B,) int, where each row ends: y is zero beyond, and values are not read there
        offsets: (rows + 1,) int; values and y are (T, D) then, rows without padding (ops/rows.py)

    Returns y (B, L, D), in values' dtype. Raises TypeError for wrong dtypes, ValueError for wrong shapes, lengths and
    devices, and CudaExtensionError for CUDA tensors without mamba-ssm's extension.
    """
    if values.dim() != 3 - (offsets is not None) or log_decay.dim() != 2:
        expected = "(B, L, D)" if offsets is None else "(T, D)"
        raise ValueError(
            f"values must be {expected} and log_decay (D, N), not {tuple(values.shape)} and {tuple(log_decay.shape)}"
        )
    own = values.shape[-1], log_decay.shape[1]
    check_tensors(values.device, values=(values, values.shape), log_decay=(log_decay, own), weight=(weight, own))
    if not exporting():
        check_rows(values.shape, lengths, offsets)
    if values.device.type == "cpu" and not exporting():
        from recbole_sigma.ops.cpu.arrays import RowLayout
        from recbole_sigma.ops.cpu.averages import moving_averages_cpu  # here, because it imports numba

        rows = RowLayout.of(values.shape, lengths, offsets)
        return moving_averages_cpu(values.flatten(0, -2), log_decay.exp(), weight, rows).view(values.shape)
    if values.device.type not in ("cpu", "cuda"):
        raise ValueError(f"moving_averages runs on cpu and cuda, not on {values.device.type}")
    each = values.repeat_interleave(own[1], -1)  # a channel for each recurrence
    ones = torch.ones_like(each)
    sums = selective_scan(
        each, ones, log_decay.reshape(-1, 1), ones[..., :1], ones[..., :1],
        delta_softplus=False, lengths=lengths, offsets=offsets,
    )  # fmt: skip
    return (sums.unflatten(-1, own) * weight).sum(-1)
