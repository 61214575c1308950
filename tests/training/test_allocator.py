"""The allocator of a training process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from recbole_sigma.training.allocator import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.full((100, 1 << 18), 1.0)  # 100 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(step() for _ in range(10)))
"""


def faults(kept: bool) -> int:
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}  # huge pages hide the difference
    command = [sys.executable, "-c", FAULTS.format(kept=kept)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_large_tensors_of_later_steps_cost_few_page_faults():
    assert faults(kept=True) < faults(kept=False) / 2


EXCESS = """
from pathlib import Path
import torch
from recbole_sigma.training import allocator
allocator.keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
tensors = [torch.ones(1 << 18) for _ in range(200)]
small = [torch.ones(100) for _ in range(10)]
del tensors
print(resident())
allocator.return_excess_memory()
print(resident())
allocator.KEPT_SHARE = 0
allocator.return_excess_memory()
print(resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_is_returned_when_the_process_holds_too_much():
    done = subprocess.run([sys.executable, "-c", EXCESS], capture_output=True, text=True, check=True)
    held, kept, returned = map(int, done.stdout.split())
    assert kept > held - 20e6
    assert returned < held - 150e6
