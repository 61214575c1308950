"""The selective scan on CPU as a differentiable torch function."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_sigma.ops.cpu.arrays import RowLayout, as_array, as_rows
from recbole_sigma.ops.cpu.parallel import Division, run_parts
from recbole_sigma.ops.cpu.scan_backward import LANES, backward_kernel
from recbole_sigma.ops.cpu.scan_forward import SEGMENT, scan_forward

LOG2_E = 1.4426950408889634
STATE_UPDATES = 2**20  # a part has at least this many (about 0.5 ms), or starting it would cost more than it saves


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, z: Tensor | None, bias: Tensor,
        rows: RowLayout, smooth: bool, keep: bool,
    ) -> Tensor:  # fmt: skip
        (length, channels), states = u.shape, A.shape[1]
        division = Division.of(len(rows), channels, length * channels * states // STATE_UPDATES)
        y = torch.empty(u.shape, dtype=u.dtype)
        kept = np.maximum(rows.lengths - 1, 0) // SEGMENT
        segments = np.cumsum(kept) - kept
        checkpoints = u.new_empty(int(kept.sum()) if keep else 0, states, channels)
        arguments = (
            *map(as_rows, (u, delta)), as_array((A * LOG2_E).T), *map(as_rows, (B, C)), as_array(skip),
            as_rows(u if z is None else z), as_array(bias), rows.starts, rows.lengths, segments, smooth, z is not None,
            y.numpy(), checkpoints.numpy(),
        )  # fmt: skip
        scratch = (states, channels), channels, channels, channels
        run_parts(division.parts, scan_forward, division.bounds, arguments, y.numpy().dtype, *scratch)
        if keep:
            ctx.save_for_backward(u, delta, A, B, C, skip, z, bias, checkpoints)
            ctx.rows, ctx.segments, ctx.smooth, ctx.division = rows, segments, smooth, division
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, skip, z, bias, checkpoints = ctx.saved_tensors
        (length, channels), states = u.shape, A.shape[1]
        division: Division = ctx.division
        rows: RowLayout = ctx.rows
        grad_u, grad_delta = (torch.empty(u.shape, dtype=u.dtype) for _ in range(2))
        grad_z = torch.empty((0, 0) if z is None else u.shape, dtype=u.dtype)
        # zeroed and summed by NumPy: torch would use its threads, which costs more than the work
        dtype = checkpoints.numpy().dtype
        grad_B, grad_C = (np.empty((division.blocks, length, states), dtype) for _ in range(2))
        grad_A = np.zeros((division.chunks, channels, states), dtype)
        grad_skip, grad_bias = (np.zeros((division.chunks, channels), dtype) for _ in range(2))
        arguments = (
            *map(as_rows, (u, delta)), as_array(A), as_array(A * LOG2_E), *map(as_rows, (B, C)), as_array(skip),
            as_rows(u if z is None else z), as_array(bias), rows.starts, rows.lengths, ctx.segments,
            ctx.smooth, z is not None, checkpoints.numpy(), as_rows(grad_y),
            grad_u.numpy(), grad_delta.numpy(), grad_z.numpy(), grad_B, grad_C, grad_A, grad_skip, grad_bias,
        )  # fmt: skip
        steps = min(SEGMENT, rows.longest)
        shapes: list[tuple[int, ...]] = [(states,), (steps + 1, states), (steps, states), (states,), (states,)]
        shapes += [(channels, states), (channels,), (channels,), *[(steps, channels)] * 6]
        run_parts(
            division.parts, backward_kernel(states),
            lambda part: (*division.bounds(part), part // division.chunks), arguments, dtype, *shapes,
        )  # fmt: skip
        to_A, to_skip, to_bias = (torch.from_numpy(partial.sum(0)) for partial in (grad_A, grad_skip, grad_bias))
        to_B, to_C = (
            torch.from_numpy(partial.sum(0) if division.blocks > 1 else partial[0]) for partial in (grad_B, grad_C)
        )
        gradients = [grad_u, grad_delta, to_A, to_B, to_C, to_skip, grad_z, to_bias, None, None, None]
        return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True))


def selective_scan_cpu(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, rows: RowLayout,
) -> Tensor:  # fmt: skip
    """`recbole_sigma.ops.selective_scan` on flat u (T, E), for arguments that it has checked.

    Computed in float64 or else float32.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    skip, bias = (u.new_zeros(u.shape[1], dtype=dtype) if x is None else x.to(dtype) for x in (D, delta_bias))
    gate = None if z is None else z.to(dtype)
    steps, A, B, C = (x.to(dtype) for x in (delta, A, B, C))
    missing = -A.shape[1] % LANES
    if missing:  # states without input and output
        A, B, C = (F.pad(x, (0, missing)) for x in (A, B, C))
    return _SelectiveScan.apply(u.to(dtype), steps, A, B, C, skip, gate, bias, rows, delta_softplus, keep).to(u.dtype)
