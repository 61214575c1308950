"""What a report shows of a data set, as tables of text and cells that every format writes in its own way."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recbole_sigma.evaluation.metrics import METRICS, metric_title
from recbole_sigma.evaluation.significance import FEWEST_SEEDS, LEVEL
from recbole_sigma.report.table import COLUMNS, COSTS, Report, Table
from recbole_sigma.runs.reader import RecordedRun

if TYPE_CHECKING:
    from recbole_sigma.report.case_study import CaseStudy

MARKS = f"* p < {LEVEL} against every other row over users, † over seeds"
_SPLIT_NAMES = {"valid": "validation", "test": "test"}
_COST_NAMES = {
    "n_parameters": "parameters", "epochs": "epochs", "seconds_per_epoch": "s per epoch",
    "eval_seconds": "s per evaluation", "peak_memory_mb": "peak MB",
}  # fmt: skip
_TRAINING = ("learning_rate", "train_batch_size", "train_mode", "loss_type", "epochs")  # needed to cite a result
_MACHINE = ("device", "backend", "threads", "processes")


class Bold(str):
    """Text in bold."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A table with its heading.

    Attributes:
        kind: comparison, significance, groups, case, cost or record.
        align: a letter per column, l or r.
        rows: text, numbers, a `Cell`, or None where there is nothing to show.
        lines: pairs of a name and a text, shown above the table.
    """

    kind: str
    title: str
    align: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    lines: Sequence[tuple[str, str]] = ()


def sections(report: Report, table: Table) -> list[Section]:
    """The sections on one data set, the comparison first and the record last."""
    cases = [case_section(case) for case in report.cases if case.dataset == table.dataset]
    shown = [comparison(table), _significance(table), _groups(table), *cases, _costs(table), _record(table)]
    return [section for section in shown if section.rows]


def comparison(table: Table, brief: bool = False) -> Section:
    """Every metric of every row; `brief`, for terminals, leaves out improvements and the deviations on validation."""
    rows: list[Sequence[object]] = []
    for row in table.rows:
        cells = [table.cell(row.label, *column) for column in COLUMNS]
        if brief:
            cells = [cell and cell._replace(deviation=None) for cell in cells[: len(METRICS)]] + cells[len(METRICS) :]
        rows.append((row.label, len(row.complete), *cells))
    if table.improvement and not brief:
        better = (table.improvement.get(column) for column in COLUMNS)
        rows.append(("best over second", "", *(None if each is None else f"{100 * each:+.1f} %" for each in better)))
    titles = [f"{_SPLIT_NAMES[split]}\n{metric_title(f'{metric}@{table.k}')}" for split, metric in COLUMNS]
    deviations = any(cell.deviation is not None for cell in table.cells.values())
    note = (
        f"Mean{' ± standard deviation' if deviations else ''} over n seeds (one seed: no deviation). "
        "Best bold, second underlined. "
    )
    first = table.significance.get(METRICS[0])
    if first and first.users:
        n_users, n_seeds = next(iter(first.users.values())).n, sorted({test.n for test in first.seeds.values()})
        fewer = f"not over seeds (fewer than {FEWEST_SEEDS}: whether another seed would change the order is not tested)"
        seeds = f"over {', '.join(map(str, n_seeds))} seeds" if n_seeds else fewer
        note += (
            "One-sided paired t-tests of each metric's best row (the highest mean on test) against each other row, on "
            f"test over {n_users:,} users (a user's gain is the mean over seeds), {seeds}; p after Holm's correction "
            f"over the {len(first.users)} comparisons of a metric. {MARKS}."
        )
    else:
        note += "No significance test: it needs two rows with test metrics and more than one user."
    return Section("comparison", "", "lr" + "r" * len(COLUMNS), ("", "n", *titles), rows, note)


def case_section(case: "CaseStudy") -> Section:
    """A user's history, and the list of each model beside it."""

    def titles(items: Iterable[str]) -> str:
        return " · ".join(map(case.title, items))

    lines = [(f"history, last {len(case.history)} of {case.history_length}", titles(case.history))]
    lines += [(f"flipped, {', '.join(labels)}", titles(items)) for items, labels in case.flipped.items()]
    lines += [("next, on test", case.title(case.target))]
    rows: list[Sequence[object]] = [
        (rank, *(Bold(case.title(item)) if item == case.target else case.title(item) for item in items))
        for rank, items in enumerate(zip(*(each.items for each in case.lists), strict=True), 1)
    ]
    rows.append(("rank of the next", *(f"{each.target_rank:g}" for each in case.lists)))
    head = ("", *(f"{each.label}\nseed {each.seed}" for each in case.lists))
    return Section("case", f"User {case.user}", "l" * len(head), head, rows, lines=lines)


def _significance(table: Table) -> Section:
    rows = []
    for metric, tests in table.significance.items():
        for other, users in tests.users.items():
            seeds = tests.seeds.get(other)
            p = ["< 0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}" for test in (users, seeds) if test]
            over_seeds = (p[1], seeds.n) if seeds else (None, "")
            title = metric_title(f"{metric}@{table.k}")
            rows.append((title, tests.best, other, f"{users.difference:+.4f}", p[0], f"{users.n:,}", *over_seeds))
    head = ("metric", "best", "against", "difference", "p over users", "n", "p over seeds", "n")
    return Section("significance", "Significance on test", "lllrrrrr", head, rows)


def _groups(table: Table) -> Section:
    rows = []
    for group in table.groups:
        for label in (row.label for row in table.rows if table.cell(row.label, "test", METRICS[0])):
            cells = (table.cell(label, "test", metric, group.title) for metric in METRICS)
            rows.append((group.title, f"{group.count:,}", label, *cells))
    head = ("history", "users", "", *(metric_title(f"{metric}@{table.k}") for metric in METRICS))
    note = "By full history length before the test item, half-open."
    return Section("groups", "User groups on test", "lrlrrr", head, rows, note)


def _costs(table: Table) -> Section:
    keys = [key for key in COSTS if any(key in row.costs for row in table.rows)]
    rows = []
    for row in table.rows:
        means = [row.costs.get(key) for key in keys]
        texts = [None if mean is None else f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}" for mean in means]
        rows += [(row.label, *texts)] if row.costs else []
    note = "Means over the runs, as recorded, whatever else the machine did: no benchmark."
    return Section("cost", "Cost", "l" + "r" * len(keys), ("", *(_COST_NAMES[key] for key in keys)), rows, note)


def _record(table: Table) -> Section:
    rows = [
        (
            row.label, run.seed, *((run.result["epochs"], run.result["best_epoch"]) if run.complete else (None, None)),
            run.name, run.result["command"] if run.complete else run.problem,
        )
        for row in table.rows
        for run in row.runs
    ]  # fmt: skip
    head = ("run", "seed", "epochs", "best epoch", "directory", "command")
    return Section("record", "Record", "lrrrll", head, rows, lines=_facts(table.complete))


def _facts(runs: Sequence[RecordedRun]) -> list[tuple[str, str]]:
    """What is needed to cite the table: names and texts. Where runs differ, each value is followed by its labels."""
    if not runs:
        return []

    def shared(values: Iterable[object]) -> str:
        labels: dict[str, dict[str, None]] = {}
        for run, value in zip(runs, values, strict=True):
            labels.setdefault("not recorded" if value is None else str(value), {})[run.label] = None
        several = "; ".join(f"{text} ({', '.join(names)})" for text, names in labels.items())
        return several if len(labels) > 1 else next(iter(labels))

    first = runs[0].result
    data, protocol = first["dataset"], first["protocol"]
    size = [f"{data[key]:,} {key}" for key in ("users", "items", "interactions") if key in data]
    size += [f"mean length {data['mean_length']:.1f}"] if "mean_length" in data else []
    asked = ([f"{key} {run.settings[key]}" for key in _TRAINING if run.settings.get(key) is not None] for run in runs)
    packages = dict.fromkeys(name for run in runs for name in run.result["versions"])
    versions = (f"{name} {shared(run.result['versions'].get(name) for run in runs)}" for name in packages)
    return [
        ("data", f"{runs[0].dataset}: {', '.join(size)}"),
        ("checksum (SHA-256)", str(data.get("sha256", "not recorded"))),
        *((key.replace("_", " "), shared(run.result["protocol"].get(key) for run in runs)) for key in protocol),
        ("training", shared(map(", ".join, asked))),
        ("seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        *((key, shared(run.result.get(key) for run in runs)) for key in _MACHINE if key in first),
        ("versions", ", ".join(versions)),
    ]
