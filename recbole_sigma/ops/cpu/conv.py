"""The causal depthwise convolution on CPU as a differentiable torch function."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_sigma.ops.cpu.arrays import RowLayout, as_array, as_rows
from recbole_sigma.ops.cpu.conv_kernels import conv_backward, conv_forward
from recbole_sigma.ops.cpu.parallel import Division, run_parts

MULTIPLICATIONS = 2**19  # a part has at least this many, or starting it would cost more than it saves


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rows: RowLayout, activate: bool) -> Tensor:
        channels = x.shape[1]
        division = Division.of(len(rows), channels, x.numel() * weight.shape[1] // MULTIPLICATIONS)
        y = torch.empty(x.shape, dtype=x.dtype)
        arguments = as_rows(x), as_array(weight.T), as_array(bias), rows.starts, rows.lengths, activate, y.numpy()
        run_parts(division.parts, conv_forward, division.bounds, arguments, y.numpy().dtype, channels)
        ctx.save_for_backward(x, weight, bias)
        ctx.rows, ctx.activate, ctx.division = rows, activate, division
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        division: Division = ctx.division
        rows: RowLayout = ctx.rows
        grad_x = torch.empty(x.shape, dtype=x.dtype)
        taps = as_array(weight.T)
        grad_taps = np.zeros((division.chunks, *taps.shape), taps.dtype)
        grad_bias = np.zeros((division.chunks, x.shape[1]), taps.dtype)
        inputs = as_rows(x), taps, as_array(bias), rows.starts, rows.lengths, ctx.activate, as_rows(grad_y)
        arguments = (*inputs, grad_x.numpy(), grad_taps, grad_bias)
        scratch = x.shape[1], x.shape[1], taps.shape, x.shape[1]
        run_parts(division.parts, conv_backward, division.bounds, arguments, taps.dtype, *scratch)
        gradients = (grad_x, torch.from_numpy(grad_taps.sum(0)).T, torch.from_numpy(grad_bias.sum(0)), None, None)
        return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True))


def causal_conv1d_cpu(x: Tensor, weight: Tensor, bias: Tensor, activation: str | None, rows: RowLayout) -> Tensor:
    """`recbole_sigma.ops.causal_conv1d` on flat x (T, E), for arguments that it has checked.

    Computed in float64 or else float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _CausalConv1d.apply(x.to(dtype), weight.to(dtype), bias.to(dtype), rows, activation == "silu").to(x.dtype)
