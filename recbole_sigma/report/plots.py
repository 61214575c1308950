"""Plots of a report, as PNG: learning curves, test metrics, user groups, and metrics against a setting.

The background is transparent; the colours are readable on white and on black.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recbole_sigma.evaluation.metrics import METRICS, metric_title
from recbole_sigma.report.table import Report, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#808080"
_COLOURS = (
    "#3987c9", "#e07b1f", "#2ca25f", "#d1495b", "#9467bd", "#a0714f", "#d877b5", "#7f9a1f", "#1fa3b0", "#8c8c8c",
)  # fmt: skip
_LINES = ("-", "--", ":", "-.")  # another for each round of colours
_STYLE: Any = {
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK,
    "grid.color": _INK, "grid.alpha": 0.25, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9.0, "legend.frameon": False, "legend.fontsize": 8.0, "svg.hashsalt": "",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One picture; `name` is the stem of a file name and unique in its report, `width` is in pixels of a page."""

    name: str
    dataset: str
    caption: str
    width: int
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as a `data:` address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def plots_of(report: Report) -> list[Plot]:
    """The plots of each data set; one that would show nothing is left out."""
    plots = []
    for table in report.tables:
        ndcg, key = metric_title(f"ndcg@{table.k}"), varied_number(table)
        metrics = [(metric_title(f"{metric}@{table.k}"), metric, "") for metric in METRICS]
        groups = [(f"{each.title}\n{each.count:,} users", "ndcg", each.title) for each in table.groups if each.count]
        deviations = any(cell.deviation is not None for cell in table.cells.values())
        note = ", bars of standard deviation over seeds" if deviations else ""
        with matplotlib.rc_context(_STYLE):
            figures = {
                "curves": (f"validation {ndcg} by epoch", _curves(table)),
                "metrics": (f"test metrics{note}", _bars(table, metrics, "test")),
                "groups": (f"test {ndcg} by history length{note}", _bars(table, groups, f"test {ndcg}")),
                "setting": (f"metrics against {key}{note}", _against(table, key) if key else None),
            }
            for kind, (caption, figure) in figures.items():
                if figure:
                    FigureCanvasAgg(figure)
                    png = io.BytesIO()
                    figure.savefig(png, format="png", dpi=150, transparent=True, metadata={"Software": None})
                    width, caption = round(90 * figure.get_figwidth()), f"{table.dataset}: {caption}"
                    plots.append(Plot(f"{table.dataset}-{kind}", table.dataset, caption, width, png.getvalue()))
    return plots


def varied_number(table: Table) -> str | None:
    """The one setting by which the rows of one model differ, if it is a number in all of them; else None."""
    runs = [run for row in table.rows for run in row.runs]
    values = {key: [run.varied.get(key) for run in runs] for run in runs for key in run.varied}
    differing = [key for key, column in values.items() if any(value != column[0] for value in column)]
    if len({run.model for run in runs}) > 1 or len(differing) != 1:
        return None
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values[differing[0]])
    return differing[0] if numbers else None


def _curves(table: Table) -> Figure | None:
    """Validation NDCG by epoch, a line per run, unfinished ones included."""
    name = f"ndcg@{table.k}"
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(table.rows):
        label = row.label
        line = _LINES[number // len(_COLOURS) % len(_LINES)]
        for run in row.runs:
            points = [(epoch["epoch"], epoch[name]) for epoch in run.curve if epoch.keys() >= {"epoch", name}]
            if points:
                axes.plot(
                    *np.transpose(points), label=label, color=_COLOURS[number % len(_COLOURS)], linestyle=line,
                    linewidth=1.3, alpha=0.9, marker="." if len(points) < 4 else None,
                )  # fmt: skip
                label = f"_{row.label}"  # one entry per row in the legend
    axes.set(xlabel="epoch", ylabel=f"validation {metric_title(name)}", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure if axes.lines else None


def _bars(table: Table, ticks: Sequence[tuple[str, str, str]], ylabel: str) -> Figure | None:
    """A bar per row for each tick: title, test metric, user group."""
    tested = [number for number, row in enumerate(table.rows) if table.cell(row.label, "test", METRICS[0])]
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.82 / max(len(tested), 1)
    for position, number in enumerate(tested):
        label = table.rows[number].label
        cells = [table.cells[label, group, "test", metric] for _, metric, group in ticks]
        axes.bar(
            np.arange(len(ticks)) + (position - (len(tested) - 1) / 2) * width, [cell.mean for cell in cells],
            width * 0.92, yerr=[cell.deviation or np.nan for cell in cells], label=label,
            color=_COLOURS[number % len(_COLOURS)], hatch="//" * (number // len(_COLOURS)), ecolor=_INK, capsize=2,
        )  # fmt: skip
    axes.set_xticks(range(len(ticks)), [title for title, _, _ in ticks])
    axes.set(ylabel=ylabel, ylim=(0, None))
    axes.grid(visible=False, axis="x")
    _legend(axes)
    return figure if tested and ticks else None


def _against(table: Table, key: str) -> Figure | None:
    """Each metric against the setting `key`; axes of their own, since the sizes differ; values are evenly spaced."""
    rows = [row for row in table.rows if table.cell(row.label, "valid", METRICS[0])]
    rows.sort(key=lambda row: row.runs[0].varied[key])
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for number, metric in enumerate(METRICS, 1):
        axes = figure.add_subplot(1, len(METRICS), number)
        for split, name, line, marker in (("valid", "validation", ":", "s"), ("test", "test", "-", "o")):
            cells = {at: cell for at, row in enumerate(rows) if (cell := table.cell(row.label, split, metric))}
            means = [cell.mean for cell in cells.values()]
            errors = [cell.deviation or np.nan for cell in cells.values()]
            axes.errorbar(
                list(cells), means, errors, label=name, color=_COLOURS[split == "test"], marker=marker, linestyle=line,
                markersize=4, capsize=2,
            )  # fmt: skip
        axes.set(xlabel=key, title=metric_title(f"{metric}@{table.k}"))
        axes.set_xticks(range(len(rows)), [str(row.runs[0].varied[key]) for row in rows])
    figure.axes[0].legend()
    return figure if len(rows) > 1 else None


def _legend(axes: "Axes") -> None:
    """Beside the picture, so that it hides nothing; none for a single row."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
