"""What the benchmarks share: command lines, timing in turn, peak memory, and measurements in separate processes.

The speed of a machine drifts. Whatever is compared is therefore measured in turn within one run: the drift affects
all alike, and their ratios hold.
"""

import argparse
import ctypes
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import timer  # waits for the GPU, if there is one, and reads the clock
from tqdm import tqdm

OUT_OF_MEMORY = "out of memory"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and the default of each option."""


def command_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=_HelpFormatter, allow_abbrev=False, **options
    )
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), help="CPU threads of torch")
    return parser


def count(text: str) -> int:
    """An option's value that is a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def counts(text: str) -> list[int]:
    """An option's value that is a list of whole numbers, `50,200`."""
    return [count(number) for number in text.split(",")]


def output_file(text: str) -> Path:
    """An option's value that is a file to write, in a directory that exists."""
    path = Path(text)
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path.parent} for {path.name}")
    return path


def in_turn(works: Mapping[Any, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[Any, list[float]]:
    """Call every work once per round, and return the seconds of each call.

    Before that each work is called `warm_up` times, which compiles its kernels.
    """
    for work in works.values():
        for _ in range(warm_up):
            work()
    seconds: dict[Any, list[float]] = {key: [] for key in works}
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for key, work in works.items():
            started = timer()
            work()
            seconds[key].append(timer() - started)
    return seconds


def measure_alone(command: list[str], limit: float | None = None, python: str = sys.executable) -> dict[str, Any]:
    """Run Python on `command`, at most `limit` seconds: the JSON that it prints last, or `{"failure": reason}`."""
    try:
        process = subprocess.run([python, *command], capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"> {limit:g} s"}
    if process.returncode == -9:  # Linux kills a process that takes too much memory
        return {"failure": OUT_OF_MEMORY}
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        return {"failure": f"failed: {reason}"}
    return json.loads(process.stdout.splitlines()[-1])


class PeakMemory:
    """The most memory that is taken from now on, beyond what is held now.

    On CUDA that is what torch allocates, on CPU the resident memory of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 1e6
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that was freed earlier would be used first, uncounted
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.before = peak_resident_mb()

    def taken_mb(self) -> float:
        """MB, 0 or more."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6 - self.before
        return max(peak_resident_mb() - self.before, 0.0)


def peak_resident_mb() -> float:
    """The most memory that this process has held. (On Linux, getrusage counts the parent's before exec as well.)"""
    if sys.platform == "linux":
        return read_kb("/proc/self/status", "VmHWM") * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def free_bytes() -> float:
    """Memory that can be had without swapping."""
    return read_kb("/proc/meminfo", "MemAvailable") * 1024 if sys.platform == "linux" else math.inf


def limit_memory(more_gb: float | None) -> None:
    """Let this process allocate that much more; 80 % of what is free without a number. Linux only."""
    if sys.platform == "linux":
        more = int(more_gb * 1e9 if more_gb else 0.8 * free_bytes())
        limit = read_kb("/proc/self/status", "VmSize") * 1024 + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def read_kb(file: str, entry: str) -> int:
    """The number in a line `entry: 123 kB` of a file in /proc."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))
