"""Plots of a report, as PNG: learning curves, test metrics, user groups, and metrics against a setting.

Drawn on nothing, in colours that stand out on white and on black alike.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recbole_sigma.evaluation.metrics import METRICS
from recbole_sigma.report.table import Cell, Table
from recbole_sigma.runs.reader import RecordedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recbole_sigma.report.render import Report

_INK = "#808080"
_COLOURS = (
    "#3987c9",
    "#e07b1f",
    "#2ca25f",
    "#d1495b",
    "#9467bd",
    "#a0714f",
    "#d877b5",
    "#7f9a1f",
    "#1fa3b0",
    "#8c8c8c",
)
_LINES = ("-", "--", ":", "-.")  # another for each round of colours
_NAMES = {"hit": "HR", "ndcg": "NDCG", "mrr": "MRR"}
_STYLE: Any = {
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK,
    "grid.color": _INK, "grid.alpha": 0.25, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9.0, "legend.frameon": False, "legend.fontsize": 8.0, "svg.hashsalt": "",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One picture; `name` is a file name's stem, and no other plot of the report has it."""

    name: str
    dataset: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """In pixels, as PNG's header has it."""
        return int.from_bytes(self.png[16:20], "big")

    @property
    def uri(self) -> str:
        """The picture in a `data:` address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def plots_of(report: "Report") -> list[Plot]:
    """The plots that there is something to see on, data set by data set."""
    plots = []
    for table in report.tables:
        for kind, draw in (("curves", _curves), ("metrics", _metrics), ("groups", _groups), ("setting", _setting)):
            with matplotlib.rc_context(_STYLE):
                drawn = draw(table)
            if drawn:
                caption, figure = drawn
                plots.append(
                    Plot(f"{table.dataset}-{kind}", table.dataset, f"{table.dataset}: {caption}", _png(figure))
                )
    return plots


def varied_number(table: Table) -> str | None:
    """The one setting, a number in all of them, by which the arms of one model differ; None if there is no such one."""
    runs = [run for arm in table.arms for run in arm.runs]
    values: dict[str, list[Any]] = {key: [each.varied.get(key) for each in runs] for run in runs for key in run.varied}
    differing = [key for key, each in values.items() if any(value != each[0] for value in each)]
    if len({run.model for run in runs}) > 1 or len(differing) != 1:
        return None
    (key,) = differing
    return (
        key if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values[key]) else None
    )


def _curves(table: Table) -> tuple[str, Figure] | None:
    """Validation NDCG of each epoch, a line for each run, unfinished ones included."""
    name = f"ndcg@{table.k}"

    def points_of(run: RecordedRun) -> list[tuple[float, float]]:
        return [(row["epoch"], row[name]) for row in run.curve if row.keys() >= {"epoch", name}]

    lines = {arm.label: [points_of(run) for run in arm.runs if run.folder] for arm in table.arms}
    if not any(points for each in lines.values() for points in each):
        return None
    figure, axes = _figure(7, 3.6)
    for place, (label, each) in enumerate(lines.items()):
        for points in filter(None, each):
            axes.plot(
                *np.transpose(points), label=label, linewidth=1.3, alpha=0.9, **_look(place),
                marker="." if len(points) < 4 else None,
            )  # fmt: skip
            label = f"_{label}"  # one entry in the legend
    axes.set(xlabel="epoch", ylabel=f"validation NDCG@{table.k}", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes, len(lines))
    return f"validation NDCG@{table.k} by epoch", figure


def _metrics(table: Table) -> tuple[str, Figure] | None:
    """Bars of each metric on test, with deviations."""
    arms = [arm for arm in table.arms if ("test", "ndcg") in arm.cells]
    if not arms:
        return None
    figure, axes = _figure(7, 3.4)
    cells = {arm.label: [arm.cells["test", metric] for metric in METRICS] for arm in arms}
    _bars(axes, cells, [f"{_NAMES[metric]}@{table.k}" for metric in METRICS], _places(table))
    axes.set_ylabel("test")
    return f"test metrics{_deviation_note(cells)}", figure


def _groups(table: Table) -> tuple[str, Figure] | None:
    """Bars of test NDCG in each group of users."""
    groups = [group for group in table.groups if group.cells]
    if not groups:
        return None
    figure, axes = _figure(7, 3.4)
    cells = {label: [group.cells[label]["ndcg"] for group in groups] for label in groups[0].cells}
    _bars(axes, cells, [f"{group.title}\n{group.count:,} users" for group in groups], _places(table))
    axes.set_ylabel(f"test NDCG@{table.k}")
    return f"test NDCG@{table.k} by history length{_deviation_note(cells)}", figure


def _setting(table: Table) -> tuple[str, Figure] | None:
    """Each metric against the setting by which arms differ, an axis each since their sizes do; values stand evenly."""
    key = varied_number(table)
    arms = [arm for arm in table.arms if arm.cells]
    if key is None or len(arms) < 2:
        return None
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    arms.sort(key=lambda arm: arm.runs[0].varied[key])
    for place, metric in enumerate(METRICS):
        axes = figure.add_subplot(1, len(METRICS), place + 1)
        for part, line in (("valid", ":"), ("test", "-")):
            found = [arm.cells[part, metric] for arm in arms if (part, metric) in arm.cells]
            at = [place for place, arm in enumerate(arms) if (part, metric) in arm.cells]
            spread = [cell.deviation or 0 for cell in found] if any(cell.deviation for cell in found) else None
            axes.errorbar(
                at, [cell.mean for cell in found], spread, label={"valid": "validation"}.get(part, part),
                color=_COLOURS[part == "test"], marker="so"[part == "test"], linestyle=line, markersize=4, capsize=2,
            )  # fmt: skip
        axes.set(xlabel=key, title=f"{_NAMES[metric]}@{table.k}")
        axes.set_xticks(range(len(arms)), [str(arm.runs[0].varied[key]) for arm in arms])
    figure.axes[0].legend()
    deviation = _deviation_note({arm.label: list(arm.cells.values()) for arm in arms})
    return f"metrics against {key}{deviation}", figure


def _bars(axes: "Axes", cells: Mapping[str, list[Cell]], ticks: list[str], places: Mapping[str, int]) -> None:
    """A group of bars for each tick, a bar for each label."""
    width = 0.82 / len(cells)
    for place, (label, each) in enumerate(cells.items()):
        at = np.arange(len(ticks)) + (place - (len(cells) - 1) / 2) * width
        spread = [cell.deviation or 0 for cell in each] if any(cell.deviation for cell in each) else None
        look = _look(places[label])
        axes.bar(
            at, [cell.mean for cell in each], width * 0.92, yerr=spread, label=label, color=look["color"],
            hatch="//" * (places[label] // len(_COLOURS)), ecolor=_INK, capsize=2,
        )  # fmt: skip
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    _legend(axes, len(cells))


def _deviation_note(cells: Mapping[str, list[Cell]]) -> str:
    known = any(cell.deviation is not None for each in cells.values() for cell in each)
    return ", bars of standard deviation over seeds" if known else ""


def _places(table: Table) -> dict[str, int]:
    """An arm looks the same on every plot of its table."""
    return {arm.label: place for place, arm in enumerate(table.arms)}


def _look(place: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "linestyle": _LINES[place // len(_COLOURS) % len(_LINES)],
    }


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(axes: "Axes", n: int) -> None:
    """Beside the picture, where it hides nothing."""
    if n > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, transparent=True, metadata={"Software": None})
    return content.getvalue()
