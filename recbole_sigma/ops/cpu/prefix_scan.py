"""The prefix scan on CPU as a differentiable torch function."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_sigma.ops.cpu.arrays import Array, as_array
from recbole_sigma.ops.cpu.parallel import MOST_CHUNKS, run_parts
from recbole_sigma.ops.cpu.prefix_scan_kernels import LANES, backward_kernel, forward_kernel
from recbole_sigma.ops.cpu.scan import LOG2_E

STATE_UPDATES = 2**19  # a part has at least this many, or starting it would cost more than it saves


class _PrefixScan(torch.autograd.Function):
    """Channels come first in the arrays: a kernel works on one channel of a row at a time."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, layout: list[Array]) -> Tensor:
        inner, offsets, counts, _, first, last = layout
        n_steps, states = len(inner) + counts.size + first.size + last.size, A.shape[1]
        parts = max(min(len(offsets) - 1, n_steps * A.numel() // STATE_UPDATES, MOST_CHUNKS), 1)
        inputs = [as_array(x) for x in (step.T, drive.T, A * LOG2_E, B, C)]
        y = np.empty((A.shape[0], len(C)), inputs[0].dtype)
        running, taken = int(np.diff(offsets).max()) + 1, first.shape[1] + last.shape[1] + 1
        shapes: list[Any] = [(running, states), (running, states), running, (taken + 1, states), (taken, states)]
        run_parts(
            parts, forward_kernel(states), lambda part: (part, parts), (*inputs, *layout, y), y.dtype, *shapes
        )  # fmt: skip
        ctx.save_for_backward(step, drive, A, B, C)
        ctx.layout, ctx.parts, ctx.shapes = layout, parts, shapes
        return torch.from_numpy(y).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        step, drive, A, B, C = ctx.saved_tensors
        inputs = [as_array(x) for x in (step.T, drive.T, A, A * LOG2_E, B, C)]
        dtype, states = inputs[0].dtype, A.shape[1]
        shapes = inputs[0].shape, inputs[1].shape, B.shape, C.shape, (ctx.parts, *A.shape)
        gradients = [np.zeros(shape, dtype) for shape in shapes]
        sums, decays, total, *steps = ctx.shapes
        run_parts(
            ctx.parts, backward_kernel(states), lambda part: (part, ctx.parts),
            (*inputs, *ctx.layout, as_array(grad_y.T), *gradients), dtype,
            sums, decays, total, total, *steps, states, states, states,
        )  # fmt: skip
        to_step, to_drive, to_B, to_C, to_A = map(torch.from_numpy, gradients)
        return to_step.T, to_drive.T, to_A.sum(0), to_B, to_C, None


def prefix_scan_cpu(step: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor, *where: Tensor) -> Tensor:
    """`recbole_sigma.ops.prefix_scan` for arguments that it has checked; computed in float64 or else float32."""
    dtype = torch.float64 if step.dtype == torch.float64 else torch.float32
    tensors = [x.to(dtype) for x in (step, drive, A, B, C)]
    missing = -A.shape[1] % LANES
    if missing:  # states without input and output
        tensors[2:] = [F.pad(x, (0, missing)) for x in tensors[2:]]
    return _PrefixScan.apply(*tensors, [as_array(indices.long()) for indices in where]).to(step.dtype)
