"""The backward kernel of the selective scan.

From a row's end, in segments of SEGMENT steps, one channel at a time, in the L1 cache: states are computed again, then
unwound. Vector lanes run over the N states, so that gradients of B and C accumulate in place; those of A, D and bias
are summed per segment (less rounding), then per chunk of rows (threads share no memory).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import exp2, sigmoid, softplus
from recbole_sigma.ops.cpu.scan_forward import SEGMENT

LANES = 8  # N is padded to a multiple of this


@inlined
def read_segment(
    start: Any, steps: Any, low: Any, high: Any,
    u: Any, delta: Any, skip: Any, z: Any, bias: Any, smooth: Any, gated: Any, grad_y: Any,
    dt: Any, dt_u: Any, out: Any, grad_out: Any,
) -> None:  # fmt: skip
    """Inputs of the states (dt, dt u), the skip's contribution to the ungated output, and that output's gradient."""
    for t in range(steps):
        pos = start + t
        for e in range(low, high):
            raw = delta[pos, e] + bias[e]
            dt[t, e] = softplus(raw) if smooth else raw
            dt_u[t, e] = dt[t, e] * u[pos, e]
            out[t, e] = skip[e] * u[pos, e]
        if gated:
            for e in range(low, high):
                grad_out[t, e] = grad_y[pos, e] * z[pos, e] * sigmoid(z[pos, e])
        else:
            for e in range(low, high):
                grad_out[t, e] = grad_y[pos, e]


@inlined
def repeat_states(
    start: Any, steps: Any, e: Any, N: Any, B: Any, C: Any, rate: Any,
    dt: Any, dt_u: Any, h: Any, states: Any, decays: Any, out: Any,
) -> None:  # fmt: skip
    """Recompute channel e's states of the segment: states[t + 1] = decays[t] states[t] + dt u B, from states[0]."""
    for t in range(steps):
        step, drive, total = dt[t, e], dt_u[t, e], out[t, e]
        for n in range(N):
            decay = exp2(step * rate[e, n])
            state = decay * h[n] + drive * B[start + t, n]
            h[n] = state
            decays[t, n] = decay
            states[t + 1, n] = state
            total += state * C[start + t, n]
        out[t, e] = total


@inlined
def unwind_states(
    start: Any, steps: Any, e: Any, N: Any, block: Any,
    A: Any, B: Any, C: Any, dt: Any, dt_u: Any, grad_out: Any, states: Any, decays: Any, carry: Any,
    grad_B: Any, grad_C: Any, to_A: Any, grad_drive: Any, grad_step: Any,
) -> None:  # fmt: skip
    """Channel e's gradients from the segment's last step to its first; carry (N,) is the gradient of the state."""
    zero = A.dtype.type(0)
    for t in range(steps - 1, -1, -1):
        pos = start + t
        step, drive, incoming = dt[t, e], dt_u[t, e], grad_out[t, e]
        to_drive, to_step = zero, zero
        for n in range(N):
            grad_state = carry[n] + incoming * C[pos, n]
            grad_C[block, pos, n] += incoming * states[t + 1, n]
            grad_B[block, pos, n] += drive * grad_state
            to_drive += grad_state * B[pos, n]
            grad_state *= decays[t, n]
            carry[n] = grad_state
            grad_exponent = grad_state * states[t, n]
            to_step += grad_exponent * A[e, n]
            to_A[n] += grad_exponent * step
        grad_drive[t, e] = to_drive
        grad_step[t, e] = to_step


@inlined
def write_segment(
    start: Any, steps: Any, low: Any, high: Any, chunk: Any,
    u: Any, delta: Any, skip: Any, z: Any, bias: Any, smooth: Any, gated: Any, grad_y: Any,
    dt: Any, out: Any, grad_out: Any, grad_drive: Any, grad_step: Any,
    grad_u: Any, grad_delta: Any, grad_z: Any, to_skip: Any, to_bias: Any, grad_skip: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """The gradients of the inputs from those of dt u, dt and the ungated output."""
    zero, one = u.dtype.type(0), u.dtype.type(1)
    for e in range(low, high):
        to_skip[e] = zero
        to_bias[e] = zero
    for t in range(steps):
        pos = start + t
        for e in range(low, high):
            grad_u[pos, e] = grad_drive[t, e] * dt[t, e] + grad_out[t, e] * skip[e]
            to_delta = grad_drive[t, e] * u[pos, e] + grad_step[t, e]
            slope = sigmoid(delta[pos, e] + bias[e]) if smooth else one
            grad_delta[pos, e] = to_delta * slope
            to_bias[e] += to_delta * slope
            to_skip[e] += grad_out[t, e] * u[pos, e]
        if gated:
            for e in range(low, high):
                gate = sigmoid(z[pos, e])
                grad_z[pos, e] = grad_y[pos, e] * out[t, e] * gate * (one + z[pos, e] * (one - gate))
    for e in range(low, high):
        grad_skip[chunk, e] += to_skip[e]
        grad_bias[chunk, e] += to_bias[e]


@inlined
def clear_row(
    row: Any, stop: Any, next_row: Any, block: Any, low: Any, high: Any, gated: Any,
    grad_u: Any, grad_delta: Any, grad_z: Any, grad_B: Any, grad_C: Any,
) -> None:  # fmt: skip
    """Set the sums, and everything beyond the row's last item, to zero."""
    zero = grad_u.dtype.type(0)
    for pos in range(row, next_row):
        for n in range(grad_B.shape[2]):
            grad_B[block, pos, n] = zero
            grad_C[block, pos, n] = zero
    for pos in range(stop, next_row):
        for e in range(low, high):
            grad_u[pos, e] = zero
            grad_delta[pos, e] = zero
        if gated:
            for e in range(low, high):
                grad_z[pos, e] = zero


@cache
def backward_kernel(N: int) -> Callable[..., None]:
    """For N states, a multiple of LANES: a constant, so that loops are unrolled, which saves a quarter of the time."""

    @kernel
    def scan_backward(
        first: Any, step: Any, low: Any, high: Any, block: Any,
        u: Any, delta: Any, A: Any, rate: Any, B: Any, C: Any, skip: Any, z: Any, bias: Any,
        starts: Any, lengths: Any, segments: Any, smooth: Any, gated: Any, checkpoints: Any, grad_y: Any,
        grad_u: Any, grad_delta: Any, grad_z: Any, grad_B: Any, grad_C: Any,
        grad_A: Any, grad_skip: Any, grad_bias: Any,
        h: Any, states: Any, decays: Any, to_A: Any, carry: Any, carries: Any,
        to_skip: Any, to_bias: Any, dt: Any, dt_u: Any, out: Any, grad_out: Any, grad_drive: Any, grad_step: Any,
    ) -> None:  # fmt: skip
        """Rows first, first + step, ... (`first` is their chunk) and channels low .. high - 1 (their block is `block`).

        Inputs as in `scan_forward`, but A and rate = A log2(e) as (E, N). Gradients of u, delta, z (T, E); of B, C
        (blocks, T, N); of A (chunks, E, N); of skip, bias (chunks, E), these last three zero on entry. Scratch, T
        = SEGMENT: h, to_A, carry (N,); states (T + 1, N); decays (T, N); carries (E, N); to_skip, to_bias (E,); the
        others (T, E).
        """
        zero = u.dtype.type(0)
        for b in range(first, len(lengths), step):
            row = starts[b]
            clear_row(
                row,
                row + lengths[b],
                starts[b + 1],
                block,
                low,
                high,
                gated,
                grad_u,
                grad_delta,
                grad_z,
                grad_B,
                grad_C,
            )
            for e in range(low, high):
                for n in range(N):
                    carries[e, n] = zero
            for segment in range((lengths[b] + SEGMENT - 1) // SEGMENT - 1, -1, -1):
                start = row + segment * SEGMENT
                steps = min(SEGMENT, row + lengths[b] - start)
                read_segment(
                    start, steps, low, high, u, delta, skip, z, bias, smooth, gated, grad_y, dt, dt_u, out, grad_out
                )
                for e in range(low, high):
                    for n in range(N):
                        h[n] = checkpoints[segments[b] + segment - 1, n, e] if segment > 0 else zero
                        states[0, n] = h[n]
                        carry[n] = carries[e, n]
                        to_A[n] = zero
                    repeat_states(start, steps, e, N, B, C, rate, dt, dt_u, h, states, decays, out)
                    unwind_states(
                        start, steps, e, N, block, A, B, C, dt, dt_u, grad_out, states, decays, carry,
                        grad_B, grad_C, to_A, grad_drive, grad_step,
                    )  # fmt: skip
                    for n in range(N):
                        carries[e, n] = carry[n]
                        grad_A[first, e, n] += to_A[n]
                write_segment(
                    start, steps, low, high, first, u, delta, skip, z, bias, smooth, gated, grad_y,
                    dt, out, grad_out, grad_drive, grad_step,
                    grad_u, grad_delta, grad_z, to_skip, to_bias, grad_skip, grad_bias,
                )  # fmt: skip

    return scan_backward
