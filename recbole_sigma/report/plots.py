"""Plots of a report, as PNG with a transparent background, in colours that are readable on white and on black."""

import base64
import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recbole_sigma.evaluation.metrics import METRICS, metric_title
from recbole_sigma.report.table import Report, Table

_INK = "#808080"
_STYLE: Any = {
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK,
    "grid.color": _INK, "grid.alpha": 0.25, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9.0, "legend.frameon": False, "errorbar.capsize": 2,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
}  # fmt: skip
_LABEL_WIDTH = 48  # characters in a line of a row's label
_LINES = ("-", "--", ":", "-.")  # another for each ten rows, whose colours repeat


@dataclass(frozen=True)
class Plot:
    """One picture; `name` is the stem of a file name and unique in its report."""

    name: str
    dataset: str
    caption: str
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
        note = ", with the standard deviation over seeds" if table.means["deviation"].notna().any() else ""
        metrics = {metric: metric_title(f"{metric}@{table.k}") for metric in METRICS}
        groups: dict[str, dict[str, str]] = {"history": {}, "target": {}, "age": {}}
        for group in (group for group in table.groups if group.count):
            groups[group.by][group.title] = f"{group.title}\n{group.count:,} samples"
        test = table.means.reset_index().query("split == 'test'")
        ndcgs = test.query("metric == 'ndcg'")
        with matplotlib.rc_context(_STYLE):
            figures = {
                "curves": (_curves(table), f"validation {ndcg} by epoch"),
                "metrics": (_dots(table, test.query("group == ''"), "metric", metrics), f"test metrics{note}"),
                "groups": (_dots(table, ndcgs, "group", groups["history"]), f"test {ndcg} by history length{note}"),
                "targets": (
                    _dots(table, ndcgs, "group", groups["target"]),
                    f"test {ndcg} by the target's frequency{note}",
                ),
                "ages": (_dots(table, ndcgs, "group", groups["age"]), f"test {ndcg} by the age of the model{note}"),
                "setting": (_against(table, key) if key else None, f"metrics against {key}{note}"),
            }
            for kind, (figure, caption) in figures.items():
                if figure:
                    png = io.BytesIO()
                    figure.savefig(png, dpi=150, transparent=True, metadata={"Software": None})
                    name, caption = f"{table.dataset}-{kind}", f"{table.dataset}: {caption}"
                    plots.append(Plot(name, table.dataset, caption, png.getvalue()))
    return plots


def varied_number(table: Table) -> str | None:
    """The one setting by which the rows of one model differ, if it is a number in all of them; else None."""
    runs = [run for row in table.rows for run in row.runs]
    values = {key: [run.varied.get(key) for run in runs] for run in runs for key in run.varied}
    differing = [key for key, column in values.items() if any(value != column[0] for value in column)]
    if len({run.model for run in runs}) > 1 or len(differing) != 1:
        return None
    return differing[0] if all(type(value) in (int, float) for value in values[differing[0]]) else None


def _curves(table: Table) -> Figure | None:
    """Validation NDCG by epoch, a line per run, unfinished ones included."""
    name = f"ndcg@{table.k}"
    figure = Figure(figsize=(7, 3.6))
    axes = figure.add_subplot(xlabel="epoch", ylabel=f"validation {metric_title(name)}")
    for number, row in enumerate(table.rows):
        for run in row.runs:
            curve = pd.DataFrame(run.curve, columns=["epoch", name]).dropna()
            if len(curve):
                line = _LINES[number // 10 % len(_LINES)]
                axes.plot(curve["epoch"], curve[name], line, color=f"C{number}", marker=".", label=row.label)
    if axes.lines and axes.dataLim.width == 0:  # one epoch would be shown with fractions of it
        axes.set_xlim(axes.dataLim.x0 - 1, axes.dataLim.x0 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, None)
    axes.grid(visible=False, axis="x")
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))  # one per row, beside the picture, so that it hides nothing
    if len(entries) > 1:
        names = [textwrap.fill(label, _LABEL_WIDTH) for label in entries]
        axes.legend(entries.values(), names, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure if axes.lines else None


def _dots(table: Table, cells: pd.DataFrame, by: str, titles: Mapping[str, str]) -> Figure | None:
    """A panel for each value of the column `by` that has a title: a dot per row, the best one filled."""
    if cells.empty or not titles:
        return None
    wide = cells.pivot(index="label", columns=by)
    labels = [row.label for row in reversed(table.rows) if row.label in wide.index]
    wide = wide.loc[labels].rename(lambda label: textwrap.fill(label, _LABEL_WIDTH))
    n_lines = sum(name.count("\n") + 1 for name in wide.index)
    figure = Figure(figsize=(8.5, 0.9 + 0.24 * n_lines))
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, (value, title) in zip(panels, titles.items(), strict=True):
        means, deviations = wide["mean", value], wide["deviation", value].astype(float)
        axes.errorbar(means, wide.index, xerr=deviations, fmt="o", mfc="none", color="C0", ecolor=_INK)
        axes.plot(means.max(), means.idxmax(), "o", color="C0")
        axes.set_title(title, fontsize="medium")
        axes.margins(x=0.12, y=0.5 / len(labels))
        axes.xaxis.set_major_locator(MaxNLocator(3))
    return figure


def _against(table: Table, key: str) -> Figure | None:
    """Each metric against the setting `key`; axes of their own, since the sizes differ; values are evenly spaced."""
    rows = [row for row in table.rows if row.complete]
    values = {row.label: row.runs[0].varied[key] for row in sorted(rows, key=lambda row: row.runs[0].varied[key])}
    if len(values) < 2:
        return None
    figure = Figure(figsize=(8, 2.8))
    cells = table.means.reset_index().replace({"split": {"valid": "validation"}})
    for number, metric in enumerate(METRICS, 1):
        wide = cells.query("group == '' and metric == @metric").pivot(index="label", columns="split")
        axes = figure.add_subplot(1, len(METRICS), number, title=metric_title(f"{metric}@{table.k}"))
        means, deviations = wide["mean"].loc[[*values]], wide["deviation"].loc[[*values]]
        means.plot(ax=axes, yerr=deviations, marker="o", xlabel=key, legend=False)
        axes.set_xticks(range(len(values)), list(map(str, values.values())))
    figure.axes[0].legend()
    return figure
