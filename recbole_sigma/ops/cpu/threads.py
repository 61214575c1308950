"""Runs the chunks of a kernel's work on threads of our own.

numba's own threading layers either die in a forked child (data-loader workers, Ray) or cost dearly in alternation with torch's matmul; kernels
release the GIL, so a plain thread pool does. What a chunk is depends on shapes alone, never on the threads: results repeat bit for bit.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numba
import torch

_pools: dict[int, ThreadPoolExecutor] = {}

if hasattr(os, "register_at_fork"):
    # threads do not survive a fork; the child makes its own when it needs them
    os.register_at_fork(after_in_child=_pools.clear)


def thread_count() -> int:
    """Threads that a kernel uses: torch's setting, limited by NUMBA_NUM_THREADS."""
    return max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def _pool(helpers: int) -> ThreadPoolExecutor:
    if helpers not in _pools:
        _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="recbole-sigma-ops")
    return _pools[helpers]


def run_chunks(chunks: int, start_worker: Callable[[], Callable[[int], None]]) -> None:
    """Call the function that `start_worker` returns once for every number below `chunks`.

    `start_worker` is called once in each thread and makes that thread's scratch memory. Returns when all is done; raises what a chunk raised.
    """
    pending = list(range(chunks - 1, -1, -1))

    def work() -> None:
        run = start_worker()
        while True:
            try:
                chunk = pending.pop()
            except IndexError:
                return
            run(chunk)

    helpers = min(thread_count(), chunks) - 1
    futures: list[Future[None]] = [_pool(helpers).submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        wait(futures)
    for future in futures:
        future.result()
