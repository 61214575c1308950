"""Kernels of the gated recurrent unit: TILE rows of similar length walk through time together.

Each weight is loaded once per tile; vector lanes run over gates and channels. A row goes through the same operations in
the same order whatever its neighbours are, so its result does not depend on the batch.
"""

from typing import Any

import numpy as np

from recbole_sigma.ops.cpu.compiler import by_dtype, inlined, kernel
from recbole_sigma.ops.cpu.elementary import sigmoid

TILE = 4  # `add_product` is written out for this many rows

_f = np.float32
_ONE = _f(1)
# tanh(x) = x P(x^2) / Q(x^2) on [-9.02, 9.02]: minimax fit, relative error 2e-8; beyond, tanh is 1 in float32
_LIMIT = _f(9.02)
_P0, _P1, _P2 = _f(0.9999999790509179), _f(0.13379716837978363), _f(0.0034940344048939704)
_P3, _P4 = _f(2.0583478316904933e-05), _f(1.331906764964272e-08)
_Q1, _Q2 = _f(0.4671303308583009), _f(0.025871072672810354)
_Q3, _Q4 = _f(0.0003283092563019898), _f(7.762017715257032e-07)


def _tanh_single(x: Any) -> Any:
    x = min(max(x, -_LIMIT), _LIMIT)  # x comes first, so that NaN passes through
    square = x * x
    above = (((_P4 * square + _P3) * square + _P2) * square + _P1) * square + _P0
    below = (((_Q4 * square + _Q3) * square + _Q2) * square + _Q1) * square + _ONE
    return x * above / below


@by_dtype(_tanh_single, lambda x: np.tanh(x))
def tanh(x: Any) -> Any:
    """Hyperbolic tangent, with small relative error"""


@inlined
def add_product(left: Any, right: Any, out: Any) -> None:
    """out (TILE, J) += left (TILE, K) @ right (K, J), K a multiple of 4"""
    for k in range(0, left.shape[1], 4):
        a0, a1, a2, a3 = left[0, k], left[0, k + 1], left[0, k + 2], left[0, k + 3]
        b0, b1, b2, b3 = left[1, k], left[1, k + 1], left[1, k + 2], left[1, k + 3]
        c0, c1, c2, c3 = left[2, k], left[2, k + 1], left[2, k + 2], left[2, k + 3]
        d0, d1, d2, d3 = left[3, k], left[3, k + 1], left[3, k + 2], left[3, k + 3]
        for j in range(out.shape[1]):
            w0, w1, w2, w3 = right[k, j], right[k + 1, j], right[k + 2, j], right[k + 3, j]
            out[0, j] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            out[1, j] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
            out[2, j] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
            out[3, j] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3


@inlined
def advance(at: Any, i: Any, gates: Any, gates_h: Any, h: Any, states: Any, hidden_n: Any) -> None:
    """Advance row i of the tile to the step at `at`; keeps r, z, n and n's hidden part if wanted."""
    D = states.shape[1]
    for j in range(D):
        to_n = gates_h[i, 2 * D + j]
        r = sigmoid(gates[at, j] + gates_h[i, j])
        z = sigmoid(gates[at, D + j] + gates_h[i, D + j])
        n = tanh(gates[at, 2 * D + j] + r * to_n)
        state = n + z * (h[i, j] - n)
        h[i, j] = state
        states[at, j] = state
        if hidden_n.shape[0] > 0:
            gates[at, j] = r
            gates[at, D + j] = z
            gates[at, 2 * D + j] = n
            hidden_n[at, j] = to_n


@kernel
def gru_forward(
    first: Any, step: Any, order: Any, starts: Any, lengths: Any, gates: Any, weight: Any, bias: Any,
    states: Any, hidden_n: Any, h: Any, gates_h: Any,
) -> None:  # fmt: skip
    """Tiles first, first + step, ... of the rows in `order`, by descending length.

    order (B,), starts (B + 1,), lengths (B,) int64: row b is at starts[b] .. starts[b + 1] - 1, of which the first
    lengths[b] are real; gates (T, 3D), the input's part of the preactivations; weight (D', 3D), transposed, D' being D
    rounded up to a multiple of 4, zero there; bias (3D,). Writes states (T, D) and, for the backward pass, r, z, n over
    gates and n's hidden part to hidden_n (T, D), unless that is empty.
    Scratch: h (TILE, D'), zero in the columns beyond D; gates_h (TILE, 3D).
    """
    B, D = len(order), states.shape[1]
    zero = weight.dtype.type(0)
    for tile in range(first, (B + TILE - 1) // TILE, step):
        start = tile * TILE
        rows = min(TILE, B - start)
        for i in range(TILE):
            for j in range(D):
                h[i, j] = zero
        for t in range(lengths[order[start]]):
            for i in range(TILE):
                for j in range(3 * D):
                    gates_h[i, j] = bias[j]
            if t > 0:
                add_product(h, weight, gates_h)
            for i in range(rows):
                b = order[start + i]
                if t < lengths[b]:
                    advance(starts[b] + t, i, gates, gates_h, h, states, hidden_n)
        for i in range(rows):
            b = order[start + i]
            for at in range(starts[b] + lengths[b], starts[b + 1]):
                for j in range(D):
                    states[at, j] = zero


@inlined
def retreat(
    at: Any, t: Any, i: Any, part: Any, position: Any, states: Any, gates: Any, hidden_n: Any, grad_states: Any,
    grad_x: Any, grad_h: Any, previous: Any, grad_bias: Any, carry: Any, slopes: Any,
) -> None:  # fmt: skip
    """Row i's gradients at step t: slopes, for the hidden preactivations; carry, h_t's gradient in, times z out."""
    D = states.shape[1]
    one = states.dtype.type(1)
    zero = states.dtype.type(0)
    for j in range(D):
        r, z, n = gates[at, j], gates[at, D + j], gates[at, 2 * D + j]
        before = states[at - 1, j] if t > 0 else zero
        grad = grad_states[at, j] + carry[i, j]
        grad_n = grad * (one - z) * (one - n * n)
        grad_z = grad * (before - n) * z * (one - z)
        grad_r = grad_n * hidden_n[at, j] * r * (one - r)
        carry[i, j] = grad * z
        grad_x[at, j] = grad_r
        grad_x[at, D + j] = grad_z
        grad_x[at, 2 * D + j] = grad_n
        slopes[i, j] = grad_r
        slopes[i, D + j] = grad_z
        slopes[i, 2 * D + j] = grad_n * r
    for j in range(3 * D):
        grad_bias[part, j] += slopes[i, j]
    if t > 0:
        for j in range(3 * D):
            grad_h[position, j] = slopes[i, j]
        for j in range(D):
            previous[position, j] = states[at - 1, j]


@kernel
def gru_backward(
    first: Any, step: Any,
    order: Any, starts: Any, lengths: Any, weight: Any,
    states: Any, gates: Any, hidden_n: Any, grad_states: Any, packed: Any,
    grad_x: Any, grad_h: Any, previous: Any, grad_bias: Any, carry: Any, slopes: Any,
) -> None:  # fmt: skip
    """As `gru_forward`, in which `first` is also the part; weight (3D', D), not transposed, rows beyond 3D zero.

    Writes grad_x (T, 3D), the gradient of the input's part, and adds to grad_bias (parts, 3D). For the weight's
    gradient it packs each row's steps but the first, from packed[b] on: grad_h (P, 3D), the gradient of the hidden
    preactivations, and previous (P, D), the states they come from.
    Scratch: carry (TILE, D); slopes (TILE, 3D'), zero in the columns beyond 3D.
    """
    B, D = len(order), states.shape[1]
    zero = weight.dtype.type(0)
    for tile in range(first, (B + TILE - 1) // TILE, step):
        start = tile * TILE
        rows = min(TILE, B - start)
        for i in range(TILE):
            for j in range(D):
                carry[i, j] = zero
            for j in range(3 * D):
                slopes[i, j] = zero
        for t in range(lengths[order[start]] - 1, -1, -1):
            for i in range(rows):
                b = order[start + i]
                if t < lengths[b]:
                    retreat(
                        starts[b] + t, t, i, first, packed[b] + t - 1, states, gates, hidden_n, grad_states,
                        grad_x, grad_h, previous, grad_bias, carry, slopes,
                    )  # fmt: skip
            if t > 0:
                add_product(slopes, weight, carry)
        for i in range(rows):
            b = order[start + i]
            for at in range(starts[b] + lengths[b], starts[b + 1]):
                for j in range(3 * D):
                    grad_x[at, j] = zero
