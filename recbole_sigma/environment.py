"""Versions and devices, as result.json and `recbole-sigma env` name them.

`torch.utils.collect_env` is not used: it starts lscpu, gcc and pip, and takes a second for what is read here.
"""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from recbole_sigma.errors import one_line

# The packages that determine the numbers of a run.
PACKAGES = ("recbole-sigma", "recbole", "torch", "numpy", "pandas", "numba", "mamba-ssm", "causal-conv1d")


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    installed = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, or `cpu, AMD EPYC (x86_64), 2 cores`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {cpu_name()}, {os.cpu_count()} cores"


def cpu_name() -> str:
    """The CPU as Linux names it; elsewhere the architecture."""
    name = None
    with suppress(OSError):
        name = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return f"{name[1].strip()} ({platform.machine()})" if name else platform.machine()


def no_gpu() -> str | None:
    """Why torch sees no GPU, in one line; None if it sees one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return one_line(error) + ("" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})")
    return "torch.cuda.is_available() is False"
