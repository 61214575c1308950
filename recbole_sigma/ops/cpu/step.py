"""The parts of a layer on the next item of one history, from a state kept between calls."""

import math
from typing import Any

import numpy as np

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import exp2, sigmoid, softplus
from recbole_sigma.ops.cpu.gru_kernels import tanh

LOG2_E = 1.4426950408889634


@inlined
def project(weight: Any, first: Any, x: Any, out: Any) -> None:
    """out <- rows `first`, first + 1, ... of weight (n, I) times x (I,)"""
    for row in range(out.shape[0]):
        total = x[0] * weight[first + row, 0]
        for i in range(1, x.shape[0]):
            total += weight[first + row, i] * x[i]
        out[row] = total


@inlined
def read(
    hidden: Any, scanned: Any, selected: Any, window: Any, scan: Any, rate: Any,
    in_proj: Any, taps: Any, conv_bias: Any, x_proj: Any, dt_weight: Any, dt_bias: Any, u: Any, low: Any, delta: Any,
) -> None:  # fmt: skip
    """A position (D,) enters the convolution's window and, if `scanned`, the scan; u, low, delta if `selected`."""
    (channels, states), last, rank = scan.shape, taps.shape[2] - 1, dt_weight.shape[1]
    x = np.empty_like(u)
    project(in_proj, 0, hidden, x)
    for e in range(channels):
        u[e] = conv_bias[e] + taps[e, 0, last] * x[e]
    for k in range(last):
        for e in range(channels):
            u[e] += taps[e, 0, k] * window[k, e]
            window[k, e] = x[e] if k == last - 1 else window[k + 1, e]
    if scanned or selected:
        for e in range(channels):
            u[e] *= sigmoid(u[e])
        project(x_proj, 0, u, low)
        project(dt_weight, 0, low[:rank], delta)
        for e in range(channels):
            delta[e] = softplus(delta[e] + dt_bias[e])
    if scanned:
        for e in range(channels):
            step, drive = delta[e], delta[e] * u[e]
            for n in range(states):
                scan[e, n] = exp2(step * rate[e, n]) * scan[e, n] + drive * low[rank + n]


@inlined
def rates(A_log: Any) -> Any:
    """-exp(A_log) for exponentials of base 2: (E, N)"""
    log2_e, rate = A_log.dtype.type(LOG2_E), np.empty_like(A_log)
    for e in range(A_log.shape[0]):
        for n in range(A_log.shape[1]):
            rate[e, n] = -log2_e * exp2(log2_e * A_log[e, n])
    return rate


@inlined
def emit(hidden: Any, scan: Any, u: Any, low: Any, rank: Any, in_proj: Any, skip: Any, out_proj: Any, out: Any) -> None:
    """The block's output (D,) at the position that was read last."""
    channels, states = scan.shape
    y, z = np.empty_like(skip), np.empty_like(skip)
    project(scan, 0, low[rank + states :], y)
    project(in_proj, channels, hidden, z)
    for e in range(channels):
        y[e] = (y[e] + skip[e] * u[e]) * z[e] * sigmoid(z[e])
    project(out_proj, 0, y, out)


@kernel
def mamba_step(
    hidden: Any, window: Any, scan: Any,
    in_proj: Any, taps: Any, conv_bias: Any, x_proj: Any, dt_weight: Any, dt_bias: Any, A_log: Any, skip: Any,
    out_proj: Any, output: Any,
) -> None:  # fmt: skip
    """`recbole_sigma.ops.step.mamba_step`"""
    rate = rates(A_log)
    u, low, delta = np.empty_like(skip), np.empty(x_proj.shape[0], hidden.dtype), np.empty_like(skip)
    read(hidden, True, True, window, scan, rate, in_proj, taps, conv_bias, x_proj, dt_weight, dt_bias, u, low, delta)
    emit(hidden, scan, u, low, dt_weight.shape[1], in_proj, skip, out_proj, output)


@kernel
def flipped_step(
    newest: Any, oldest: Any, r: Any, total: Any, decay: Any, smallest: Any,
    in_proj: Any, taps: Any, conv_bias: Any, x_proj: Any, dt_weight: Any, dt_bias: Any, A_log: Any, skip: Any,
    out_proj: Any, output: Any,
) -> None:  # fmt: skip
    """`recbole_sigma.ops.step.flipped_step`"""
    rate, width = rates(A_log), taps.shape[2]
    u, low, delta = np.empty_like(skip), np.empty(x_proj.shape[0], newest.dtype), np.empty_like(skip)
    window, scan, joining = np.zeros((width - 1, len(skip)), newest.dtype), np.zeros_like(A_log), np.zeros_like(A_log)
    kept = min(r, newest.shape[0])
    turned, n_oldest = newest.shape[0] - kept, oldest.shape[0]
    for pos in range(turned):  # 1. the border, and 2. the item whose convolution is complete
        own = joining if pos == width - 1 else scan
        row = newest[turned - 1 - pos]
        read(row, True, True, window, own, rate, in_proj, taps, conv_bias, x_proj, dt_weight, dt_bias, u, low, delta)
    for e in range(A_log.shape[0]):
        for n in range(A_log.shape[1]):
            before = decay[e, n]
            if turned == width:
                total[e, n] += before * joining[e, n]
                after = before * exp2(delta[e] * rate[e, n])
                decay[e, n] = after if after > smallest else 0
            scan[e, n] = decay[e, n] * scan[e, n] + total[e, n]
    window[:] = 0
    for pos in range(n_oldest + kept):  # 3. the last r items, whose convolution reaches back to the oldest ones
        row = oldest[n_oldest - 1 - pos] if pos < n_oldest else newest[turned + pos - n_oldest]
        old, end = pos < n_oldest, pos == n_oldest + kept - 1
        read(row, not old, end, window, scan, rate, in_proj, taps, conv_bias, x_proj, dt_weight, dt_bias, u, low, delta)
        if end:
            emit(row, scan, u, low, dt_weight.shape[1], in_proj, skip, out_proj, output)


@inlined
def normalise(x: Any, scale: Any, shift: Any, eps: Any, output: Any) -> None:
    """output <- LayerNorm(x), which may be the same array: (D,)"""
    dtype, size = x.dtype.type, x.shape[0]
    mean, variance = dtype(0), dtype(0)
    for i in range(size):
        mean += x[i]
    mean /= dtype(size)
    for i in range(size):
        variance += (x[i] - mean) ** 2
    factor = dtype(1) / math.sqrt(variance / dtype(size) + dtype(eps))
    for i in range(size):
        output[i] = (x[i] - mean) * factor * scale[i] + shift[i]


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
    for i in range(size):
        output[i] += outer_bias[i] + hidden[i]
    normalise(output, scale, shift, eps, output)


@kernel
def layer_norm(x: Any, scale: Any, shift: Any, eps: Any, output: Any) -> None:
    """`recbole_sigma.ops.step.layer_norm`"""
    normalise(x, scale, shift, eps, output)


@kernel
def gru_step(x: Any, before: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, after: Any) -> None:
    """`recbole_sigma.ops.step.gru_step`"""
    size = len(before)
    inputs, recurrent = np.empty(3 * size, x.dtype), np.empty(3 * size, x.dtype)
    project(weight_ih, 0, x, inputs)
    project(weight_hh, 0, before, recurrent)
    for j in range(len(bias_ih)):  # none without biases
        inputs[j] += bias_ih[j]
        recurrent[j] += bias_hh[j]
    for j in range(size):
        reset, update = sigmoid(inputs[j] + recurrent[j]), sigmoid(inputs[size + j] + recurrent[size + j])
        new = tanh(inputs[2 * size + j] + reset * recurrent[2 * size + j])
        after[j] = new + update * (before[j] - new)


@kernel
def released_gates(
    hidden: Any, flipped: Any, inner: Any, inner_bias: Any, flipped_inner: Any, flipped_bias: Any,
    silu_outer: Any, silu_bias: Any, sigmoid_outer: Any, sigmoid_bias: Any, gates: Any,
) -> None:  # fmt: skip
    """`recbole_sigma.ops.step.released_gates`"""
    size = hidden.shape[0]
    wide, opened, part = np.empty_like(hidden), np.empty_like(hidden), np.empty_like(hidden)
    for direction in range(2):
        x = hidden if direction == 0 else flipped
        project(inner if direction == 0 else flipped_inner, 0, x, wide)
        for i in range(size):
            value = x[i] + wide[i] + (inner_bias[i] if direction == 0 else flipped_bias[i])
            half = sigmoid(value)
            wide[i], opened[i] = value * half, half if direction == 0 else sigmoid(gates[0, i])
        project(silu_outer, 0, wide, gates[direction])
        project(sigmoid_outer, 0, opened, part)
        for i in range(size):
            gates[direction, i] += silu_bias[i] + part[i] + sigmoid_bias[i]
