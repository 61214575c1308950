"""Seconds a training step and peak memory against the length of the histories, with equal tokens in a batch.

    python benchmarks/length.py --csv length.csv --plot length.png
    python benchmarks/length.py --device cuda --tokens 200000 --rounds 5
    python benchmarks/length.py --lengths 2000,5000 --models RecMamba,RecMamba:sequence,SASRec

A step is forward, backward and Adam, on random items, every row L items long, `tokens // L` rows (at least one).
The rival is RecBole's own SASRec with its defaults: two layers of two heads that hold their (B, heads, L, L)
attention; the others have theirs from properties/model/. All have D 64, cross-entropy over all items, dropout on.
A row of a batch has one target, its next item. `MODEL:sequence` is `train_mode: sequence`, where all L positions have
theirs: more work, and L times as many targets.

Every figure is from a process of its own. Its memory is the most that steps held beyond what the process held before
the first: activations, scores, gradients, Adam's state; not the model, Python and libraries. On CPU it is resident
memory, on CUDA what torch allocated. The allocator keeps freed memory as in our runs (memory.py), for the rival too.
Rounds go over all models at one length before the next, so that a change of the machine's load meets all alike;
savings are medians of the rounds' ratios. The first step of a process does not count.
"""

import argparse
import ctypes
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from length_report import MODELS, RIVAL, SEQUENCE, Cell, Cells, batch_size, draw, report, write_csv
from tqdm import tqdm

import recbole_sigma  # noqa: F401  before torch: it sets how torch allocates, for all models alike

CAUSAL = ("RecMamba", "Mamba4Rec")
DEFAULT_MODELS = (*MODELS, *(f"{name}{SEQUENCE}" for name in CAUSAL))
LENGTHS = (50, 200, 500, 1000, 2000, 5000, 10000)
OUT_OF_MEMORY = "out of memory"
SETTINGS = {"hidden_size": 64, "loss_type": "CE"}
WARM_UP_LENGTH = 16


def main() -> int:
    """Parse the command line; with `--one`, be the process that is measured."""
    args = parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)))
        return 0
    cells = race(args)
    print(report(cells, args))
    if args.csv:
        write_csv(cells, args)
    if args.plot:
        draw(cells, args)
    return int(any(cell.failure.startswith("failed") for cell in cells.values()))


def parse_args() -> argparse.Namespace:
    """The command line, refused before hours are spent on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS), help="(default: %(default)s)")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=20_000, help="items in a batch (default: %(default)s)")
    parser.add_argument("--items", type=int, default=12_102, help="V (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes a figure (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps timed in each, at most (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=120, help="seconds a process may take (default: %(default)s)")
    parser.add_argument("--memory", type=float, help="GB a process may add, CPU (default: 80%% of what is free)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("--plain_malloc", action="store_true", help="the allocator as the C library has it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "L"), help="measure this alone, here; prints JSON")
    args = parser.parse_args()
    args.models = args.models.split(",")
    for name in args.models if not args.one else args.one[:1]:
        if name not in DEFAULT_MODELS:
            parser.error(f"unknown model {name!r}: choose from {', '.join(DEFAULT_MODELS)}")
    try:
        args.lengths = [int(each) for each in (args.one[1:] if args.one else args.lengths.split(","))]
    except ValueError:
        parser.error("lengths must be whole numbers, separated by commas")
    positive = {"lengths": min(args.lengths), **{name: getattr(args, name) for name in ("tokens", "rounds", "steps")}}
    positive.update(limit=args.limit, threads=args.threads or 1, memory=args.memory or 1, items=args.items - 1)
    for name, value in positive.items():
        if value <= 0:
            parser.error(f"{name} must be larger than {int(name == 'items')}")
    for file in filter(None, (args.csv, args.plot)):
        if not file.resolve().parent.is_dir():
            parser.error(f"there is no folder {file.parent} for {file.name}")
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'recbole-sigma[bench]'")
    if args.device == "cuda" and not cuda_available():
        parser.error("torch sees no CUDA device here: leave --device cuda out")
    return args


def cuda_available() -> bool:
    """Whether torch can run on a GPU here."""
    import torch

    return torch.cuda.is_available()


# The processes


def race(args: argparse.Namespace) -> Cells:
    """Measure all models at a length, round after round, then the next length. A case that fails is not tried again."""
    cells = {(name, length): Cell() for length in args.lengths for name in args.models}
    plan = [(name, length) for length in args.lengths for _ in range(args.rounds) for name in args.models]
    progress = tqdm(plan, unit="run", disable=None)
    for name, length in progress:
        cell = cells[name, length]
        if cell.failure:
            continue
        progress.set_description(f"{name}, L {length:,}")
        got = run_one(name, length, args)
        cell.failure = got.get("failure", "")
        if cell.failure:
            progress.write(f"{name} at L {length:,}: {cell.failure}", file=sys.stderr)
            continue
        cell.seconds.append(got["seconds"])
        cell.memory.append(got["memory_mb"])
        cell.machine = got["machine"]
    return cells


def run_one(name: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """What `measure` returns in a fresh process, or why it returned nothing."""
    command = [sys.executable, __file__, "--one", name, str(length)]
    for option in ("tokens", "items", "steps", "limit", "memory", "threads", "device"):
        if getattr(args, option) is not None:
            command += [f"--{option}", str(getattr(args, option))]
    if args.plain_malloc:
        command.append("--plain_malloc")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"> {args.limit:g} s"}
    if done.returncode == -9:
        return {"failure": OUT_OF_MEMORY}  # the kernel ends a process that takes too much
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return {"failure": f"failed: {reason}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step, and MB that steps took; or `failure`, if they want more memory than there is."""
    import torch

    from recbole_sigma.training.allocator import keep_freed_memory

    began = time.monotonic()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.plain_malloc:
        keep_freed_memory()
    torch.manual_seed(0)
    model = build(name, length, args).to(args.device).train()
    next(train_steps(model, make_batch(model, name, min(WARM_UP_LENGTH, length), 2, args.device)))  # compiles
    model.zero_grad()
    batch = make_batch(model, name, length, batch_size(length, args.tokens), args.device)
    seconds = []
    memory = CudaMemory() if args.device == "cuda" else CpuMemory(args.memory)
    try:
        for taken in train_steps(model, batch):
            seconds.append(taken)
            enough = len(seconds) > args.steps  # the first does not count
            if len(seconds) > 1 and (enough or time.monotonic() - began + 2 * taken > 0.85 * args.limit):
                break
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return {"failure": OUT_OF_MEMORY}
    return {
        "seconds": statistics.median(seconds[1:]),
        "memory_mb": memory.taken_mb(),
        "steps": len(seconds) - 1,
        "machine": describe_machine(args.device),
    }


def build(name: str, length: int, args: argparse.Namespace) -> Any:
    """A model on a data set that has nothing but its number of items. The rival is RecBole's class itself."""
    from recbole.model.sequential_recommender.sasrec import SASRec

    from recbole_sigma.config.config import Config
    from recbole_sigma.registry import find_model

    class Items:
        def num(self, _: str) -> int:
            return args.items

    label, _, mode = name.partition(":")
    model = SASRec if label == RIVAL else find_model(label)
    settings = {**SETTINGS, "MAX_ITEM_LIST_LENGTH": length, "use_gpu": args.device == "cuda"}
    if mode:
        settings["train_mode"] = mode
    return model(Config(model, "", settings=settings, need_data=False), Items())


def make_batch(model: Any, name: str, length: int, rows: int, device: str) -> Any:
    """Random items: every row full; a target a row, or at every position."""
    import torch
    from recbole.data.interaction import Interaction

    shape = (rows, length) if name.endswith(SEQUENCE) else (rows,)
    batch = {
        model.ITEM_SEQ: torch.randint(1, model.n_items, (rows, length)),
        model.ITEM_SEQ_LEN: torch.full((rows,), length),
        model.POS_ITEM_ID: torch.randint(1, model.n_items, shape),
    }
    return Interaction(batch).to(device)


def train_steps(model: Any, batch: Any) -> Iterator[float]:
    """Seconds of step after step, without end."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        started = time.perf_counter()
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        yield time.perf_counter() - started


def describe_machine(device: str) -> str:
    """What the figures depend on."""
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in ("recbole", "torch", "numba"))
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {versions}, mamba-ssm {version('mamba-ssm')}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads, {versions}"


class CpuMemory:
    """Peak resident memory from now on, and a limit to what this process may still allocate."""

    def __init__(self, limit_gb: float | None) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what the warm-up freed is given back, not hidden in the baseline
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
            free_kb = read_kb("/proc/meminfo", "MemAvailable")
            more = int(limit_gb * 1e9) if limit_gb else free_kb * 1024 * 4 // 5
            limit = read_kb("/proc/self/status", "VmSize") * 1024 + more
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        self.before = self.peak_mb()

    @staticmethod
    def peak_mb() -> float:
        """The most that was resident; where the system cannot start anew, of the process's whole life."""
        if sys.platform == "linux":
            return read_kb("/proc/self/status", "VmHWM") * 1024 / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def taken_mb(self) -> float:
        """MB, 0 or more."""
        return max(self.peak_mb() - self.before, 0.0)


class CudaMemory:
    """Peak of what torch allocated from now on, on the GPU."""

    def __init__(self) -> None:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def taken_mb(self) -> float:
        """MB, 0 or more."""
        import torch

        return (torch.cuda.max_memory_allocated() - self.before) / 1e6


def read_kb(file: str, entry: str) -> int:
    """A line `entry: 123 kB` of a file of Linux's."""
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(f"{entry}:"))


if __name__ == "__main__":
    sys.exit(main())
