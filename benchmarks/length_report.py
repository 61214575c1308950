"""Table, savings, CSV and plot of benchmarks/length.py."""

import argparse
import csv
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

MODELS = ("RecMamba", "Mamba4Rec", "SIGMA", "LinRec", "SASRec")
RIVAL = "SASRec"
SEQUENCE = ":sequence"  # after a model's name: `train_mode: sequence`
GOALS = {2000: (0.70, 0.80), 5000: (0.90, 0.95)}  # savings of time and of memory wanted against the rival
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")  # told apart by colour-blind readers, too
MARKERS = ("o", "s", "^", "D", "v")
ALIGNED = ("right", "right", "left", *["right"] * 6)


@dataclass
class Cell:
    """What the rounds gave for one model at one length. `failure` says why there are no more."""

    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB
    machine: str = ""
    failure: str = ""


Cells = dict[tuple[str, int], Cell]


def batch_size(length: int, tokens: int) -> int:
    """Rows of a batch of about `tokens` items."""
    return max(1, tokens // length)


def report(cells: Cells, args: argparse.Namespace) -> str:
    """The table and the savings, with what they depend on above them."""
    machine = next((cell.machine for cell in cells.values() if cell.machine), "nothing measured")
    plain = [name for name in args.models if not name.endswith(SEQUENCE)]
    rows: list[list[str]] = []
    for length in args.lengths:
        for name in plain or [name.removesuffix(SEQUENCE) for name in args.models]:
            cell, sequence = (cells.get((key, length)) for key in (name, name + SEQUENCE))
            share = [f"{1 - saved:.1%}" if saved is not None else "" for saved in savings(cells, name, length)]
            sizes = [f"{length:,}", f"{batch_size(length, args.tokens):,}", name]
            rows.append([*sizes, *figures(cell), *share, *figures(sequence)])
    headers = ["L", "B", "model", "s a step", "peak MB", f"time / {RIVAL}", f"memory / {RIVAL}"]
    headers += ["sequence mode: s a step", "peak MB "]
    lines = [
        machine,
        f"{args.tokens:,} tokens a batch, {args.items:,} items, D 64; {args.rounds} rounds of up to {args.steps} steps",
        f"The rival is RecBole's {RIVAL}: 2 layers, 2 heads, (B, heads, L, L) attention.",
        "",
        tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=ALIGNED),
        "",
        *headlines(cells, args),
    ]
    return "\n".join(lines)


def figures(cell: Cell | None) -> list[str]:
    """Seconds and MB of a cell, or what became of it."""
    if cell is None:
        return ["", ""]
    if not cell.seconds:
        return [cell.failure.partition(":")[0], ""]
    seconds, memory = statistics.median(cell.seconds), statistics.median(cell.memory)
    return [f"{seconds:.4f}" if seconds < 1 else f"{seconds:.2f}", f"{memory:,.0f}" if memory >= 1 else "< 1"]


def savings(cells: Cells, name: str, length: int) -> tuple[float | None, float | None]:
    """Shares of the rival's time and memory that a model does without: medians over rounds that both ended."""
    own, rival = cells.get((name, length)), cells.get((RIVAL, length))
    if own is None or rival is None or not own.seconds or not rival.seconds:
        return None, None
    time_saved, memory_saved = (
        statistics.median(1 - ours / max(theirs, 1e-9) for ours, theirs in zip(*pair, strict=False))
        for pair in ((own.seconds, rival.seconds), (own.memory, rival.memory))
    )
    return time_saved, memory_saved


def headlines(cells: Cells, args: argparse.Namespace) -> list[str]:
    """Saved against the rival at the lengths that have a goal, a line a model."""
    lines = []
    for length, (time_goal, memory_goal) in GOALS.items():
        for name in args.models:
            if length not in args.lengths or name == RIVAL or name.endswith(SEQUENCE):
                continue
            time_saved, memory_saved = savings(cells, name, length)
            if time_saved is None or memory_saved is None:
                lines.append(f"L {length:,}, {name} against {RIVAL}: no figure for both")
                continue
            reached = "reached" if time_saved >= time_goal and memory_saved >= memory_goal else "not reached"
            lines.append(
                f"L {length:,}, {name} against {RIVAL}: time {-time_saved:+.1%}, memory {-memory_saved:+.1%} "
                f"(goal {-time_goal:+.0%}, {-memory_goal:+.0%}: {reached})"
            )
    return lines


def write_csv(cells: Cells, args: argparse.Namespace) -> None:
    """A line for each model and length: medians, the range of the rounds, what failed."""
    columns = "model,train_mode,length,batch_size,seconds,seconds_min,seconds_max,memory_mb,rounds,failure,machine"
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split(","))
        for (name, length), cell in cells.items():
            model, _, mode = name.partition(":")
            times = [f"{of(cell.seconds):.6g}" if cell.seconds else "" for of in (statistics.median, min, max)]
            memory = f"{statistics.median(cell.memory):.1f}" if cell.memory else ""
            sizes = [length, batch_size(length, args.tokens)]
            writer.writerow(
                [model, mode or "prefix", *sizes, *times, memory, len(cell.seconds), cell.failure, cell.machine]
            )


def draw(cells: Cells, args: argparse.Namespace) -> None:
    """Seconds and memory against L, both axes logarithmic, a line a model; sequence mode is dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for name in args.models:
        index = MODELS.index(name.removesuffix(SEQUENCE))
        style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 5}
        if name.endswith(SEQUENCE):
            style.update(linestyle="--", markerfacecolor="none")
        known = [(length, cells[name, length]) for length in args.lengths if cells[name, length].seconds]
        label = name.replace(SEQUENCE, ", every position a target")
        lengths = [length for length, _ in known]
        panels[0].plot(lengths, [statistics.median(cell.seconds) for _, cell in known], label=label, **style)
        panels[1].plot(lengths, [max(statistics.median(cell.memory), 1) for _, cell in known], **style)
    rows = f"{args.tokens:,} items a batch"
    for panel, quantity in zip(panels, ("time of a training step (s)", "peak memory of a step (MB)"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel=f"history length L (items), {rows}", ylabel=quantity)
        panel.set_xticks(args.lengths, [f"{length:,}" for length in args.lengths])
        panel.tick_params(axis="x", labelsize=9)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=math.ceil(len(args.models) / 2), frameon=False)
    figure.savefig(args.plot, dpi=150)
    plt.close(figure)
