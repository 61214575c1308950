"""The selective scan on CPU as a differentiable torch function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_sigma.ops.cpu.scan_backward import LANES, backward_kernel
from recbole_sigma.ops.cpu.scan_forward import SEGMENT, scan_forward
from recbole_sigma.ops.cpu.threads import run_chunks

LOG2_E = 1.4426950408889634
STATE_UPDATES = 2**20  # a chunk has at least so many (some 0.5 ms), or starting it would cost more than it saves
MOST_CHUNKS = 64
FEW_ROWS = 16  # with fewer rows than this the channels are divided too
NARROWEST_BLOCK = 32  # channels


@dataclass(frozen=True)
class Division:
    """How the work is cut: rows b with b % chunks == c, times blocks of `width` channels. Decided by the shape alone."""

    chunks: int
    blocks: int
    width: int
    channels: int

    @classmethod
    def of(cls, rows: int, length: int, channels: int, states: int) -> "Division":
        wanted = min(max(rows * length * channels * states // STATE_UPDATES, 1), MOST_CHUNKS)
        chunks = max(min(rows, wanted), 1)
        blocks = 1
        if rows < FEW_ROWS and wanted > chunks:
            blocks = max(min(wanted, FEW_ROWS) // chunks, 1)
        width = max(-(-channels // blocks), NARROWEST_BLOCK)
        width = -(-width // NARROWEST_BLOCK) * NARROWEST_BLOCK
        return cls(chunks, max(-(-channels // width), 1), width, channels)

    def run(self, start_worker: Callable[[], Callable[..., None]]) -> None:
        """Call what `start_worker` returns for each part with its first row, row step, first channel, end of channels, block."""

        def start() -> Callable[[int], None]:
            run = start_worker()

            def run_part(part: int) -> None:
                block, chunk = divmod(part, self.chunks)
                low = block * self.width
                # unsigned, or numba must take them for indices from the end, and then nothing is vectorised
                channels = np.uint64(low), np.uint64(min(low + self.width, self.channels))
                run(chunk, self.chunks, *channels, block)

            return run_part

        run_chunks(self.chunks * self.blocks, start)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().contiguous().numpy()


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, z: Tensor | None, bias: Tensor,
        lengths: np.ndarray[Any, Any], smooth: bool, keep: bool,
    ) -> Tensor:  # fmt: skip
        u, delta, A, B, C = u.contiguous(), delta.contiguous(), A.contiguous(), B.contiguous(), C.contiguous()
        z = None if z is None else z.contiguous()
        (rows, length, channels), states = u.shape, A.shape[1]
        division = Division.of(rows, length, channels, states)
        y = torch.empty_like(u)
        segments = max(length - 1, 0) // SEGMENT if keep else 0
        checkpoints = u.new_empty(rows, segments, states, channels)
        rate = np.ascontiguousarray(_array(A * LOG2_E).T)
        arguments = (
            *map(_array, (u, delta)), rate, *map(_array, (B, C, skip)), _array(u if z is None else z), _array(bias),
            lengths, smooth, z is not None, y.numpy(), checkpoints.numpy(),
        )  # fmt: skip

        def start_worker() -> Callable[..., None]:
            scratch = [np.empty(shape, rate.dtype) for shape in ((states, channels), channels, channels, channels)]
            return lambda first, step, low, high, _: scan_forward(first, step, low, high, *arguments, *scratch)

        division.run(start_worker)
        if keep:
            ctx.save_for_backward(u, delta, A, B, C, skip, z, bias, checkpoints)
            ctx.lengths, ctx.smooth, ctx.division = lengths, smooth, division
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, skip, z, bias, checkpoints = ctx.saved_tensors
        (rows, length, channels), states = u.shape, A.shape[1]
        division: Division = ctx.division
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(u)
        grad_z = u.new_empty(0, 0, 0) if z is None else torch.empty_like(u)
        grad_B, grad_C = (u.new_empty(division.blocks, rows, length, states) for _ in range(2))
        grad_A = u.new_zeros(division.chunks, channels, states)
        grad_skip, grad_bias = (u.new_zeros(division.chunks, channels) for _ in range(2))
        arguments = (
            *map(_array, (u, delta, A, A * LOG2_E, B, C, skip)), _array(u if z is None else z), _array(bias),
            ctx.lengths, ctx.smooth, z is not None, _array(checkpoints), _array(grad_y),
            *map(_array, (grad_u, grad_delta, grad_z, grad_B, grad_C, grad_A, grad_skip, grad_bias)),
        )  # fmt: skip
        run = backward_kernel(states)
        steps, dtype = min(SEGMENT, length), arguments[0].dtype
        shapes = [(states,), (steps + 1, states), (steps, states), (states,), (channels, states), *[(steps, channels)] * 6]

        def start_worker() -> Callable[..., None]:
            scratch = [np.empty(shape, dtype) for shape in shapes]
            return lambda *part: run(*part, *arguments, *scratch)

        division.run(start_worker)
        sums = [grad_A.sum(0), _over_blocks(grad_B), _over_blocks(grad_C), grad_skip.sum(0)]
        gradients = [grad_u, grad_delta, *sums, grad_z, grad_bias.sum(0), None, None, None]
        return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad, strict=True))


def _over_blocks(partial: Tensor) -> Tensor:
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def selective_scan_cpu(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
) -> Tensor:
    """`recbole_sigma.ops.selective_scan` for arguments that it has checked. Float64 stays; every other dtype is computed in float32."""
    rows, length, channels = u.shape
    given = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    skip, bias = (u.new_zeros(channels, dtype=dtype) if x is None else x.to(dtype) for x in (D, delta_bias))
    gate = None if z is None else z.to(dtype)
    steps, A, B, C = (x.to(dtype) for x in (delta, A, B, C))
    missing = -A.shape[1] % LANES
    if missing:  # states that nothing drives and nobody reads
        A, B, C = (F.pad(x, (0, missing)) for x in (A, B, C))
    ends = np.full(rows, length, np.int64) if lengths is None else lengths.cpu().long().numpy()
    y = _SelectiveScan.apply(u.to(dtype), steps, A, B, C, skip.contiguous(), gate, bias.contiguous(), ends, delta_softplus, keep)
    return y.to(u.dtype)
