"""Reports of recorded runs as Markdown, HTML, CSV, LaTeX, or a summary on the terminal. Nothing is trained."""

import html
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from recbole_sigma.errors import UserError
from recbole_sigma.report.sections import MARKS, Section, case_section, comparison, other_metrics, sections
from recbole_sigma.report.table import COLUMNS, COSTS, SPLITS, Cell, Report, table_of
from recbole_sigma.runs.files import csv_text, write_file, write_text
from recbole_sigma.runs.reader import RecordedRun

if TYPE_CHECKING:
    from recbole_sigma.report.plots import Plot

WIDTH = 80  # columns of the summary
_SPECIAL = re.compile(r"[\\`*|<>\[\]]")  # in Markdown
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$^{\dagger}$", "*": r"$^{*}$",
    "<": r"$<$", ">": r"$>$", "–": "--", "…": r"\dots{}", "≥": r"$\ge$", "·": r"$\cdot$",
}  # fmt: skip


@dataclass(frozen=True)
class _Style:
    """How a format writes text, what is missing, and the parts of a cell."""

    escape: Callable[[str], str]
    missing: str
    best: str
    second: str
    deviation: str

    def write(self, value: object) -> str:
        """Text, a number, a `Cell` or None as a piece of the format's text."""
        if value is None:
            return self.missing
        if not isinstance(value, Cell):
            return self.escape(str(value))
        mean = {1: self.best, 2: self.second}.get(value.rank, "{}").format(f"{value.mean:.4f}")
        deviation = "" if value.deviation is None else self.deviation.format(f"{value.deviation:.4f}")
        return mean + deviation + self.escape(value.mark)


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return r"\shortstack[r]{" + escaped.replace("\n", r"\\") + "}" if "\n" in text else escaped


_STYLES = {
    "terminal": _Style(str, "-", "•{}", "{}", "±{}"),
    "md": _Style(lambda text: _SPECIAL.sub(r"\\\g<0>", text).replace("\n", " "), "—", "**{}**", "<u>{}</u>", " ± {}"),
    "html": _Style(
        lambda text: html.escape(text).replace("\n", "<br>"), "—", "<b>{}</b>", "<u>{}</u>", " <small>± {}</small>"
    ),
    "tex": _Style(_latex, "--", r"\textbf{{{}}}", r"\underline{{{}}}", r"{{\tiny\,$\pm$ {}}}"),
}


def report_of(
    runs: Sequence[RecordedRun], title: str = "", command: str = "", k: int = 10, bounds: Sequence[int] = (),
    user: str | None = None, masked: bool = False,
) -> Report:  # fmt: skip
    """A table of each data set's runs, metrics at `k`; with `bounds` also by user groups, with `user` a case study.

    `masked`: a summary shows the ranks without seen items, too; the other formats always do.

    Raises UserError for runs that are not comparable, and for a user that a data set does not have.
    """
    datasets = dict.fromkeys(run.dataset for run in runs)
    tables = tuple(table_of([run for run in runs if run.dataset == name], k, bounds) for name in datasets)
    cases: tuple[Any, ...] = ()
    if user is not None:
        from recbole_sigma.report.case_study import case_study  # models and data: slow

        cases = tuple(case_study([run for row in table.rows for run in row.runs], user, k) for table in tables)
    return Report(title or f"Runs on {', '.join(datasets)}", tables, command, cases, masked)


def check_report(out: Path | None = None, form: str = "html") -> None:
    """Make the directory of `out`. Raises UserError where no report could be written, as for want of a package."""
    for package in ("jinja2", "matplotlib") if form != "csv" else ():
        if find_spec(package) is None:
            install = f"{Path(sys.executable).name} -m pip install 'recbole-sigma[report]'"
            raise UserError(f"this report needs {package}: {install}")
    if out:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=out.parent):
                pass
        except OSError as error:
            raise UserError(f"--out: {out.parent}: cannot be written: {error.strerror}") from None


def summary(report: Report) -> str:
    """Tables and case studies as plain text for a terminal, at most WIDTH columns wide."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, force_terminal=False)

    def show(section: Section, heading: str) -> None:
        table = TerminalTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for head, align in zip(section.head, section.align, strict=True):
            justify: Any = "left" if align == "l" else "right"
            table.add_column(Text(head), justify=justify, no_wrap=align == "r", overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(_STYLES["terminal"].write(value)) for value in row))
        lines = (Text(f"{name}: {line}") for name, line in section.lines)
        console.print(Text(heading), *lines, table, sep="\n")

    for table in report.tables:
        wide = table.means["deviation"].notna().any()
        for masked in (False, True) if report.masked else (False,):
            for splits in [[split] for split in SPLITS] if wide else [SPLITS]:
                section = comparison(table, brief=True, splits=splits, masked=masked)
                if section.rows:
                    show(section, f"{table.dataset}: {section.title}")
        if (others := other_metrics(table)).rows:
            show(others, others.title)
        tests = f"{MARKS} (one-sided paired t-tests, Holm)" if table.significance else "significance is not tested"
        notes = [*table.problems, *([f"• best; {tests}"] if table.improvement else [])]
        console.print(*map(Text, notes), "", sep="\n")
        for case in (case for case in report.cases if case.dataset == table.dataset):
            show(case_section(case), f"user {case.user} of {case.dataset}")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip()


def write_report(report: Report, out: Path, form: str) -> None:
    """Write the report to `out`; Markdown's plots are files beside it, `STEM-PLOT.png`. Raises UserError."""
    plots: Sequence[Plot] = ()
    if form == "md":
        from recbole_sigma.report.plots import plots_of

        plots = plots_of(report)
        for plot in plots:
            write_file(out.with_name(f"{out.stem}-{plot.name}.png"), partial(Path.write_bytes, data=plot.png))
    write_text(out, render(report, form, plots, out.stem))


def render(report: Report, form: str, plots: "Sequence[Plot]" = (), stem: str = "") -> str:
    """The report as text: md (links to `plots` as files `STEM-PLOT.png`), html (contains its plots), csv or tex."""
    if form == "csv":
        return _csv(report)
    import jinja2
    from markupsafe import Markup

    if form == "html":
        from recbole_sigma.report.plots import plots_of

        plots = plots_of(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("recbole_sigma.report"), autoescape=form == "html",  # noqa: S701 - text() escapes
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["text"] = lambda value: Markup(_STYLES[form].write(value))  # noqa: S704
    template = environment.get_template(f"report.{form}.j2")
    text = template.render(report=report, sections=partial(sections, report), plots=plots, stem=stem)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _csv(report: Report) -> str:
    """A line per row and data set, in full precision."""
    lines = []
    for table in report.tables:
        for row in table.rows:
            line: dict[str, Any] = {"dataset": table.dataset, "label": row.label, "model": row.runs[0].model}
            line |= {"n": len(row.complete), "seeds": " ".join(str(run.seed) for run in row.complete)}
            for split, metric in COLUMNS:
                cell = table.cell(row.label, split, metric)
                line[f"{split} {metric}@{table.k}"] = cell and cell.mean
                line[f"{split} {metric}@{table.k} deviation"] = cell and cell.deviation
            for metric, tests in table.significance.items():
                for unit, by_label in (("users", tests.users), ("seeds", tests.seeds)):
                    test = by_label.get(row.label)
                    line[f"p {metric}@{table.k} {unit}"] = test and test.p_holm
            line |= {key: row.costs.get(key) for key in COSTS}
            line["sha256"] = row.complete[0].result["dataset"]["sha256"] if row.complete else None
            line |= {"problems": "; ".join(row.problems), "folders": " ".join(run.name for run in row.runs)}
            lines.append(line)
    return csv_text(lines)
