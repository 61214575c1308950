"""Times our CPU operations against their rivals: selective scan, convolution, GRU, moving averages and item softmax.

    python benchmarks/operations.py --threads 2            # all; the largest scan takes up to 20 GB and some minutes
    python benchmarks/operations.py scan --shapes 256x50x128x32
    python benchmarks/operations.py gru --shapes 32x50x64 8x2000x64

The methods of a shape are measured in turn. Each is timed without gradients, and forward and backward together; the
ratio says how many times as long as the first method it takes. A method that does not fit into memory is left out.

scan         B x L x E x N   against a loop over steps in torch that keeps all states, the same loop with states
                             computed again in the backward pass, and mambapy's parallel scan
convolution  B x L x E       causal, depthwise, with SiLU, against torch's
gru          B x L x D       against torch.nn.GRU, which computes the padding, as in published code
averages     B x L x D x N   of rows of all lengths, against our selective scan with one state
softmax      B x V x D       cross-entropy over all items, against torch's
"""

import recbole_sigma  # noqa: F401  before torch: it sets how torch allocates

# isort: split
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from timing import command_parser, count, free_bytes
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.checkpoint import checkpoint

from recbole_sigma.ops import causal_conv1d, selective_scan
from recbole_sigma.ops.averages import moving_averages
from recbole_sigma.ops.gru import gru
from recbole_sigma.ops.softmax import softmax_loss

MEAN_LENGTH = 9  # of the scan's short rows, as in amazon-beauty
WIDTH = 4  # of the convolution


class Method(NamedTuple):
    """One way to compute an operation: `run()` gives the outputs, `leaves` are what gradients are computed for."""

    run: Callable[[], Sequence[Tensor]]
    leaves: Sequence[Tensor]
    needed_bytes: float = 0.0  # memory that forward and backward pass hold at their peak


def scan_by_torch(arguments: dict[str, Tensor], steps: int | None = None, pscan: Any = None) -> Tensor:
    """The scan with decays, inputs and states (B, L, E, N) in memory, as in plain implementations.

    With `steps`, states of so many steps at a time are computed, and computed again in the backward pass. `pscan` is a
    parallel scan instead of the loop over steps.
    """
    A = arguments["A"]

    def piece(state: Tensor, dt: Tensor, u: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        decays, inputs, states = torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None], []
        if pscan:
            return state, (pscan(decays, inputs) @ C[..., None]).squeeze(-1)
        for decay, new in zip(decays.unbind(1), inputs.unbind(1), strict=True):
            state = decay * state + new
            states.append(state)
        return state, (torch.stack(states, 1) @ C[..., None]).squeeze(-1)

    dt = F.softplus(arguments["delta"] + arguments["delta_bias"])
    series = [dt, arguments["u"], arguments["B"], arguments["C"]]
    state, outputs = dt.new_zeros(len(dt), *A.shape), []
    for part in zip(*(tensor.split(steps or tensor.shape[1], 1) for tensor in series), strict=True):
        state, y = checkpoint(piece, state, *part, use_reentrant=False) if steps else piece(state, *part)
        outputs.append(y)
    return (torch.cat(outputs, 1) + arguments["D"] * arguments["u"]) * F.silu(arguments["z"])


def scan(rows: int, length: int, channels: int, states: int) -> dict[str, Method]:
    """Selective scan of full rows, and of a batch of which most is padding; arguments as a Mamba block starts with."""
    wide, narrow = (rows, length, channels), (rows, length, states)
    arguments = {
        "u": torch.randn(wide),
        "delta": torch.randn(wide) - 4,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": torch.randn(narrow),
        "C": torch.randn(narrow),
        "D": torch.ones(channels),
        "z": torch.randn(wide),
        "delta_bias": torch.zeros(channels),
    }
    lengths = (1 + torch.empty(rows).exponential_(1 / (MEAN_LENGTH - 0.5))).long().clamp(max=length)
    leaves = [tensor.requires_grad_() for tensor in arguments.values()]
    states_bytes = 4 * rows * length * channels * states  # the factors below were measured
    methods = {
        "recbole-sigma": Method(lambda: [selective_scan(**arguments)], leaves),
        f"recbole-sigma, mean length {lengths.float().mean():.0f}": Method(
            lambda: [selective_scan(**arguments, lengths=lengths)], leaves
        ),
        "loop, states kept": Method(lambda: [scan_by_torch(arguments)], leaves, 6.3 * states_bytes),
        "loop, recomputed": Method(lambda: [scan_by_torch(arguments, steps=10)], leaves, 2.1 * states_bytes),
    }
    if find_spec("mambapy"):
        from mambapy.pscan import pscan

        run = partial(scan_by_torch, arguments, pscan=pscan)
        methods["mambapy pscan"] = Method(lambda: [run()], leaves, 10.3 * states_bytes)
    return methods


def convolution(rows: int, length: int, channels: int) -> dict[str, Method]:
    """Causal depthwise convolution."""
    x = torch.randn(rows, length, channels, requires_grad=True)
    weight, bias = torch.randn(channels, WIDTH, requires_grad=True), torch.randn(channels, requires_grad=True)

    def by_torch() -> list[Tensor]:
        y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=WIDTH - 1, groups=channels)
        return [F.silu(y[..., :length]).transpose(1, 2)]

    leaves = [x, weight, bias]
    ours = Method(lambda: [causal_conv1d(x, weight, bias, activation="silu")], leaves)
    return {"recbole-sigma": ours, "torch": Method(by_torch, leaves)}


def recurrent(rows: int, length: int, hidden_size: int) -> dict[str, Method]:
    """GRU, of full rows and of rows of all lengths."""
    module = torch.nn.GRU(hidden_size, hidden_size, batch_first=True)
    x = torch.randn(rows, length, hidden_size, requires_grad=True)
    weights, lengths = list(module.parameters()), 1 + torch.arange(rows) % length
    leaves = [x, *weights]
    return {
        "recbole-sigma": Method(lambda: [gru(x, *weights)], leaves),
        "recbole-sigma, rows of all lengths": Method(lambda: [gru(x, *weights, lengths)], leaves),
        "torch.nn.GRU": Method(lambda: [module(x)[0]], leaves),
    }


def averages(rows: int, length: int, channels: int, states: int) -> dict[str, Method]:
    """Moving averages of rows of all lengths, without padding."""
    lengths = (torch.arange(1, rows + 1) * length // rows).clamp(min=1)
    offsets, values = F.pad(lengths.cumsum(0), (1, 0)), torch.randn(int(lengths.sum()), channels, requires_grad=True)
    log_decay = F.logsigmoid(torch.linspace(-3, 3, states)).repeat(channels, 1).requires_grad_()
    weight = torch.full((channels, states), 1 / states, requires_grad=True)

    def by_scan() -> list[Tensor]:
        each, ones = values.repeat_interleave(states, -1), torch.ones(len(values), channels * states)
        A, one = log_decay.view(-1, 1), ones[:, :1]
        sums = selective_scan(each, ones, A, one, one, delta_softplus=False, offsets=offsets)
        return [(sums.unflatten(-1, (-1, states)) * weight).sum(-1)]

    leaves = [values, log_decay, weight]
    ours = Method(lambda: [moving_averages(values, log_decay, weight, offsets=offsets)], leaves)
    return {"recbole-sigma": ours, "selective scan": Method(by_scan, leaves)}


def softmax(rows: int, items: int, hidden_size: int) -> dict[str, Method]:
    """Cross-entropy over all items."""
    hidden = torch.randn(rows, hidden_size, requires_grad=True)
    weight, target = (0.1 * torch.randn(items, hidden_size)).requires_grad_(), torch.randint(1, items, (rows,))
    return {
        "recbole-sigma": Method(lambda: [softmax_loss(hidden, weight, target)], [hidden, weight]),
        "torch": Method(lambda: [F.cross_entropy(hidden @ weight.T, target)], [hidden, weight]),
    }


OPERATIONS: dict[str, tuple[Callable[..., dict[str, Method]], list[str]]] = {
    "scan": (scan, ["2048x50x128x32", "256x50x128x32", "256x200x128x32", "32x2000x128x32", "256x50x128x16"]),
    "convolution": (convolution, ["2048x50x128", "256x10x128", "100x30x128"]),
    "gru": (recurrent, ["256x10x64", "200x5x64", "500x3x64", "100x30x64", "32x50x64", "256x200x64"]),
    "averages": (averages, ["450x17x64x4", "450x17x256x4", "32x2000x64x4"]),
    "softmax": (softmax, ["2048x12102x64", "2048x1683x64"]),
}


def compare(methods: dict[str, Method], rounds: int, seconds: float, threads: int) -> list[list[str | float]]:
    """A row of the table per method: milliseconds forward, ratio, milliseconds forward and backward, ratio."""
    statements = {"forward": "with torch.no_grad(): run()", "both": "torch.autograd.grad(run(), leaves, gradients)"}
    timers, times = {}, {}
    for name, method in methods.items():
        if method.needed_bytes > 0.9 * free_bytes():
            print(f"left out: {name} needs {method.needed_bytes / 2**30:.0f} GiB of memory")
            continue
        with torch.no_grad():
            gradients = [torch.randn_like(output) for output in method.run()]
        for kind, statement in statements.items():
            scope = {"torch": torch, "run": method.run, "leaves": method.leaves, "gradients": gradients}
            timers[name, kind] = Timer(statement, globals=scope, num_threads=threads)
            times[name, kind] = []
    for _ in range(rounds):
        for key, timer in timers.items():
            times[key] += timer.blocked_autorange(min_run_time=seconds).times
    ms = {key: 1000 * float(torch.tensor(values).median()) for key, values in times.items()}
    measured = list(dict.fromkeys(name for name, _ in ms))
    base = ms[measured[0], "forward"], ms[measured[0], "both"]
    rows = [(name, ms[name, "forward"], ms[name, "both"]) for name in measured]
    return [[name, forward, forward / base[0], both, both / base[1]] for name, forward, both in rows]


def main() -> None:
    """Parse the command line and print a table per shape."""
    parser = command_parser(__doc__)
    parser.add_argument("operations", nargs="*", default=list(OPERATIONS), metavar="OPERATION", help="what to measure")
    parser.add_argument("--shapes", nargs="+", metavar="SIZExSIZE", help="of one operation, instead of its own")
    parser.add_argument("--rounds", type=count, default=3, help="rounds over the methods of a shape")
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, for each method in each round")
    args = parser.parse_args()
    unknown = set(args.operations) - set(OPERATIONS)
    if unknown or (args.shapes and len(args.operations) > 1):
        parser.error(f"name {'one' if args.shapes else 'operations'} of {', '.join(OPERATIONS)}")
    print(f"torch {torch.__version__}, float32, {args.threads} threads, medians in milliseconds")
    torch.manual_seed(0)
    headers = ["", "forward", "ratio", "forward and backward", "ratio"]
    for operation in args.operations:
        make, shapes = OPERATIONS[operation]
        for shape in args.shapes or shapes:
            rows = compare(make(*map(int, shape.split("x"))), args.rounds, args.seconds, args.threads)
            headers[0] = f"{operation} {shape}"
            print(f"\n{tabulate(rows, headers=headers, floatfmt='.2f')}", flush=True)


if __name__ == "__main__":
    main()
