"""Times the causal convolution and the item softmax on CPU against torch's own, forward and backward, in one run.

    python benchmarks/operations.py --threads 2

Both are measured in turn, so that a change of the machine's load meets both alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from recbole_sigma.ops import causal_conv1d
from recbole_sigma.ops.softmax import softmax_loss

Step = Callable[[], Tensor]


def convolution(rows: int, length: int, channels: int = 128, width: int = 4) -> tuple[Step, Step]:
    """Ours and torch's depthwise convolution with SiLU over (B, L, E)."""
    x = torch.randn(rows, length, channels, requires_grad=True)
    weight, bias = torch.randn(channels, width, requires_grad=True), torch.randn(channels, requires_grad=True)

    def torchs() -> Tensor:
        y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=width - 1, groups=channels)
        return F.silu(y[..., :length]).transpose(1, 2).sum()

    return lambda: causal_conv1d(x, weight, bias, activation="silu").sum(), torchs


def item_softmax(rows: int, items: int, hidden_size: int = 64) -> tuple[Step, Step]:
    """Ours and torch's cross-entropy over all items."""
    hidden = torch.randn(rows, hidden_size, requires_grad=True)
    weight = (0.1 * torch.randn(items, hidden_size)).requires_grad_()
    target = torch.randint(1, items, (rows,))
    return lambda: softmax_loss(hidden, weight, target), lambda: F.cross_entropy(hidden @ weight.T, target)


def seconds(step: Step) -> float:
    """Of one forward and backward pass."""
    started = time.perf_counter()
    step().backward()
    return time.perf_counter() - started


def compare(label: str, rivals: tuple[Step, Step], repeats: int) -> list[str | float]:
    """One line of the table, medians in milliseconds; the first run of each does not count."""
    runs = [[seconds(step) for step in rivals] for _ in range(repeats + 1)][1:]
    ours, theirs = (1e3 * statistics.median(column) for column in zip(*runs, strict=True))
    return [label, ours, theirs, theirs / ours]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    rows = []
    for shape in ((2048, 50), (256, 10), (100, 30)):
        rows.append(compare(f"convolution {shape[0]} x {shape[1]} x 128", convolution(*shape), args.repeats))
    for shape in ((2048, 12102), (2048, 1683)):
        rows.append(compare(f"softmax {shape[0]} x {shape[1]} items", item_softmax(*shape), args.repeats))
    print(f"torch {torch.__version__}, float32, {args.threads} threads, forward and backward, ms")
    print(tabulate(rows, headers=["", "ours", "torch", "torch / ours"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
