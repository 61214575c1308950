"""Seconds of our GRU and of torch.nn.GRU, forward and backward, on this machine's CPU.

    python benchmarks/gru.py [--shapes 256x10 32x50] [--hidden 64] [--threads 2] [--ragged]

One run measures both in turn, so that a change of the machine's load meets both alike, and prints medians in
milliseconds, the fastest of each in parentheses, and the ratio of the medians. torch is given no lengths: as in
published code, it computes the padding.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from recbole_sigma.ops.gru import gru

SHAPES = ("256x10", "200x5", "500x3", "100x30", "32x50", "256x200")


def main() -> None:
    """Parse the command line and print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x length of a batch (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="width of input and state (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=30, help="measurements of each (default: %(default)s)")
    parser.add_argument("--ragged", action="store_true", help="rows of every length from 1 on, instead of full ones")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, float32, D {args.hidden}, {args.threads} threads, forward + backward, ms")
    print(f"{'B x L':>9}{'ours':>18}{'torch.nn.GRU':>22}{'torch / ours':>14}")
    for shape in args.shapes:
        rows, length = map(int, shape.split("x"))
        ours, theirs = compare(rows, length, args.hidden, args.repeats, args.ragged)
        ratio = statistics.median(theirs) / statistics.median(ours)
        print(f"{shape:>9}{summary(ours):>18}{summary(theirs):>22}{ratio:>14.1f}", flush=True)


def summary(seconds: list[float]) -> str:
    """Median and, in parentheses, the fastest, in milliseconds"""
    return f"{statistics.median(seconds) * 1e3:.2f} ({min(seconds) * 1e3:.2f})"


def compare(rows: int, length: int, hidden: int, repeats: int, ragged: bool) -> tuple[list[float], list[float]]:
    """Seconds of ours and of torch's, measured in turn on the same batch and weights."""
    torch.manual_seed(0)
    module = torch.nn.GRU(hidden, hidden, batch_first=True)
    x = torch.randn(rows, length, hidden, requires_grad=True)
    grad = torch.randn(rows, length, hidden)
    lengths = 1 + torch.arange(rows) % length if ragged else None
    parameters = list(module.parameters())
    w_ih, w_hh, b_ih, b_hh = parameters
    runs: list[Callable[[], Tensor]] = [lambda: gru(x, w_ih, w_hh, b_ih, b_hh, lengths), lambda: module(x)[0]]
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(-2, repeats):  # two to warm up: the first compiles
        for run, taken in zip(runs, seconds, strict=True):
            for leaf in (x, *parameters):
                leaf.grad = None
            began = time.perf_counter()
            run().backward(grad)
            if repeat >= 0:
                taken.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
