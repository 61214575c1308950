"""Kernels of the prefix scan: one channel of a row at a time, vector lanes over the N states."""

from collections.abc import Callable
from functools import cache
from typing import Any

from recbole_sigma.ops.cpu.compiler import inlined, kernel
from recbole_sigma.ops.cpu.elementary import exp2

LANES = 8  # N is padded to a multiple of this


@inlined
def sum_row(
    e: Any, N: Any, start: Any, count: Any, step: Any, drive: Any, rate: Any, B: Any, inner: Any,
    sums: Any, decays: Any, total: Any,
) -> None:  # fmt: skip
    """Running sums of a row: total[c] of the steps, decays[c] = a_1 ... a_c and sums[c] = s_c, for c to `count`."""
    total[0] = 0
    for n in range(N):
        decays[0, n] = 1
        sums[0, n] = 0
    for c in range(count):
        v = inner[start + c]
        total[c + 1] = total[c] + step[e, v]
        for n in range(N):
            sums[c + 1, n] = sums[c, n] + decays[c, n] * drive[e, v] * B[v, n]
            decays[c + 1, n] = exp2(total[c + 1] * rate[e, n])


@inlined
def take_step(
    e: Any, v: Any, i: Any, N: Any, step: Any, drive: Any, rate: Any, B: Any, states: Any, factors: Any
) -> None:
    """states[i + 1] = a_v states[i] + b_v with factors[i] = a_v; without a step, v = -1, the state stays."""
    for n in range(N):
        factors[i, n] = exp2(step[e, v] * rate[e, n]) if v >= 0 else 1
        states[i + 1, n] = factors[i, n] * states[i, n]
        if v >= 0:
            states[i + 1, n] += drive[e, v] * B[v, n]


@inlined
def take_steps(
    e: Any, q: Any, c: Any, N: Any, step: Any, drive: Any, rate: Any, B: Any, first: Any, last: Any,
    sums: Any, decays: Any, states: Any, factors: Any,
) -> None:  # fmt: skip
    """All states of query q, from zero on; the running sum of c inputs counts as one step."""
    F, R = first.shape[1], last.shape[1]
    for n in range(N):
        states[0, n] = 0
    for i in range(F):
        take_step(e, first[q, i], i, N, step, drive, rate, B, states, factors)
    for n in range(N):
        factors[F, n] = decays[c, n]
        states[F + 1, n] = decays[c, n] * states[F, n] + sums[c, n]
    for i in range(R):
        take_step(e, last[q, i], F + 1 + i, N, step, drive, rate, B, states, factors)


@cache
def forward_kernel(N: int) -> Callable[..., None]:
    """For N states, a multiple of LANES: a constant, so that loops are unrolled."""

    @kernel
    def prefix_scan_forward(
        part: Any, parts: Any, step: Any, drive: Any, rate: Any, B: Any, C: Any,
        inner: Any, offsets: Any, counts: Any, query_offsets: Any, first: Any, last: Any,
        y: Any, sums: Any, decays: Any, total: Any, states: Any, factors: Any,
    ) -> None:  # fmt: skip
        """Rows part, part + parts, ...

        step, drive (E, V); rate = A log2(e) (E, N); B (V, N); C (Q, N); the rest as in `prefix_scan`, int64.
        Writes y (E, Q). Scratch: sums, decays (L + 1, N) and total (L + 1,), L the longest row; states (S + 1, N) and
        factors (S, N), S = F + R + 1.
        """
        S = factors.shape[0]
        for b in range(part, len(offsets) - 1, parts):
            begin, end = query_offsets[b], query_offsets[b + 1]
            if begin == end:
                continue
            for e in range(y.shape[0]):
                sum_row(e, N, offsets[b], counts[end - 1], step, drive, rate, B, inner, sums, decays, total)
                for q in range(begin, end):
                    take_steps(
                        e, q, counts[q], N, step, drive, rate, B, first, last, sums, decays, states, factors
                    )  # fmt: skip
                    out = y.dtype.type(0)
                    for n in range(N):
                        out += C[q, n] * states[S, n]
                    y[e, q] = out

    return prefix_scan_forward


@inlined
def undo_step(
    e: Any, v: Any, i: Any, N: Any, step: Any, drive: Any, A: Any, B: Any, states: Any, factors: Any, carry: Any,
    to_A: Any, grad_step: Any, grad_drive: Any, grad_B: Any,
) -> None:  # fmt: skip
    """Gradients of a query's step i, of input v; carry (N,) is the gradient of states[i + 1], then of states[i]."""
    to_drive, to_step = carry.dtype.type(0), carry.dtype.type(0)
    for n in range(N):
        grad = carry[n]
        to_drive += grad * B[v, n]
        grad_B[v, n] += grad * drive[e, v]
        grad *= factors[i, n]
        carry[n] = grad
        grad *= states[i, n]
        to_step += grad * A[e, n]
        to_A[n] += grad * step[e, v]
    grad_drive[e, v] += to_drive
    grad_step[e, v] += to_step


@inlined
def undo_sum(
    e: Any, v: Any, c: Any, N: Any, drive: Any, A: Any, B: Any, decays: Any, total: Any, to_sum: Any,
    to_A: Any, to_total: Any, grad_drive: Any, grad_B: Any,
) -> None:  # fmt: skip
    """Gradients of sums[c] = sums[c - 1] + decays[c - 1] b_v; to_sum (N,) is that of sums[c], and of sums[c - 1]."""
    to_drive, to_exponent = to_sum.dtype.type(0), to_sum.dtype.type(0)
    for n in range(N):
        grad = to_sum[n] * decays[c - 1, n]
        to_drive += grad * B[v, n]
        grad *= drive[e, v]
        grad_B[v, n] += grad
        grad *= B[v, n]
        to_exponent += grad * A[e, n]
        to_A[n] += grad * total[c - 1]
    grad_drive[e, v] += to_drive
    to_total[c - 1] += to_exponent


@cache
def backward_kernel(N: int) -> Callable[..., None]:
    """For N states, as `forward_kernel`."""

    @kernel
    def prefix_scan_backward(
        part: Any, parts: Any, step: Any, drive: Any, A: Any, rate: Any, B: Any, C: Any,
        inner: Any, offsets: Any, counts: Any, query_offsets: Any, first: Any, last: Any,
        grad_y: Any, grad_step: Any, grad_drive: Any, grad_B: Any, grad_C: Any, grad_A: Any,
        sums: Any, decays: Any, total: Any, to_total: Any, states: Any, factors: Any,
        carry: Any, to_sum: Any, to_A: Any,
    ) -> None:  # fmt: skip
        """As `prefix_scan_forward`; adds to the gradients, zero on entry, that of A being (parts, E, N).

        Scratch besides: to_total (L + 1,), the gradients of `total`; carry, to_sum and to_A (N,), the gradients of a
        query's state, of the running sum and of A.
        """
        zero = grad_y.dtype.type(0)
        F, R = first.shape[1], last.shape[1]
        for b in range(part, len(offsets) - 1, parts):
            begin, end = query_offsets[b], query_offsets[b + 1]
            if begin == end:
                continue
            start, most = offsets[b], counts[end - 1]
            for e in range(grad_y.shape[0]):
                sum_row(e, N, start, most, step, drive, rate, B, inner, sums, decays, total)
                for c in range(most + 1):
                    to_total[c] = zero
                for n in range(N):
                    to_sum[n] = zero
                    to_A[n] = zero
                c = most
                for q in range(end - 1, begin - 1, -1):
                    while c > counts[q]:
                        undo_sum(
                            e, inner[start + c - 1], c, N, drive, A, B, decays, total, to_sum, to_A, to_total,
                            grad_drive, grad_B,
                        )  # fmt: skip
                        c -= 1
                    take_steps(e, q, c, N, step, drive, rate, B, first, last, sums, decays, states, factors)
                    for n in range(N):
                        grad_C[q, n] += grad_y[e, q] * states[F + R + 1, n]
                        carry[n] = grad_y[e, q] * C[q, n]
                    for i in range(R - 1, -1, -1):
                        v = last[q, i]
                        if v >= 0:
                            undo_step(
                                e, v, F + 1 + i, N, step, drive, A, B, states, factors, carry, to_A,
                                grad_step, grad_drive, grad_B,
                            )  # fmt: skip
                    for n in range(N):
                        to_sum[n] += carry[n]
                        carry[n] *= decays[c, n]
                        to_decay = carry[n] * states[F, n]
                        to_total[c] += to_decay * A[e, n]
                        to_A[n] += to_decay * total[c]
                    for i in range(F - 1, -1, -1):
                        v = first[q, i]
                        if v >= 0:
                            undo_step(
                                e, v, i, N, step, drive, A, B, states, factors, carry, to_A,
                                grad_step, grad_drive, grad_B,
                            )  # fmt: skip
                while c > 0:
                    undo_sum(
                        e, inner[start + c - 1], c, N, drive, A, B, decays, total, to_sum, to_A, to_total,
                        grad_drive, grad_B,
                    )  # fmt: skip
                    c -= 1
                to_step = zero
                for i in range(most, 0, -1):
                    to_step += to_total[i]
                    grad_step[e, inner[start + i - 1]] += to_step
                for n in range(N):
                    grad_A[part, e, n] += to_A[n]

    return prefix_scan_backward
