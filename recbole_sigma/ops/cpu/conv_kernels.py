"""The causal depthwise convolution: taps (the weights), bias, activation in one pass; vector lanes over channels."""

from typing import Any

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import sigmoid

STEPS_PER_SUM = 64  # rounding grows with the number of terms: sums over steps are sums of sums


@inlined
def convolve_step(at: Any, pos: Any, low: Any, high: Any, x: Any, taps: Any, bias: Any, out: Any) -> None:
    """out <- bias + the taps on x[at - K + 1] .. x[at], zero before the row's start, `pos` steps before `at`."""
    last = taps.shape[0] - 1
    for e in range(low, high):
        out[e] = bias[e]
    for back in range(min(last, pos) + 1):
        for e in range(low, high):
            out[e] += taps[last - back, e] * x[at - back, e]


@kernel
def conv_forward(
    first: Any, step: Any, low: Any, high: Any,
    x: Any, taps: Any, bias: Any, starts: Any, lengths: Any, activate: Any,
    y: Any, out: Any,
) -> None:  # fmt: skip
    """Rows first, first + step, ... and channels low .. high - 1.

    x, y (T, E); taps (K, E), the weight transposed; bias (E,). Row b is at starts[b] .. starts[b + 1] - 1, of which the
    first lengths[b] are real: starts (B + 1,), lengths (B,) int64. Scratch: out (E,).
    """
    zero = x.dtype.type(0)
    for b in range(first, len(lengths), step):
        for pos in range(lengths[b]):
            at = starts[b] + pos
            convolve_step(at, pos, low, high, x, taps, bias, out)
            if activate:
                for e in range(low, high):
                    y[at, e] = out[e] * sigmoid(out[e])
            else:
                for e in range(low, high):
                    y[at, e] = out[e]
        for at in range(starts[b] + lengths[b], starts[b + 1]):
            for e in range(low, high):
                y[at, e] = zero


@inlined
def spread_step(
    at: Any, pos: Any, low: Any, high: Any, x: Any, taps: Any, slope: Any, grad_x: Any, to_taps: Any, to_bias: Any
) -> None:
    """Add the gradients of the step at `at`, slope before the activation, to those of x, taps and bias."""
    last = taps.shape[0] - 1
    for e in range(low, high):
        to_bias[e] += slope[e]
    for back in range(min(last, pos) + 1):
        for e in range(low, high):
            grad_x[at - back, e] += taps[last - back, e] * slope[e]
            to_taps[last - back, e] += x[at - back, e] * slope[e]


@inlined
def add_sums(chunk: Any, low: Any, high: Any, to_taps: Any, to_bias: Any, grad_taps: Any, grad_bias: Any) -> None:
    """Add the sums of some steps to those of the chunk and reset them."""
    zero = to_bias.dtype.type(0)
    for e in range(low, high):
        grad_bias[chunk, e] += to_bias[e]
        to_bias[e] = zero
    for k in range(to_taps.shape[0]):
        for e in range(low, high):
            grad_taps[chunk, k, e] += to_taps[k, e]
            to_taps[k, e] = zero


@kernel
def conv_backward(
    first: Any, step: Any, low: Any, high: Any,
    x: Any, taps: Any, bias: Any, starts: Any, lengths: Any, activate: Any, grad_y: Any,
    grad_x: Any, grad_taps: Any, grad_bias: Any, out: Any, slope: Any, to_taps: Any, to_bias: Any,
) -> None:  # fmt: skip
    """As `conv_forward`; `first` is also the chunk.

    grad_taps (chunks, K, E) and grad_bias (chunks, E) are zero on entry.
    Scratch: out, slope (E,); to_taps (K, E) and to_bias (E,), zero on entry.
    """
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for b in range(first, len(lengths), step):
        for pos in range(starts[b + 1] - starts[b]):
            at = starts[b] + pos
            for e in range(low, high):
                grad_x[at, e] = zero
            if pos >= lengths[b]:
                continue
            if activate:
                convolve_step(at, pos, low, high, x, taps, bias, out)
                for e in range(low, high):
                    gate = sigmoid(out[e])
                    slope[e] = grad_y[at, e] * gate * (one + out[e] * (one - gate))
            else:
                for e in range(low, high):
                    slope[e] = grad_y[at, e]
            spread_step(at, pos, low, high, x, taps, slope, grad_x, to_taps, to_bias)
            if (pos + 1) % STEPS_PER_SUM == 0 or pos + 1 == lengths[b]:
                add_sums(first, low, high, to_taps, to_bias, grad_taps, grad_bias)
