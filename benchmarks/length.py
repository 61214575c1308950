"""Time of a training step and its peak memory against the length of the histories, with equal tokens per batch.

    python benchmarks/length.py --csv length.csv --plot length.png
    python benchmarks/length.py --device cuda --tokens 200000 --rounds 5
    python benchmarks/length.py --lengths 2000,5000 --models RecMamba,RecMamba:sequence,SASRec

A step is forward, backward and Adam on random items; every row has L items, a batch `tokens // L` rows (at least one).
The rival is RecBole's own SASRec with its defaults: two layers of two heads that hold their attention (B, heads, L, L).
The other models have their defaults. All have D 64, cross-entropy over all items, and dropout.
A row has one target, its next item. `MODEL:sequence` is `train_mode: sequence`: all L positions have a target, which is
more work, and L times as many targets.

Every figure comes from a process of its own. Its memory is the most that steps held beyond what the process held before
the first one: activations, scores, gradients, the state of Adam, but neither the model nor libraries. On CPU it is
resident memory, on CUDA what torch allocated. The allocator keeps freed memory as in our runs (training/allocator.py),
for the rival as well. Each round measures all models at one length, so that a change of the machine's load affects all
alike; ratios are medians over the rounds. The first step of a process does not count.
"""

import recbole_sigma  # noqa: F401  before torch: it sets how torch allocates

# isort: split
import argparse
import json
import math
import statistics
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from tabulate import tabulate
from timing import OUT_OF_MEMORY, PeakMemory, command_parser, count, counts, limit_memory, measure_alone, output_file
from torch.utils.benchmark import timer
from tqdm import tqdm

MODELS = ("RecMamba", "Mamba4Rec", "SIGMA", "LinRec", "SASRec")
RIVAL = "SASRec"
SEQUENCE = ":sequence"  # after the name of a model: `train_mode: sequence`
DEFAULT_MODELS = (*MODELS, *(f"{name}{SEQUENCE}" for name in ("RecMamba", "Mamba4Rec", "SIGMA")))
RATIOS = {f"time / {RIVAL}": "seconds", f"memory / {RIVAL}": "memory_mb"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")  # can be distinguished by colour-blind readers


def main() -> int:
    """Measure all models, or with `--one` be the process that measures one. Returns the exit status."""
    args = parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)))
        return 0
    runs = race(args)
    cells = summary(runs, args)
    print(report(cells, args))
    if args.csv:
        cells.drop(columns=["name", *RATIOS]).to_csv(args.csv, index=False, float_format="%.6g")
    if args.plot:
        draw(cells, args)
    return int(runs.failure.str.startswith("failed").any())


def parse_args() -> argparse.Namespace:
    """The command line, refused before hours are spent on it."""
    parser = command_parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=DEFAULT_MODELS, help="what to measure")
    parser.add_argument(
        "--lengths",
        type=counts,
        default="50,200,500,1000,2000,5000,10000",
        help="values of L",
    )
    parser.add_argument("--tokens", type=count, default=20_000, help="items in a batch")
    parser.add_argument("--items", type=count, default=12_102, help="V")
    parser.add_argument("--rounds", type=count, default=3, help="processes per figure")
    parser.add_argument("--steps", type=count, default=5, help="steps timed in each process, at most")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a process may take")
    parser.add_argument("--memory", type=float, help="GB that a process may add, on CPU; None: 80%% of what is free")
    parser.add_argument("--plain_malloc", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.add_argument("--csv", type=output_file, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--plot", type=output_file, metavar="FILE.png", help="draw the figures (needs matplotlib)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "L"), help="measure only this, here; prints JSON")
    args = parser.parse_args()
    for name in args.models if not args.one else args.one[:1]:
        if name not in DEFAULT_MODELS:
            parser.error(f"unknown model {name!r}: choose from {', '.join(DEFAULT_MODELS)}")
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'recbole-sigma[bench]'")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: leave --device cuda out")
    return args


def race(args: argparse.Namespace) -> pd.DataFrame:
    """A row per process: name, length, round, seconds, memory_mb, failure, machine. A failure is not tried again."""
    options = ("tokens", "items", "steps", "limit", "memory", "threads", "device")
    given = [f"--{option}={getattr(args, option)}" for option in options if getattr(args, option) is not None]
    given += ["--plain_malloc"] * args.plain_malloc
    rows: list[dict[str, Any]] = []
    plan = [(length, number, name) for length in args.lengths for number in range(args.rounds) for name in args.models]
    for length, number, name in tqdm(plan, unit="process", disable=None):
        if any(row["failure"] for row in rows if (row["name"], row["length"]) == (name, length)):
            continue
        figures = measure_alone([__file__, "--one", name, str(length), *given], args.limit)
        rows.append({"name": name, "length": length, "round": number, "failure": "", **figures})
        if rows[-1]["failure"]:
            tqdm.write(f"{name} at L {length:,}: {rows[-1]['failure']}", file=sys.stderr)
    return pd.DataFrame(rows, columns=["name", "length", "round", "seconds", "memory_mb", "failure", "machine"])


def measure(name: str, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step and the MB that steps took, or `failure` if they need more memory than there is."""
    from recbole_sigma.environment import device_name, versions
    from recbole_sigma.training.allocator import keep_freed_memory

    started = time.monotonic()
    torch.set_num_threads(args.threads)
    if not args.plain_malloc:
        keep_freed_memory()
    torch.manual_seed(0)
    model = build(name, length, args).to(args.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(batch: Any) -> float:
        before = timer()
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        return timer() - before

    step(make_batch(model, name, min(16, length), 2, args.device))  # compiles
    optimizer.state.clear()
    model.zero_grad()
    batch = make_batch(model, name, length, max(args.tokens // length, 1), args.device)
    memory = PeakMemory(torch.device(args.device))
    if args.device == "cpu":
        limit_memory(args.memory)
    seconds: list[float] = []
    try:
        while len(seconds) <= args.steps:  # the first does not count
            seconds.append(step(batch))
            if len(seconds) > 1 and time.monotonic() - started + 2 * seconds[-1] > 0.85 * args.limit:
                break
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return {"failure": OUT_OF_MEMORY}
    packages = [f"{name} {number}" for name, number in versions(("recbole", "torch", "numba", "mamba-ssm")).items()]
    return {
        "seconds": statistics.median(seconds[1:]),
        "memory_mb": memory.taken_mb(),
        "steps": len(seconds) - 1,
        "machine": ", ".join([device_name(torch.device(args.device)), f"{args.threads} threads", *packages]),
    }


def build(name: str, length: int, args: argparse.Namespace) -> Any:
    """A model for a data set of which only the number of items is known. The rival is RecBole's class."""
    from recbole.model.sequential_recommender.sasrec import SASRec

    from recbole_sigma.config.config import Config

    model, _, mode = name.partition(":")
    settings = {"hidden_size": 64, "loss_type": "CE", "MAX_ITEM_LIST_LENGTH": length, "use_gpu": args.device == "cuda"}
    settings |= {} if model == RIVAL else {"train_mode": mode or "prefix"}
    config = Config(SASRec if model == RIVAL else model, "", settings=settings, need_data=False)
    return config.model_class(config, SimpleNamespace(num=lambda _: args.items))


def make_batch(model: Any, name: str, length: int, rows: int, device: str) -> Any:
    """Random items in full rows, with one target per row or, in sequence mode, flat rows and one at every position."""
    from recbole.data.interaction import Interaction

    flat = name.endswith(SEQUENCE)
    batch = {
        model.ITEM_SEQ: torch.randint(1, model.n_items, (rows * length,) if flat else (rows, length)),
        model.ITEM_SEQ_LEN: torch.full((rows,), length),
        model.POS_ITEM_ID: torch.randint(1, model.n_items, (rows * length,) if flat else (rows,)),
    }
    return Interaction(batch).to(device)


def summary(runs: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """A row per length and model: medians over the rounds, the range of the seconds, ratios to the rival, the failure.

    A ratio is the median of the ratios of single rounds.
    """
    cells = runs.groupby(["length", "name"], sort=False, as_index=False).agg(
        seconds=("seconds", "median"), seconds_min=("seconds", "min"), seconds_max=("seconds", "max"),
        memory_mb=("memory_mb", "median"), rounds=("seconds", "count"), failure=("failure", "max"),
        machine=("machine", "first"),
    )  # fmt: skip
    cells.insert(0, "model", cells.name.str.removesuffix(SEQUENCE))
    cells.insert(1, "train_mode", cells.name.str.endswith(SEQUENCE).map({True: "sequence", False: "prefix"}))
    cells.insert(3, "batch_size", (args.tokens // cells.length).clip(lower=1))
    for ratio, column in RATIOS.items():
        rounds = runs.pivot(index=["length", "round"], columns="name", values=column).astype(float)
        rival = rounds.get(RIVAL, pd.Series(math.nan, rounds.index)).clip(lower=1e-9)
        cells = cells.join(
            rounds.div(rival, axis=0).groupby("length").median().stack().rename(ratio), ["length", "name"]
        )
    return cells


def report(cells: pd.DataFrame, args: argparse.Namespace) -> str:
    """The table, with what it depends on above it."""
    rows = []
    for cell in cells.to_dict("records"):
        seconds, memory = cell["seconds"], cell["memory_mb"]
        rows.append([
            f"{cell['length']:,}", f"{cell['batch_size']:,}", cell["name"],
            cell["failure"].partition(":")[0] or f"{seconds:.{4 if seconds < 1 else 2}f}",
            "" if math.isnan(memory) else f"{memory:,.0f}" if memory >= 1 else "< 1",
            *("" if math.isnan(cell[ratio]) else f"{cell[ratio]:.1%}" for ratio in RATIOS),
        ])  # fmt: skip
    headers = ["L", "B", "model", "s per step", "peak MB", *RATIOS]
    aligned = ("right", "right", "left", *["right"] * 4)
    machine = next(iter(cells.machine.dropna()), "nothing measured")
    return (
        f"{machine}\n{args.tokens:,} tokens per batch, {args.items:,} items, D 64; {args.rounds} rounds of up to "
        f"{args.steps} steps\nThe rival is RecBole's {RIVAL}: 2 layers, 2 heads, attention (B, heads, L, L).\n\n"
        f"{tabulate(rows, headers=headers, tablefmt='github', disable_numparse=True, colalign=aligned)}"
    )


def draw(cells: pd.DataFrame, args: argparse.Namespace) -> None:
    """Seconds and memory against L, both axes logarithmic, a line per model; sequence mode is dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    quantities = {"seconds": "time of a training step (s)", "memory_mb": "peak memory of a step (MB)"}
    for panel, (column, quantity) in zip(figure.subplots(1, 2), quantities.items(), strict=True):
        for name, line in cells.groupby("name", sort=False):
            model, _, sequence = name.partition(SEQUENCE[0])
            index, label = MODELS.index(model), f"{model}, every position a target" if sequence else model
            style = {"color": COLOURS[index], "marker": "os^Dv"[index], "linestyle": "--" if sequence else "-"}
            panel.plot(line.length, line[column].clip(lower=0 if column == "seconds" else 1), label=label, **style)
        label = f"history length L (items), {args.tokens:,} items per batch"
        panel.set(xscale="log", yscale="log", xlabel=label, ylabel=quantity)
        panel.set_xticks(args.lengths, [f"{length:,}" for length in args.lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    handles = figure.axes[0].get_lines()
    figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / 2), frameon=False)
    figure.savefig(args.plot, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
