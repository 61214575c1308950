"""Divides a kernel's work into parts and runs them on threads of our own.

numba's threading layers die in a forked child (data-loader workers, Ray) or are slow in turns with torch's matrix
products. Parts depend on shapes only, never on the number of threads: results are bit-identical in every run.
"""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch

MOST_CHUNKS = 64
FEW_ROWS = 4  # with fewer rows than this the channels are divided too; each block reads B and C again
NARROWEST_BLOCK = 64  # channels

_pools: dict[int, ThreadPoolExecutor] = {}

if hasattr(os, "register_at_fork"):
    # threads do not survive a fork; the child creates its own when it needs them
    os.register_at_fork(after_in_child=_pools.clear)


def thread_count() -> int:
    """Threads that a kernel uses: torch's setting, limited by NUMBA_NUM_THREADS."""
    return max(1, min(torch.get_num_threads(), vars(numba.config)["NUMBA_NUM_THREADS"]))


def run_parts(
    parts: int, kernel: Callable[..., None], bounds: Callable[[int], Sequence[Any]], arguments: Sequence[Any] = (),
    dtype: Any = np.float32, *scratch: int | tuple[int, ...],
) -> None:  # fmt: skip
    """Call `kernel(*bounds(part), *arguments, *scratch)` for every number below `parts`; raises what a part raised.

    `scratch`: shapes of arrays of `dtype`, zero at first, which each thread allocates for itself.
    """
    pending = list(range(parts - 1, -1, -1))

    def work() -> None:
        memory = [np.zeros(shape, dtype) for shape in scratch]
        # Denormal numbers count as zero in this thread while it works: a gradient that fades over many steps passes
        # through them, and each would cost about a hundred times as much as another number.
        flushed_before = sys.float_info.min / 2 == 0.0
        torch.set_flush_denormal(True)
        try:
            while True:
                try:
                    part = pending.pop()
                except IndexError:
                    return
                kernel(*bounds(part), *arguments, *memory)
        finally:
            torch.set_flush_denormal(flushed_before)

    helpers = min(thread_count(), parts) - 1
    if helpers > 0 and helpers not in _pools:
        _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="recbole-sigma-ops")
    futures: list[Future[None]] = [_pools[helpers].submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        wait(futures)
    for future in futures:
        future.result()


@dataclass(frozen=True)
class Division:
    """How (rows, channels) are divided: rows b with b % chunks == c, times blocks of `width` channels."""

    chunks: int
    blocks: int
    width: int
    channels: int

    @classmethod
    def of(cls, rows: int, channels: int, most_parts: int) -> "Division":
        """`most_parts`: the work divided by the least that is worth a part of its own."""
        wanted = min(max(most_parts, 1), MOST_CHUNKS)
        chunks = max(min(rows, wanted), 1)
        blocks = max(min(wanted, FEW_ROWS) // chunks, 1)
        width = -(-channels // blocks)
        width = max(-(-width // NARROWEST_BLOCK), 1) * NARROWEST_BLOCK
        return cls(chunks, max(-(-channels // width), 1), width, channels)

    @property
    def parts(self) -> int:
        """Number of parts; part p has chunk p % chunks and block p // chunks."""
        return self.chunks * self.blocks

    def bounds(self, part: int) -> tuple[int, int, np.uint64, np.uint64]:
        """First row, row step, low and high channel of a part."""
        block, chunk = divmod(part, self.chunks)
        low = block * self.width
        # unsigned, or numba must allow for negative indices, and then nothing is vectorised
        return chunk, self.chunks, np.uint64(low), np.uint64(min(low + self.width, self.channels))
