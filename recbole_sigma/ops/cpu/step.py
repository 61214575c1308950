"""A Mamba block and a feed-forward network on the next items of one history, from a state kept between calls."""

import math
from typing import Any

import numpy as np

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import exp2, sigmoid, softplus

LOG2_E = 1.4426950408889634


@inlined
def project(weight: Any, first: Any, x: Any, out: Any) -> None:
    """out <- rows `first`, first + 1, ... of weight (n, I) times x (I,)"""
    for row in range(out.shape[0]):
        total = x[0] * weight[first + row, 0]
        for i in range(1, x.shape[0]):
            total += weight[first + row, i] * x[i]
        out[row] = total


@kernel
def mamba_step(
    hidden: Any, held: Any, window: Any, scan: Any,
    in_proj: Any, taps: Any, conv_bias: Any, x_proj: Any, dt_weight: Any, dt_bias: Any, A_log: Any, skip: Any,
    out_proj: Any, delta: Any, output: Any,
) -> None:  # fmt: skip
    """`recbole_sigma.ops.step.mamba_step`; delta (E,) and output (D,) are those of the last position."""
    (channels, states), last, rank = scan.shape, taps.shape[2] - 1, dt_weight.shape[1]
    log2_e = hidden.dtype.type(LOG2_E)
    rate, low = np.empty_like(scan), np.empty(x_proj.shape[0], hidden.dtype)
    x, u, y = np.empty_like(skip), np.empty_like(skip), np.empty_like(skip)
    for e in range(channels):
        for n in range(states):
            rate[e, n] = -log2_e * exp2(log2_e * A_log[e, n])
    for pos in range(hidden.shape[0]):
        project(in_proj, 0, hidden[pos], x)
        for e in range(channels):
            u[e] = conv_bias[e] + taps[e, 0, last] * x[e]
        for k in range(last):
            for e in range(channels):
                u[e] += taps[e, 0, k] * window[k, e]
                window[k, e] = x[e] if k == last - 1 else window[k + 1, e]
        if pos >= held or pos == hidden.shape[0] - 1:
            for e in range(channels):
                u[e] *= sigmoid(u[e])
            project(x_proj, 0, u, low)
            project(dt_weight, 0, low[:rank], delta)
            for e in range(channels):
                delta[e] = softplus(delta[e] + dt_bias[e])
        if pos >= held:
            for e in range(channels):
                step, drive = delta[e], delta[e] * u[e]
                for n in range(states):
                    scan[e, n] = exp2(step * rate[e, n]) * scan[e, n] + drive * low[rank + n]
    if hidden.shape[0] > 0:
        project(scan, 0, low[rank + states :], y)
        project(in_proj, channels, hidden[hidden.shape[0] - 1], x)  # the gate z
        for e in range(channels):
            y[e] = (y[e] + skip[e] * u[e]) * x[e] * sigmoid(x[e])
        project(out_proj, 0, y, output)


@kernel
def feed_forward(
    hidden: Any, inner: Any, inner_bias: Any, outer: Any, outer_bias: Any, scale: Any, shift: Any, eps: Any, output: Any
) -> None:
    """LayerNorm(GELU(hidden inner + bias) outer + bias + hidden): (D,) -> output (D,)"""
    dtype, size = hidden.dtype.type, hidden.shape[0]
    wide = np.empty_like(inner_bias)
    project(inner, 0, hidden, wide)
    for i in range(wide.shape[0]):
        x = wide[i] + inner_bias[i]
        wide[i] = x * dtype(0.5) * (dtype(1) + math.erf(x * dtype(0.7071067811865476)))
    project(outer, 0, wide, output)
    mean, variance = dtype(0), dtype(0)
    for i in range(size):
        output[i] += outer_bias[i] + hidden[i]
        mean += output[i]
    mean /= dtype(size)
    for i in range(size):
        variance += (output[i] - mean) ** 2
    factor = dtype(1) / math.sqrt(variance / dtype(size) + dtype(eps))
    for i in range(size):
        output[i] = (output[i] - mean) * factor * scale[i] + shift[i]
