"""Cuts a kernel's work into parts and runs them on threads of our own.

numba's own threading layers either die in a forked child (data-loader workers, Ray) or cost dearly in alternation
with torch's matmul; kernels release the GIL, so a plain thread pool does. What a part is depends on shapes alone,
never on the threads: results repeat bit for bit.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import numba
import numpy as np
import torch

MOST_CHUNKS = 64
FEW_ROWS = 4  # with fewer rows than this the channels are divided too; each block reads B and C, and strides, anew
NARROWEST_BLOCK = 64  # channels

_pools: dict[int, ThreadPoolExecutor] = {}

if hasattr(os, "register_at_fork"):
    # threads do not survive a fork; the child makes its own when it needs them
    os.register_at_fork(after_in_child=_pools.clear)


def thread_count() -> int:
    """Threads that a kernel uses: torch's setting, limited by NUMBA_NUM_THREADS."""
    return max(1, min(torch.get_num_threads(), vars(numba.config)["NUMBA_NUM_THREADS"]))


def _pool(helpers: int) -> ThreadPoolExecutor:
    if helpers not in _pools:
        _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="recbole-sigma-ops")
    return _pools[helpers]


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Treats denormal numbers as zero in this thread.

    A gradient that fades over many steps passes through them, and each would cost a hundred times what another number
    does.
    """
    already = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


def run_parts(parts: int, start_worker: Callable[[], Callable[[int], None]]) -> None:
    """Call the function that `start_worker` returns once for every number below `parts`.

    `start_worker` is called once in each thread and makes that thread's scratch memory. Returns when all is done;
    raises what a part raised.
    """
    pending = list(range(parts - 1, -1, -1))

    def work() -> None:
        run = start_worker()
        with denormals_as_zero():
            while True:
                try:
                    part = pending.pop()
                except IndexError:
                    return
                run(part)

    helpers = min(thread_count(), parts) - 1
    futures: list[Future[None]] = [_pool(helpers).submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        wait(futures)
    for future in futures:
        future.result()


@dataclass(frozen=True)
class Division:
    """How (rows, channels) are cut: rows b with b % chunks == c, times blocks of `width` channels.

    Decided by the shape alone.
    """

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

    def run(self, start_worker: Callable[[], Callable[..., None]]) -> None:
        """For each part, call what `start_worker` returns with first row, row step, low and high channel, and block."""

        def start() -> Callable[[int], None]:
            run = start_worker()

            def run_part(part: int) -> None:
                block, chunk = divmod(part, self.chunks)
                low = block * self.width
                # unsigned, or numba must take them for indices from the end, and then nothing is vectorised
                channels = np.uint64(low), np.uint64(min(low + self.width, self.channels))
                run(chunk, self.chunks, *channels, block)

            return run_part

        run_parts(self.chunks * self.blocks, start)
