"""The CPU kernels in other processes, with few threads, and without a cache on disk."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
from numba.core import caching

from recbole_sigma.ops import selective_scan
from recbole_sigma.ops.cpu import compiler, parallel
from tests.ops.operations import scan_arguments, threads

WORKERS = """
import multiprocessing, sys
import torch
from recbole_sigma.ops import causal_conv1d, selective_scan
from recbole_sigma.ops.cpu import conv, scan as cpu_scan

# many parts of little work: torch's own operations stay below the size at which they use
# threads, which a forked child has lost
cpu_scan.STATE_UPDATES = conv.MULTIPLICATIONS = 100

def scan(seed=0):
    torch.manual_seed(seed)
    u, z = torch.randn(2, 16, 9, 32)
    u.requires_grad_()
    B, C = torch.randn(2, 16, 9, 8)
    x = causal_conv1d(u, torch.ones(32, 4), torch.zeros(32))
    y = selective_scan(x, x, -torch.ones(32, 8), B, C, z=z)
    y.sum().backward()
    return y.sum().item(), u.grad.sum().item()

def work(queue):
    torch.set_num_threads(2)
    queue.put(scan())

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = scan()
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    context.Process(target=work, args=(queue,)).start()
    assert queue.get(timeout=90) == expected
    assert scan() == expected
"""


def run_python(*arguments, **environment):
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_started_after_the_parent_used_the_kernels_gets_the_same_result(method, tmp_path):
    if not hasattr(os, "fork") and method == "fork":
        pytest.skip("no fork here")
    (tmp_path / "workers.py").write_text(WORKERS)
    run_python(tmp_path / "workers.py", method)


def test_threads_follow_torch_and_numbas_limit(monkeypatch):
    with threads(3):
        for limit, used in ((8, 3), (1, 1)):
            monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", limit)
            assert parallel.thread_count() == used


def test_numba_limited_to_one_thread_gives_the_same_result(monkeypatch):
    tensors = scan_arguments(16, 60, 64, 32)
    expected = selective_scan(**tensors)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    assert torch.equal(selective_scan(**tensors), expected)


def test_an_error_in_a_part_reaches_the_caller():
    with threads(2), pytest.raises(ZeroDivisionError):
        parallel.run_parts(4, lambda part: 1 // 0, lambda part: (part,))


def double(x):
    for i in range(x.shape[0]):
        x[i] = 2 * x[i]


def no_cache(*_):
    raise RuntimeError("cannot cache function: no locator available")


def disk_error(*_):
    raise PermissionError("read-only file system")


@pytest.mark.parametrize(
    ("owner", "method", "fault"),
    [
        (caching.FunctionCache, "__init__", no_cache),
        (caching.IndexDataCacheFile, "load", disk_error),
        (caching.IndexDataCacheFile, "save", disk_error),
    ],
)
def test_a_kernel_works_where_its_cache_cannot_be_written(owner, method, fault, monkeypatch):
    monkeypatch.setattr(owner, method, fault)
    x = np.ones(3)
    compiler.kernel(double)(x)
    assert x.tolist() == [2, 2, 2]


def test_a_cache_directory_that_cannot_exist_only_costs_time(tmp_path):
    (tmp_path / "file").touch()
    code = """
import torch
from recbole_sigma.ops import causal_conv1d
assert causal_conv1d(torch.ones(1, 2, 3), torch.ones(3, 2), torch.zeros(3), None).tolist() == [[[1.0] * 3, [2.0] * 3]]
"""
    run_python("-c", code, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"))


def test_cached_code_of_other_sources_is_not_used(monkeypatch):
    cache = compiler._SafeCache(double)
    code = type("Code", (), {"magic_tuple": lambda self: ()})()
    before = cache._index_key((), code)
    monkeypatch.setattr(compiler, "_SOURCES", "changed")
    assert cache._index_key((), code) != before
