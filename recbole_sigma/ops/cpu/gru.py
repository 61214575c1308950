"""The recurrence of the gated recurrent unit on CPU as a differentiable torch function."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_sigma.ops.cpu.arrays import RowLayout, as_array, as_rows
from recbole_sigma.ops.cpu.gru_kernels import TILE, gru_backward, gru_forward
from recbole_sigma.ops.cpu.parallel import MOST_CHUNKS, run_parts

MULTIPLICATIONS = 2**21  # a part has at least this many (about 0.1 ms), or starting it would cost more than it saves
UNROLL = 4  # the kernels' products run over a multiple of this


class _Recurrence(torch.autograd.Function):
    """Overwrites its first argument with what the backward pass needs: new memory would cost as much as the gates."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, rows: RowLayout, keep: bool) -> Tensor:
        (length, wide), hidden = gates.shape, weight.shape[1]
        order = np.argsort(-rows.lengths, kind="stable")
        tiles, multiplications = -(-len(rows) // TILE), int(rows.lengths.sum()) * weight.numel()
        parts = max(min(tiles, multiplications // MULTIPLICATIONS, MOST_CHUNKS), 1)
        states = torch.empty(length, hidden, dtype=gates.dtype)
        hidden_n = torch.empty(length if keep else 0, hidden, dtype=gates.dtype)
        transposed = as_array(F.pad(weight.T, (0, 0, 0, -hidden % UNROLL)))  # zero in the rows added
        arrays = as_array(gates), transposed, as_array(bias), states.numpy(), hidden_n.numpy()
        arguments = order, rows.starts, rows.lengths, *arrays
        scratch = (TILE, len(transposed)), (TILE, wide)
        run_parts(parts, gru_forward, lambda part: (part, parts), arguments, transposed.dtype, *scratch)
        if keep:
            ctx.save_for_backward(weight, states, gates, hidden_n)
            ctx.order, ctx.rows, ctx.parts = order, rows, parts
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        weight, states, gates, hidden_n = ctx.saved_tensors
        (length, hidden), wide, parts = states.shape, len(weight), ctx.parts
        rows: RowLayout = ctx.rows
        later_steps = np.maximum(rows.lengths - 1, 0)
        packed = np.cumsum(later_steps) - later_steps
        later = int(later_steps.sum())
        grad_x, grad_h, previous = (
            torch.empty(shape, dtype=states.dtype) for shape in ((length, wide), (later, wide), (later, hidden))
        )
        padded = as_array(F.pad(weight, (0, 0, 0, -wide % UNROLL)))
        grad_bias = np.zeros((parts, wide), padded.dtype)
        arguments = (
            ctx.order, rows.starts, rows.lengths, padded, states.numpy(), gates.numpy(), hidden_n.numpy(),
            as_rows(grad_states), packed, grad_x.numpy(), grad_h.numpy(), previous.numpy(), grad_bias,
        )  # fmt: skip
        scratch = (TILE, hidden), (TILE, len(padded))
        run_parts(parts, gru_backward, lambda part: (part, parts), arguments, padded.dtype, *scratch)
        to_weight = grad_h.T @ previous if ctx.needs_input_grad[1] else None
        to_bias = torch.from_numpy(grad_bias.sum(0)) if ctx.needs_input_grad[2] else None
        return grad_x if ctx.needs_input_grad[0] else None, to_weight, to_bias, None, None


def recurrence_cpu(gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor | None, rows: RowLayout) -> Tensor:
    """The steps of `recbole_sigma.ops.gru.gru` after the input's projection, in float64 or else float32.

    (T, 3D), (3D, D), (3D,) -> (T, D). Overwrites `gates_x`, which the caller must not read afterwards.
    """
    dtype = torch.float64 if gates_x.dtype == torch.float64 else torch.float32
    bias = weight_hh.new_zeros(len(weight_hh)) if bias_hh is None else bias_hh
    tensors = gates_x.to(dtype).contiguous(), weight_hh.to(dtype), bias.to(dtype)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _Recurrence.apply(*tensors, rows, keep)
