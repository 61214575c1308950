"""Times the selective scan on CPU against what there is otherwise, in one run.

    python benchmarks/scan.py                              # every shape; the largest needs 10 GB and some minutes
    python benchmarks/scan.py --shapes 256,50,128,32 --threads 2

Rivals: a torch loop that materialises the states of every step, the same loop computed again in the backward pass,
and mambapy's parallel scan. What does not fit into memory is left out and said so. Ratios hold better than times.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numba
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recbole_sigma.ops import selective_scan

SHAPES = ["2048,50,128,32", "256,50,128,32", "256,200,128,32", "32,2000,128,32", "256,50,128,16"]
GIB = 2**30
FLOAT = 4  # bytes
STEPS_PER_CHECKPOINT = 10
MEAN_LENGTH, CHUNKS = 9, 8
Arguments = dict[str, Any]


def arguments(rows: int, length: int, channels: int, states: int) -> Arguments:
    """Inputs as a freshly initialised Mamba block makes them."""
    torch.manual_seed(0)
    wide = (rows, length, channels)
    return {
        "u": torch.randn(wide),
        "delta": torch.randn(wide) - 4,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": torch.randn(rows, length, states),
        "C": torch.randn(rows, length, states),
        "D": torch.ones(channels),
        "z": torch.randn(wide),
        "delta_bias": torch.zeros(channels),
    }


def run_materialised(given: Arguments) -> Tensor:
    """All decays, inputs and states (B, L, E, N) in memory, as in the plain implementations in circulation."""
    dt = F.softplus(given["delta"] + given["delta_bias"])
    decays = torch.exp(dt[..., None] * given["A"])
    drives = (dt * given["u"])[..., None] * given["B"][:, :, None]
    h = torch.zeros_like(decays[:, 0])
    states = []
    for decay, drive in zip(decays.unbind(1), drives.unbind(1), strict=True):
        h = decay * h + drive
        states.append(h)
    return finish(torch.stack(states, 1), given)


def finish(states: Tensor, given: Arguments) -> Tensor:
    """(B, L, E, N) -> (B, L, E): contraction with C, skip and gate"""
    y = (states @ given["C"][..., None]).squeeze(-1)
    return (y + given["D"] * given["u"]) * F.silu(given["z"])


def run_recomputed(given: Arguments) -> Tensor:
    """The loop in pieces of a few steps, each computed again in the backward pass."""
    dt = F.softplus(given["delta"] + given["delta_bias"])
    A = given["A"]

    def piece(h: Tensor, dt: Tensor, drive: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for t in range(dt.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A) * h + drive[:, t, :, None] * B[:, t, None]
            outputs.append((h @ C[:, t, :, None]).squeeze(-1))
        return h, torch.stack(outputs, 1)

    h = dt.new_zeros(dt.shape[0], *A.shape)
    pieces = []
    series = (dt, dt * given["u"], given["B"], given["C"])
    for part in zip(*(x.split(STEPS_PER_CHECKPOINT, 1) for x in series), strict=True):
        h, y = checkpoint(piece, h, *part, use_reentrant=False)
        pieces.append(y)
    return (torch.cat(pieces, 1) + given["D"] * given["u"]) * F.silu(given["z"])


def run_mambapy(given: Arguments) -> Tensor:
    """mambapy's parallel scan."""
    from mambapy.pscan import pscan

    dt = F.softplus(given["delta"] + given["delta_bias"])
    decays = torch.exp(dt[..., None] * given["A"])
    drives = (dt * given["u"])[..., None] * given["B"][:, :, None]
    return finish(pscan(decays, drives), given)


@dataclass
class Method:
    name: str
    run: Callable[[Arguments], Tensor]
    tensors: float  # of size (B, L, E, N) that forward and backward hold at their peak, measured


METHODS = [
    Method("recbole-sigma (numba)", lambda given: selective_scan(**given), 0.2),
    Method("torch loop, states materialised", run_materialised, 6.3),
    Method("torch loop, recomputed", run_recomputed, 2.1),
    Method("mambapy pscan", run_mambapy, 10.3),
]


def available_memory() -> float:
    """Bytes that can be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float("inf")


def obstacle(method: Method, shape: tuple[int, ...]) -> str | None:
    """Why `method` cannot run at `shape`, or None."""
    if method.run is run_mambapy and find_spec("mambapy") is None:
        return "mambapy is not installed"
    rows, length, channels, states = shape
    needed = method.tensors * rows * length * channels * states * FLOAT
    if needed > 0.9 * available_memory():
        return f"needs {needed / GIB:.0f} GiB of memory, {available_memory() / GIB:.0f} GiB are free"
    return None


def median_ms(action: Callable[[], Any], repeats: int, budget: float) -> float:
    """Median of up to `repeats` runs, fewer once `budget` seconds are spent."""
    times: list[float] = []
    while len(times) < repeats and (not times or sum(times) < budget):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def forward_and_both(run: Callable[[Arguments], Tensor], batches: list[Arguments], options: Any) -> tuple[float, float]:
    """Median milliseconds of forward alone, and of forward with backward, over all batches together."""
    weights = [torch.randn_like(given["u"]) for given in batches]

    def forward() -> None:
        with torch.no_grad():
            for given in batches:
                run(given)

    def both() -> None:
        for given, weight in zip(batches, weights, strict=True):
            leaves = {name: x.detach().requires_grad_() if x.is_floating_point() else x for name, x in given.items()}
            wanted = [x for x in leaves.values() if x.requires_grad]
            torch.autograd.grad(run(leaves), wanted, weight)

    return median_ms(forward, options.repeats, options.budget), median_ms(both, options.repeats, options.budget)


def compare(shape: tuple[int, ...], options: Any) -> Iterator[str]:
    """A table's lines: every method at one shape."""
    yield "\nB {} L {} E {} N {}\n".format(*shape)
    yield f"{'method':34}{'forward ms':>12}{'ratio':>8}{'both ms':>12}{'ratio':>8}"
    ours: tuple[float, float] | None = None
    for method in METHODS:
        reason = obstacle(method, shape)
        if reason:
            yield f"{method.name:34}  left out: {reason}"
            continue
        forward_and_both(method.run, [arguments(2, *shape[1:])], argparse.Namespace(repeats=1, budget=0))  # compiles
        times = forward_and_both(method.run, [arguments(*shape)], options)
        ours = ours or times
        cells = "".join(f"{mine:12.1f}{mine / base:8.1f}" for mine, base in zip(times, ours, strict=True))
        yield f"{method.name:34}{cells}"


def cut(given: Arguments, rows: Tensor, lengths: Tensor) -> Arguments:
    """Some rows, padded to the longest of them only."""
    longest = int(lengths[rows].max())
    per_row = {name: given[name][rows, :longest].contiguous() for name in ("u", "delta", "B", "C", "z")}
    return {**given, **per_row, "lengths": lengths[rows]}


def effect_of_lengths(options: Any) -> Iterator[str]:
    """What a batch costs when most of it is padding."""
    rows, length = 2048, 50
    given = arguments(rows, length, 128, 32)
    lengths = (1 + torch.empty(rows).exponential_(1 / (MEAN_LENGTH - 0.5))).long().clamp(max=length)
    batches = {
        "no lengths given": [given],
        "lengths given": [{**given, "lengths": lengths}],
        f"and cut into {CHUNKS} chunks by length": [
            cut(given, chunk, lengths) for chunk in lengths.argsort().chunk(CHUNKS)
        ],
    }
    yield f"\nB {rows} L {length} E 128 N 32, mean length {lengths.float().mean():.1f}\n"
    yield f"{'':34}{'forward ms':>12}{'gain':>8}{'both ms':>12}{'gain':>8}"
    full: tuple[float, float] | None = None
    for name, parts in batches.items():
        times = forward_and_both(METHODS[0].run, parts, options)
        full = full or times
        cells = "".join(f"{mine:12.1f}{base / mine:8.1f}" for mine, base in zip(times, full, strict=True))
        yield f"{name:34}{cells}"


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="B,L,E,N", help=f"default: {' '.join(SHAPES)}")
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--repeats", type=int, default=9, help="runs per cell, of which the median is shown (9)")
    parser.add_argument("--budget", type=float, default=10, help="seconds per cell after which no run is added (10)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores{load}; torch {torch.__version__}, ", end="")
    print(f"numba {numba.__version__}, float32; medians; ratio = times as long as recbole-sigma", flush=True)
    for shape in options.shapes:
        for line in compare(tuple(int(size) for size in shape.split(",")), options):
            print(line, flush=True)
    for line in effect_of_lengths(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
