"""What a report shows of a data set, as tables of text and cells that every format writes in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from recbole_sigma.evaluation.metrics import METRICS, metric_title
from recbole_sigma.evaluation.significance import FEWEST_SEEDS, LEVEL, PairedTest
from recbole_sigma.report.table import COSTS, MASKED, SPLITS, Report, Table

if TYPE_CHECKING:
    from recbole_sigma.report.case_study import CaseStudy

SEEN_MASKED = "The same scores, seen items masked"
MARKS = f"* p < {LEVEL} against every other row over users, † over seeds"
_MEANS = "Means over n seeds, with the standard deviation where there are several. Best bold, second underlined. "
_TESTS = (
    "One-sided paired t-tests of each metric's best row (the highest mean on test) against each other row, on test "
    "over users (a user's gain is the mean over its samples and seeds) and over seeds (with fewer than "
    f"{FEWEST_SEEDS}, whether another seed would change the order is not tested); p after Holm's correction over a "
    f"metric's tests. {MARKS}."
)
_TRAINING = ("learning_rate", "train_batch_size", "train_mode", "loss_type", "epochs")  # needed to cite a result


@dataclass(frozen=True)
class Section:
    """A table with its heading."""

    kind: str  # comparison, masked, metrics, significance, groups, case, cost or record
    title: str
    align: str  # a letter per column, l or r
    head: Sequence[str]
    rows: Sequence[Sequence[object]]  # text, numbers, a `Cell`, or None where there is nothing to show
    note: str = ""
    lines: Sequence[tuple[str, str]] = ()  # a name and a text each, above the table


def sections(report: Report, table: Table) -> list[Section]:
    """The sections on one data set, the comparison first and the record last."""
    cases = [case_section(case) for case in report.cases if case.dataset == table.dataset]
    groups = [_groups(table, by) for by in ("history", "target", "age")]
    shown = [comparison(table), comparison(table, masked=True), other_metrics(table)]
    shown += [_significance(table), *groups, *cases]
    shown += [_costs(table), _record(table)]
    return [section for section in shown if section.rows]


def comparison(table: Table, brief: bool = False, splits: Sequence[str] = SPLITS, masked: bool = False) -> Section:
    """Every metric of every row; `brief`, for terminals, leaves out improvements and the deviations on validation.

    `masked` shows the ranks without seen items that runs recorded beside; there are no rows if none did.
    """
    rows: list[Sequence[object]] = []
    columns = [(MASKED[split] if masked else split, metric) for split in splits for metric in METRICS]
    for row in table.rows:
        cells = [table.cell(row.label, *column) for column in columns]
        if masked and not any(cells):
            continue
        if brief:
            narrow = len(METRICS) * ("valid" in splits)
            cells = [cell and cell._replace(deviation=None) for cell in cells[:narrow]] + cells[narrow:]
        rows.append((row.label, len(row.complete), *cells))
    if table.improvement and rows and not brief:
        better = (table.improvement.get(column) for column in columns)
        rows.append(("best over second", "", *(None if each is None else f"{100 * each:+.1f} %" for each in better)))
    words = {"valid": "valid" if brief else "validation", "test": "test"}
    titles = (f"{words[split]}\n{metric_title(f'{metric}@{table.k}')}" for split in splits for metric in METRICS)
    title = SEEN_MASKED if masked else table.ranking[:1].upper() + table.ranking[1:]
    no_tests = "No significance test: it needs two rows with test metrics and more than one user."
    note = _MEANS + (_TESTS if table.significance else no_tests)
    return Section(
        "masked" if masked else "comparison", title, "lr" + "r" * len(columns), ("", "n", *titles), rows, note
    )


def other_metrics(table: Table) -> Section:
    """Recorded metrics other than HR, NDCG and MRR: means over the runs of a row."""
    rows: list[Sequence[object]] = []
    for row in table.rows:
        results = pd.DataFrame(
            {(split, name): value for split in SPLITS for name, value in (run.result.get(split) or {}).items()}
            for run in row.complete
        ).mean()
        names = dict.fromkeys(name for _, name in results.index if name.partition("@")[0] not in METRICS)
        for name in names:
            means = (results.get((split, name)) for split in SPLITS)
            rows.append((row.label, metric_title(name), *(None if each is None else f"{each:.4f}" for each in means)))
    return Section("metrics", "Other metrics", "llrr", ("", "metric", "validation", "test"), rows)


def case_section(case: "CaseStudy") -> Section:
    """A user's history, and each model's list, in which a dot marks the item that came next."""
    items = {f"history, last {len(case.history)} of {case.history_length}": case.history}
    items |= {f"flipped, {each.label}": each.flipped for each in case.lists if each.flipped}
    items |= {"next, on test": [case.target]}
    lines = [(name, " · ".join(map(case.title, of_name))) for name, of_name in items.items()]
    rows: list[Sequence[object]] = [
        (rank, *("• " * (item == case.target) + case.title(item) for item in best))
        for rank, best in enumerate(zip(*(each.items for each in case.lists), strict=True), 1)
    ]
    rows.append(("rank of the next", *(f"{each.target_rank:g}" for each in case.lists)))
    head = ("", *(f"{each.label}\nseed {each.seed}" for each in case.lists))
    return Section("case", f"User {case.user}", "l" * len(head), head, rows, lines=lines)


def _significance(table: Table) -> Section:
    def shown(test: PairedTest | None) -> tuple[str | None, str]:
        if test is None:
            return None, ""
        return "< 0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}", f"{test.n:,}"

    rows = []
    for metric, tests in [*table.significance.items(), *table.significance_masked.items()]:
        masked = ", seen masked" * (tests is table.significance_masked.get(metric))
        for other, users in tests.users.items():
            compared = metric_title(f"{metric}@{table.k}") + masked, tests.best, other, f"{users.difference:+.4f}"
            rows.append((*compared, *shown(users), *shown(tests.seeds.get(other))))
    head = ("metric", "best", "against", "difference", "p over users", "n", "p over seeds", "n")
    return Section("significance", "Significance on test", "lllrrrrr", head, rows)


def _groups(table: Table, by: str) -> Section:
    tested = [row.label for row in table.rows if table.cell(row.label, "test", METRICS[0])]
    rows: list[Sequence[object]] = []
    for group in (group for group in table.groups if group.by == by):
        for label in tested:
            cells = (table.cell(label, "test", metric, group.title) for metric in METRICS)
            rows.append((group.title, f"{group.count:,}", label, *cells))
    title, note = {
        "history": ("User groups on test", "By full history length before the test item, half-open."),
        "target": ("Target groups on test", "By the number of training interactions of the test item, half-open."),
        "age": ("Age of the model on test", "By the days from the end of training to the test item, half-open."),
    }[by]
    head = (by, "samples", "", *(metric_title(f"{metric}@{table.k}") for metric in METRICS))
    return Section("groups", title, "lrlrrr", head, rows, note)


def _costs(table: Table) -> Section:
    rows = []
    for row in table.rows:
        means = [row.costs.get(key) for key in COSTS]
        texts = [None if mean is None else f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}" for mean in means]
        rows += [(row.label, *texts)] if row.costs else []
    head = ("", "parameters", "epochs", "s per epoch", "s per evaluation", "peak MB")
    note = "Means over the runs, as recorded, whatever else the machine did: no benchmark. None over different devices."
    return Section("cost", "Cost", "lrrrrr", head, rows, note)


def _record(table: Table) -> Section:
    """Every run, and what is needed to cite the table. Where runs differ, each value is followed by its labels."""
    rows: list[Sequence[object]] = []
    values: dict[str, dict[str, dict[str, None]]] = {}  # the labels of each value, by its name
    for row in table.rows:
        for run in row.runs:
            if run.problem:
                rows.append((row.label, run.seed, None, None, run.name, run.problem))
                continue
            result, data = run.result, run.result["dataset"]
            rows.append((row.label, run.seed, result["epochs"], result["best_epoch"], run.name, result["command"]))
            size = ", ".join(f"{data[key]:,} {key}" for key in ("users", "items", "interactions"))
            trained = {key: run.settings[key] for key in _TRAINING if run.settings.get(key) is not None}
            recorded = {
                "data": f"{run.dataset}: {size}, mean length {data['mean_length']:.1f}",
                "checksum (SHA-256)": data["sha256"],
                **result["protocol"],
                "training": ", ".join(f"{key} {value}" for key, value in trained.items()),
                **{key: result.get(key, "not recorded") for key in ("device", "backend", "threads", "processes")},
                "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
            }
            for name, value in recorded.items():
                values.setdefault(name.replace("_", " "), {}).setdefault(str(value), {})[row.label] = None
    lines = [
        (name, "; ".join(text if len(labels) == 1 else f"{text} ({', '.join(labels[text])})" for text in labels))
        for name, labels in values.items()
    ]
    seeds = sorted({run.seed for row in table.rows for run in row.complete})
    lines += [("seeds", ", ".join(map(str, seeds)))] if seeds else []
    head = ("run", "seed", "epochs", "best epoch", "directory", "command")
    return Section("record", "Record", "lrrrll", head, rows, lines=lines)
