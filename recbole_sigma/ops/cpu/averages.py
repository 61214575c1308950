"""Moving averages on CPU as a differentiable torch function. Vector lanes run over the channels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_sigma.ops.cpu.arrays import RowLayout, as_array
from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.parallel import MOST_CHUNKS, run_parts

STATE_UPDATES = 2**19  # a part has at least this many, or starting it would cost more than it saves


@inlined
def advance(values: Any, at: Any, decay: Any, before: Any, after: Any) -> None:
    """after (N, D) = decay * before + values (T, D) at `at`"""
    for n in range(decay.shape[0]):
        for d in range(decay.shape[1]):
            after[n, d] = decay[n, d] * before[n, d] + values[at, d]


@kernel
def forward_kernel(
    part: Any, parts: Any, values: Any, decay: Any, weight: Any, starts: Any, lengths: Any, y: Any, state: Any
) -> None:
    """y (T, D), zero at first, of the rows part, part + parts, ...; decay, weight and the state are (N, D)."""
    for b in range(part, len(lengths), parts):
        state[:] = 0
        for at in range(starts[b], starts[b] + lengths[b]):
            advance(values, at, decay, state, state)
            for n in range(decay.shape[0]):
                for d in range(decay.shape[1]):
                    y[at, d] += weight[n, d] * state[n, d]


@kernel
def backward_kernel(
    part: Any, parts: Any, values: Any, decay: Any, weight: Any, starts: Any, lengths: Any, grad_y: Any,
    grad_values: Any, grad_decay: Any, grad_weight: Any, states: Any, later: Any,
) -> None:  # fmt: skip
    """Gradients, zero at first. The states (L + 1, N, D) of a row are computed again; `later` is a state's gradient."""
    for b in range(part, len(lengths), parts):
        start, length = starts[b], lengths[b]
        for t in range(length):
            advance(values, start + t, decay, states[t], states[t + 1])
        later[:] = 0
        for t in range(length - 1, -1, -1):
            for n in range(decay.shape[0]):
                for d in range(decay.shape[1]):
                    own = grad_y[start + t, d]
                    later[n, d] = decay[n, d] * later[n, d] + weight[n, d] * own
                    grad_values[start + t, d] += later[n, d]
                    grad_weight[part, n, d] += own * states[t + 1, n, d]
                    grad_decay[part, n, d] += later[n, d] * states[t, n, d]


class _MovingAverages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decay: Tensor, weight: Tensor, rows: RowLayout) -> Tensor:
        arrays = as_array(values), as_array(decay.T), as_array(weight.T)
        parts = max(min(len(rows), int(rows.lengths.sum()) * decay.numel() // STATE_UPDATES, MOST_CHUNKS), 1)
        y, shape = np.zeros(values.shape, arrays[0].dtype), arrays[1].shape
        arguments = *arrays, rows.starts, rows.lengths, y
        run_parts(parts, forward_kernel, lambda part: (part, parts), arguments, y.dtype, shape)
        ctx.save_for_backward(values, decay, weight)
        ctx.rows, ctx.parts = rows, parts
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        values, decay, weight = ctx.saved_tensors
        rows, parts = ctx.rows, ctx.parts
        arrays = as_array(values), as_array(decay.T), as_array(weight.T)
        dtype, shape = arrays[0].dtype, arrays[1].shape
        to_values, to_decay, to_weight = (np.zeros(of, dtype) for of in (values.shape, *[(parts, *shape)] * 2))
        arguments = *arrays, rows.starts, rows.lengths, as_array(grad_y), to_values, to_decay, to_weight
        scratch = (rows.longest + 1, *shape), shape
        run_parts(parts, backward_kernel, lambda part: (part, parts), arguments, dtype, *scratch)
        gradients = [torch.from_numpy(each) for each in (to_values, to_decay.sum(0).T, to_weight.sum(0).T)]
        return *(g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=False)), None


def moving_averages_cpu(values: Tensor, decay: Tensor, weight: Tensor, rows: RowLayout) -> Tensor:
    """`recbole_sigma.ops.averages.moving_averages` on flat values (T, D), with the decays themselves.

    Computed in float64 or else float32.
    """
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return _MovingAverages.apply(*(each.to(dtype) for each in (values, decay, weight)), rows).to(values.dtype)
