"""How the C library's allocator serves a training process."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names from glibc's malloc.h
LARGEST_KEPT = 2**28  # bytes of a block; a larger one would leave too large a gap behind
KEPT_SHARE = 0.25  # of the machine's memory: a process that holds more returns freed pages after each step

_libc: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def keep_freed_memory() -> bool:
    """Let the allocator keep freed memory for the next step's tensors; True where that is possible (glibc).

    By default glibc returns each large block at once, so that every step pays a page fault for each page of its scores:
    RecBole's SASRec on amazon-beauty then takes 2.7 times as long. Changes the whole process, whose resident memory
    stays near its peak.
    """
    if not hasattr(_libc, "mallopt") or not hasattr(_libc, "malloc_trim"):
        return False
    return bool(_libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and _libc.mallopt(M_TRIM_THRESHOLD, -1))


def return_excess_memory() -> None:
    """Return freed pages to the system if the process holds more than KEPT_SHARE of the machine's memory.

    Blocks of many sizes leave gaps between them: if they were kept for ever, those of FEARec would fill the machine.
    """
    if not hasattr(_libc, "malloc_trim"):
        return
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    if resident > KEPT_SHARE * os.sysconf("SC_PHYS_PAGES"):
        _libc.malloc_trim(0)
