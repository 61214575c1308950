"""Kernels of the causal depthwise convolution: taps, bias and activation in one pass; the vector lanes run over the channels."""

from typing import Any

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import sigmoid


@inlined
def convolve_step(b: Any, l: Any, low: Any, high: Any, x: Any, taps: Any, bias: Any, out: Any) -> None:
    """out <- bias + the taps on x[l - K + 1] .. x[l]; what lies before the row's start is zero."""
    last = taps.shape[0] - 1
    for e in range(low, high):
        out[e] = bias[e]
    for back in range(min(last, l) + 1):
        for e in range(low, high):
            out[e] += taps[last - back, e] * x[b, l - back, e]


@kernel
def conv_forward(
    first: Any, step: Any, low: Any, high: Any, x: Any, taps: Any, bias: Any, lengths: Any, activate: Any, y: Any, out: Any
) -> None:
    """Rows first, first + step, ... and channels low .. high - 1. x, y (B, L, E); taps (K, E); bias (E,); scratch: out (E,)."""
    zero = x.dtype.type(0)
    for b in range(first, y.shape[0], step):
        for l in range(lengths[b]):
            convolve_step(b, l, low, high, x, taps, bias, out)
            if activate:
                for e in range(low, high):
                    y[b, l, e] = out[e] * sigmoid(out[e])
            else:
                for e in range(low, high):
                    y[b, l, e] = out[e]
        for l in range(lengths[b], y.shape[1]):
            for e in range(low, high):
                y[b, l, e] = zero


@inlined
def spread_step(
    b: Any, l: Any, low: Any, high: Any, chunk: Any, x: Any, taps: Any, slope: Any, grad_x: Any, grad_taps: Any, grad_bias: Any
) -> None:
    """Hands slope, the gradient of step l before its activation, to everything that the step was made of."""
    last = taps.shape[0] - 1
    for e in range(low, high):
        grad_bias[chunk, e] += slope[e]
    for back in range(min(last, l) + 1):
        for e in range(low, high):
            grad_x[b, l - back, e] += taps[last - back, e] * slope[e]
            grad_taps[chunk, last - back, e] += x[b, l - back, e] * slope[e]


@kernel
def conv_backward(
    first: Any, step: Any, low: Any, high: Any,
    x: Any, taps: Any, bias: Any, lengths: Any, activate: Any, grad_y: Any,
    grad_x: Any, grad_taps: Any, grad_bias: Any, out: Any, slope: Any,
) -> None:  # fmt: skip
    """As `conv_forward`; `first` is also the chunk. grad_taps (chunks, K, E) and grad_bias (chunks, E) are zero on entry."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for b in range(first, grad_x.shape[0], step):
        for l in range(grad_x.shape[1]):
            for e in range(low, high):
                grad_x[b, l, e] = zero
            if l >= lengths[b]:
                continue
            if activate:
                convolve_step(b, l, low, high, x, taps, bias, out)
                for e in range(low, high):
                    gate = sigmoid(out[e])
                    slope[e] = grad_y[b, l, e] * gate * (one + out[e] * (one - gate))
            else:
                for e in range(low, high):
                    slope[e] = grad_y[b, l, e]
            spread_step(b, l, low, high, first, x, taps, slope, grad_x, grad_taps, grad_bias)
