"""The forward kernel of the selective scan.

One pass over a row computes everything; the state `h` (N, E) stays in the L1 cache, the vector lanes run over channels.
Every SEGMENT steps the state is kept, so that the backward pass can repeat a segment from its start.
"""

from typing import Any

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import exp2, sigmoid, softplus

SEGMENT = 64
UNROLL = 4  # states per iteration of the inner loop; N must be a multiple of it


@inlined
def read_step(at: Any, low: Any, high: Any, u: Any, delta: Any, bias: Any, smooth: Any, dt: Any, dt_u: Any) -> None:
    """Step size dt = softplus(delta + bias), or delta + bias unless `smooth`, and its product with the input u."""
    if smooth:
        for e in range(low, high):
            dt[e] = softplus(delta[at, e] + bias[e])
            dt_u[e] = dt[e] * u[at, e]
    else:
        for e in range(low, high):
            dt[e] = delta[at, e] + bias[e]
            dt_u[e] = dt[e] * u[at, e]


@inlined
def advance(at: Any, low: Any, high: Any, B: Any, C: Any, rate: Any, dt: Any, dt_u: Any, h: Any, out: Any) -> None:
    """h <- exp(dt A) h + dt u B; out += C h"""
    for n in range(0, h.shape[0], UNROLL):
        B0, B1, B2, B3 = B[at, n], B[at, n + 1], B[at, n + 2], B[at, n + 3]
        C0, C1, C2, C3 = C[at, n], C[at, n + 1], C[at, n + 2], C[at, n + 3]
        for e in range(low, high):
            step, drive = dt[e], dt_u[e]
            h0 = exp2(step * rate[n, e]) * h[n, e] + drive * B0
            h1 = exp2(step * rate[n + 1, e]) * h[n + 1, e] + drive * B1
            h2 = exp2(step * rate[n + 2, e]) * h[n + 2, e] + drive * B2
            h3 = exp2(step * rate[n + 3, e]) * h[n + 3, e] + drive * B3
            h[n, e] = h0
            h[n + 1, e] = h1
            h[n + 2, e] = h2
            h[n + 3, e] = h3
            out[e] += (h0 * C0 + h1 * C1) + (h2 * C2 + h3 * C3)


@inlined
def keep_state(segment: Any, low: Any, high: Any, h: Any, checkpoints: Any) -> None:
    for n in range(h.shape[0]):
        for e in range(low, high):
            checkpoints[segment, n, e] = h[n, e]


@kernel
def scan_forward(
    first: Any, step: Any, low: Any, high: Any,
    u: Any, delta: Any, rate: Any, B: Any, C: Any, skip: Any, z: Any, bias: Any,
    starts: Any, lengths: Any, segments: Any, smooth: Any, gated: Any,
    y: Any, checkpoints: Any,
    h: Any, dt: Any, dt_u: Any, out: Any,
) -> None:  # fmt: skip
    """Rows first, first + step, ... and channels low .. high - 1.

    u, delta, y (T, E); z (T, E), or anything unless `gated`; rate = A log2(e), transposed (N, E); B, C (T, N); skip,
    bias (E,). Row b is at starts[b] .. starts[b + 1] - 1, of which the first lengths[b] are real: starts (B + 1,),
    lengths (B,) int64. Its states after each SEGMENT steps go to checkpoints (segments, N, E) from segments[b] on
    (int64), or nowhere if that is empty.
    Scratch: h (N, E); dt, dt_u, out (E,).
    """
    zero = u.dtype.type(0)
    for b in range(first, len(lengths), step):
        for n in range(h.shape[0]):
            for e in range(low, high):
                h[n, e] = zero
        for pos in range(lengths[b]):
            at = starts[b] + pos
            if pos > 0 and pos % SEGMENT == 0 and checkpoints.shape[0] > 0:
                keep_state(segments[b] + pos // SEGMENT - 1, low, high, h, checkpoints)
            read_step(at, low, high, u, delta, bias, smooth, dt, dt_u)
            for e in range(low, high):
                out[e] = skip[e] * u[at, e]
            advance(at, low, high, B, C, rate, dt, dt_u, h, out)
            if gated:
                for e in range(low, high):
                    y[at, e] = out[e] * z[at, e] * sigmoid(z[at, e])
            else:
                for e in range(low, high):
                    y[at, e] = out[e]
        for at in range(starts[b] + lengths[b], starts[b + 1]):
            for e in range(low, high):
                y[at, e] = zero
