"""Reports: views of recorded runs as Markdown, HTML, CSV, LaTeX, or a summary on the terminal. Nothing is trained."""

import csv
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.metrics import METRICS
from recbole_sigma.evaluation.significance import FEWEST_SEEDS, LEVEL
from recbole_sigma.report.table import COSTS, PARTS, Arm, Cell, Table, table_of
from recbole_sigma.runs.files import write_file
from recbole_sigma.runs.reader import RecordedRun

if TYPE_CHECKING:
    import jinja2

    from recbole_sigma.report.case_study import CaseStudy
    from recbole_sigma.report.plots import Plot

COLUMNS = 100  # of the summary
_TRAINING = ("learning_rate", "train_batch_size", "train_mode", "loss_type", "epochs")  # that one must know to cite
_NAMES = {"hit": "HR", "ndcg": "NDCG", "mrr": "MRR", "valid": "validation", "test": "test"}
_COST_NAMES = {
    "n_parameters": "parameters", "epochs": "epochs", "seconds_per_epoch": "s an epoch",
    "eval_seconds": "s an evaluation", "peak_memory_mb": "peak MB",
}  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$^{\dagger}$", "*": r"$^{*}$",
    "<": r"$<$", ">": r"$>$", "–": "--", "…": r"\dots{}", "≥": r"$\ge$",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Everything that a reader is shown: a table for each data set, the command that makes it again, case studies."""

    title: str
    tables: tuple[Table, ...]
    command: str = ""
    cases: "tuple[CaseStudy, ...]" = ()


def report_of(
    runs: Sequence[RecordedRun],
    title: str = "",
    command: str = "",
    k: int = 10,
    bounds: Sequence[int] = (),
    user: str | None = None,
) -> Report:
    """A table of each data set's runs, metrics at `k`; with `bounds` also by user groups, with `user` a case study.

    Raises UserError for runs that do not belong side by side, and for a user that a data set does not have.
    """
    datasets = dict.fromkeys(run.dataset for run in runs)
    by_dataset = {dataset: [run for run in runs if run.dataset == dataset] for dataset in datasets}
    tables = tuple(table_of(same, k, bounds) for same in by_dataset.values())
    cases: list[CaseStudy] = []
    if user is not None:
        from recbole_sigma.report.case_study import case_study  # models and data: slow

        cases = [case_study(same, user, k) for same in by_dataset.values()]
    return Report(title or f"Runs on {', '.join(by_dataset)}", tables, command, tuple(cases))


def write_report(report: Report, out: Path, form: str) -> None:
    """Write the file; plots of Markdown stand beside it, `<name>-<plot>.png`. Raises UserError if that cannot be."""
    plots = _plots(report) if form in ("md", "html") else []
    links = {}
    for plot in plots if form == "md" else []:
        links[plot.name] = f"{out.stem}-{plot.name}.png"
        _write(out.with_name(links[plot.name]), plot.png)
    _write(out, render(report, form, plots, links).encode())


def check_report(out: Path) -> None:
    """Raises UserError where a report could not be written: its packages are missing, or its folder cannot be."""
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise _missing(package)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"--out: {out.parent}: cannot be written: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    def write(partial: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)

    write_file(path, write)


def render(
    report: Report, form: str, plots: "Sequence[Plot] | None" = None, links: Mapping[str, str] | None = None
) -> str:
    """The report as text of a format: md, html, csv, tex.

    HTML holds its plots, drawn if they are not given; Markdown has those for which `links` names a file.
    """
    if plots is None:
        plots = _plots(report) if form == "html" else []
    if form == "csv":
        return _csv(report)
    template = _environment(form).get_template(f"report.{form}.j2")
    views = [
        {
            "table": table,
            "facts": facts(table),
            "cases": [case for case in report.cases if case.dataset == table.dataset],
            "plots": [plot for plot in plots if plot.dataset == table.dataset],
            "columns": [(part, metric) for part in PARTS for metric in METRICS],
            "costs": [key for key in COSTS if any(key in arm.costs() for arm in table.arms)],
        }
        for table in report.tables
    ]
    text = template.render(
        report=report, views=views, links=links or {}, metrics=METRICS, parts=PARTS, names=_NAMES,
        cost_names=_COST_NAMES, tests_note=tests_note,
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def summary(report: Report) -> str:
    """Means on validation, means and deviations on test, case studies, in at most COLUMNS columns."""
    return "\n\n".join([*map(_summary, report.tables), *(case.text(COLUMNS) for case in report.cases)])


def _summary(table: Table) -> str:
    def short(cell: Cell | None, mark: str, deviation: bool) -> str:
        if cell is None:
            return "-"
        spread = f"±{cell.deviation:.4f}" if deviation and cell.deviation is not None else ""
        return f"{cell.mean:.4f}{spread}{mark}{'•' * (cell.place == 1)}"

    def rows(width: int) -> list[list[str]]:
        return [
            [
                _cut(arm.label, width),
                str(len(arm.complete)),
                *(short(arm.cells.get(("valid", metric)), "", False) for metric in METRICS),
                *(
                    short(arm.cells.get(("test", metric)), table.mark(arm.label, ("test", metric)), True)
                    for metric in METRICS
                ),
            ]
            for arm in table.arms
        ]

    headers = ["", "n", *(f"{part}\n{_NAMES[metric]}@{table.k}" for part in PARTS for metric in METRICS)]

    def drawn(width: int) -> list[str]:
        return tabulate(rows(width), headers=headers, disable_numparse=True).splitlines()

    width = COLUMNS
    while width > 1 and max(map(len, drawn(width))) > COLUMNS:
        width -= 1
    lines = [table.dataset, *drawn(width)]
    lines += [f"{arm.label}, {problem}" for arm in table.arms for problem in arm.problems]
    lines += ["• the best; " + tests_note(table, short=True)] if len(table.complete) > 1 else []
    return "\n".join(_cut(line.rstrip(), COLUMNS) for line in lines)


def facts(table: Table) -> list[tuple[str, str]]:
    """What one must know to cite the table: name and text. What differs between runs is told with their arms."""
    runs = table.complete
    if not runs:
        return []
    data, protocol = runs[0].result["dataset"], runs[0].result["protocol"]
    size = ", ".join(f"{data[key]:,} {key}" for key in ("users", "items", "interactions") if key in data)
    length = f", mean length {data['mean_length']:.1f}" if "mean_length" in data else ""
    lines = [
        ("data", f"{table.dataset}: {size}{length}"),
        ("checksum (SHA-256)", str(data.get("sha256", "not recorded"))),
        *((key.replace("_", " "), _alike(runs, "protocol", key)) for key in protocol),
        ("training", _grouped(runs, _training)),
        ("seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        ("device", _alike(runs, "device")),
        *((key, _alike(runs, key)) for key in ("backend", "threads", "processes") if key in runs[0].result),
    ]
    packages = dict.fromkeys(name for run in runs for name in run.result["versions"])
    lines.append(("versions", ", ".join(f"{name} {_alike(runs, 'versions', name)}" for name in packages)))
    if table.groups:
        lines.append(("user groups", "by full history length before the test item, half-open"))
    return lines


def tests_note(table: Table, short: bool = False) -> str:
    """How significance was tested, and what the marks mean."""
    found = table.significance.get(METRICS[0])
    if not found or not found.users:
        return "No significance test: it takes two arms with results."
    n_users, n_others = next(iter(found.users.values())).n, len(found.users)
    marks = f"* p < {LEVEL} against every other arm over users, † over seeds"
    if short:
        return f"{marks} (t-test, Holm)"
    n_seeds = sorted({test.n for test in found.seeds.values()})
    seeds = (
        f" and over {', '.join(map(str, n_seeds))} seeds"
        if n_seeds
        else f", not over seeds (less than {FEWEST_SEEDS}: what another seed would change is not tested)"
    )
    return (
        "One-sided paired t-tests of each metric's best arm (the highest mean on test) against each other, on test "
        f"over {n_users:,} users (a user's gain is the mean over seeds){seeds}; p after Holm's correction over the "
        f"comparisons of a metric ({n_others}). {marks}."
    )


def _alike(runs: Sequence[RecordedRun], *keys: str) -> str:
    """A recorded value; where runs differ, each value with its arms."""

    def value(run: RecordedRun) -> str:
        found: Any = run.result
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return "not recorded" if found is None else str(found)

    return _grouped(runs, value)


def _grouped(runs: Sequence[RecordedRun], value: Callable[[RecordedRun], str]) -> str:
    arms: dict[str, list[str]] = {}
    for run in runs:
        labels = arms.setdefault(value(run), [])
        if run.label not in labels:
            labels.append(run.label)
    if len(arms) == 1:
        return next(iter(arms))
    return "; ".join(f"{found} ({', '.join(labels)})" for found, labels in arms.items())


def _training(run: RecordedRun) -> str:
    """What was asked of training."""
    return ", ".join(f"{key} {run.settings[key]}" for key in _TRAINING if run.settings.get(key) is not None)


def _csv(report: Report) -> str:
    """A row for each arm and data set, in full precision."""
    rows = [_csv_row(table, arm) for table in report.tables for arm in table.arms]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(table: Table, arm: Arm) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": table.dataset,
        "arm": arm.label,
        "model": arm.runs[0].model,
        "n": len(arm.complete),
        "seeds": " ".join(str(run.seed) for run in arm.complete),
    }
    for part, metric in ((part, metric) for part in PARTS for metric in METRICS):
        cell, name = arm.cells.get((part, metric)), f"{part} {metric}@{table.k}"
        row[name] = cell.mean if cell else ""
        row[f"{name} deviation"] = "" if cell is None or cell.deviation is None else cell.deviation
    for metric, found in table.significance.items():
        for unit, tests in (("users", found.users), ("seeds", found.seeds)):
            row[f"p {metric}@{table.k} {unit}"] = tests[arm.label].p_holm if arm.label in tests else ""
    row |= {key: arm.costs().get(key, "") for key in COSTS}
    row["sha256"] = arm.complete[0].result["dataset"].get("sha256", "") if arm.complete else ""
    return {**row, "problems": "; ".join(arm.problems), "folders": " ".join(run.name for run in arm.runs)}


def _environment(form: str) -> "jinja2.Environment":
    """Templates, where `<< >>` and `<% %>` stand for jinja's braces in LaTeX, and text is escaped for the format."""
    try:
        import jinja2
    except ImportError:
        raise _missing("jinja2") from None
    latex: dict[str, Any] = {
        "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<",
        "variable_end_string": ">>", "comment_start_string": "<#", "comment_end_string": "#>",
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("recbole_sigma.report"),
        autoescape=form == "html",  # noqa: S701 - the others escape what they print by `text`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **(latex if form == "tex" else {}),
    )
    escape: dict[str, Callable[[object], str]] = {"md": _markdown, "tex": _latex}
    environment.filters |= {"text": escape.get(form, str), "number": _number, "p": _p, "percent": _percent}
    environment.filters["comment"] = lambda text: " ".join(str(text).split())
    return environment


def _markdown(text: object) -> str:
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", str(text))


def _latex(text: object) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in str(text))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def _plots(report: Report) -> "list[Plot]":
    try:
        from recbole_sigma.report.plots import plots_of
    except ImportError as error:
        raise _missing(error.name or "matplotlib") from None
    return plots_of(report)


def _missing(package: str) -> UserError:
    return UserError(f"this report needs {package}: {Path(sys.executable).name} -m pip install 'recbole-sigma[report]'")
