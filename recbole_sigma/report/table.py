"""Tables of recorded runs: means and deviations over seeds, ranks, significance, user groups; all from saved ranks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.groups import UserGroup, user_groups
from recbole_sigma.evaluation.metrics import METRICS, gains_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.evaluation.significance import FEWEST_SEEDS, PairedTest, paired_tests
from recbole_sigma.runs.reader import RecordedRun

if TYPE_CHECKING:
    from recbole_sigma.report.case_study import CaseStudy

SPLITS = ("valid", "test")
COLUMNS = [(split, metric) for split in SPLITS for metric in METRICS]
COSTS = ("n_parameters", "epochs", "seconds_per_epoch", "eval_seconds", "peak_memory_mb")
_MAY_DIFFER = ("max_item_list_length",)  # part of the protocol, but it says what a model sees, not what it is asked
_DIGITS = 12  # means that agree up to here are equal: sums in another order differ in later digits
_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]+$")  # of a run directory's name


class Cell(NamedTuple):
    """Mean and standard deviation over seeds (None for one seed), rank (1 best, 2 second, else 0), significance."""

    mean: float
    deviation: float | None
    rank: int = 0
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """The runs of one label on one data set.

    Attributes:
        runs: finished ones, one per seed, and unfinished ones.
        problems: seeds without a result or without test metrics, and runs that do not count.
        costs: means over finished runs, where they are recorded.
    """

    label: str
    runs: tuple[RecordedRun, ...]
    problems: tuple[str, ...]
    costs: Mapping[str, float]

    @property
    def complete(self) -> list[RecordedRun]:
        """The finished runs, sorted by seed."""
        return [run for run in self.runs if run.complete]


@dataclass(frozen=True)
class Significance:
    """The best row of a test metric against each other row, over users and, if there are enough, over seeds."""

    best: str
    users: Mapping[str, PairedTest]
    seeds: Mapping[str, PairedTest]

    @property
    def mark(self) -> str:
        """`*` if the best row is better than every other row over users, `†` over seeds."""
        marks = {"*": self.users, "†": self.seeds if self.seeds.keys() == self.users.keys() else {}}
        return "".join(
            mark for mark, tests in marks.items() if tests and all(test.significant for test in tests.values())
        )


@dataclass(frozen=True)
class Table:
    """The table of one data set.

    Attributes:
        cells: by label, user group ("" for all users), split and metric; a row without a finished run has none.
        improvement: of the best row over the second, relative to the second (None if that is 0); by split and metric,
            for at least two rows.
        significance: by test metric, for at least two rows.
        groups: of the test users; empty unless asked for.
    """

    dataset: str
    k: int
    rows: tuple[Row, ...]
    cells: Mapping[tuple[str, str, str, str], Cell]
    improvement: Mapping[tuple[str, str], float | None]
    significance: Mapping[str, Significance]
    groups: tuple[UserGroup, ...]

    def cell(self, label: str, split: str, metric: str, group: str = "") -> Cell | None:
        """A cell of a row, or None if the row has no such metric."""
        return self.cells.get((label, group, split, metric))

    @property
    def complete(self) -> list[RecordedRun]:
        """All finished runs that count."""
        return [run for row in self.rows for run in row.complete]

    @property
    def problems(self) -> list[str]:
        """Problems of all rows, each in one line."""
        return [f"{row.label}, {problem}" for row in self.rows for problem in row.problems]


@dataclass(frozen=True)
class Report:
    """What a reader is shown: a table for each data set, the command that repeats the report, case studies."""

    title: str
    tables: tuple[Table, ...]
    command: str = ""
    cases: "tuple[CaseStudy, ...]" = ()


def table_of(runs: Sequence[RecordedRun], k: int = 10, bounds: Sequence[int] = ()) -> Table:
    """The table of runs on one data set, metrics at `k`; with `bounds` also by user groups.

    Raises UserError for runs that are not comparable: other data, protocol or users.
    """
    _check_protocol([run for run in runs if run.complete])
    labels = dict.fromkeys(run.label for run in runs)
    rows = tuple(_row(label, [run for run in runs if run.label == label]) for label in labels)

    values: list[tuple[Any, ...]] = []
    tested: dict[str, dict[int, np.ndarray]] = {}  # ranks on test by label and seed
    groups: list[UserGroup] = []
    for split in SPLITS:
        first: tuple[str, Ranks] | None = None
        for run in (run for row in rows for run in row.complete if split in run.splits):
            ranks = run.ranks(split)
            first = first or (run.name, ranks)
            _check_users(split, *first, run.name, ranks)
            if split == "test":
                tested.setdefault(run.label, {})[run.seed] = ranks.rank
                groups = groups or (user_groups(ranks.history_length, bounds) if bounds else [])
            for metric, gain in gains_of_ranks(ranks.rank, k).items():
                values.append((run.label, "", split, metric, run.seed, gain.mean()))
                filled = [group for group in groups if group.count]
                values += [
                    (run.label, each.title, split, metric, run.seed, gain[each.members].mean()) for each in filled
                ]

    keys = ["label", "group", "split", "metric"]
    frame = pd.DataFrame(values, columns=[*keys, "seed", "value"]).astype({"value": float})
    means = frame.groupby(keys, sort=False)["value"].agg(["mean", "std"])
    columns = means["mean"].round(_DIGITS).groupby(level=keys[1:])
    ranks = columns.rank(method="min", ascending=False)
    means["rank"] = ranks.where((ranks <= 2) & (columns.transform("size") > 1), 0).astype(int)
    significance = {metric: _significance(tested, metric, k) for metric in METRICS if len(tested) > 1}
    cells = {}
    for index, mean, deviation, rank in means.itertuples(name=None):
        label, group, split, metric = index
        tests = significance.get(metric) if split == "test" and not group else None
        mark = tests.mark if tests and tests.best == label else ""
        cells[index] = Cell(mean, None if np.isnan(deviation) else deviation, rank, mark)
    improvement: dict[tuple[str, str], float | None] = {}
    for (group, split, metric), column in columns:
        if not group and len(column) > 1:
            best, second = column.nlargest(2)
            improvement[split, metric] = best / second - 1 if second else None if best else 0.0
    return Table(runs[0].dataset, k, rows, cells, improvement, significance, tuple(groups))


def _row(label: str, runs: Sequence[RecordedRun]) -> Row:
    """The row of a label. If a run was repeated, the newest finished one counts; one that was tested comes first."""

    def age(run: RecordedRun) -> tuple[Any, ...]:
        assert run.folder is not None
        stamp = _STAMP.search(run.name)
        return "test" in run.splits, stamp[1] if stamp else "", (run.folder / "result.json").stat().st_mtime

    newest = {run.seed: run for run in sorted((run for run in runs if run.complete), key=age)}
    problems = [f"seed {run.seed}: {run.problem}" for run in runs if run.seed not in newest]
    for seed, run in sorted(newest.items()):
        older = [other for other in runs if other.complete and other.seed == seed and other is not run]
        for other in older:
            if other.varied != run.varied:
                raise UserError(f"{other.name} and {run.name} are both {label} with seed {seed}; leave one out")
        if "test" not in run.splits:
            problems.append(f"seed {seed}: not tested")
        if older:
            names = ", ".join(other.name for other in older)
            problems.append(f"seed {seed}: was repeated; {run.name} is the newest and counts, left out: {names}")
    kept = tuple(run for run in runs if not run.complete or newest[run.seed] is run)
    costs = pd.DataFrame([run.result for run in newest.values()]).reindex(columns=COSTS).mean()
    return Row(label, kept, tuple(problems), costs.dropna().to_dict())


def _check_protocol(runs: Sequence[RecordedRun]) -> None:
    """Refuse results of other data, or of another protocol, than those of the first run."""
    first: dict[str, Any] = {}
    for run in runs:
        asked = {"checksum of the data": run.result["dataset"].get("sha256"), **run.result["protocol"]}
        first = first or asked
        for key in {**first, **asked}:
            if key not in _MAY_DIFFER and first.get(key) != asked.get(key):
                both = " and ".join(
                    "not recorded" if each.get(key) is None else repr(each[key]) for each in (first, asked)
                )
                raise UserError(f"{runs[0].name} and {run.name} do not belong in one table: {key} is {both}")


def _check_users(split: str, name: str, ranks: Ranks, other: str, others: Ranks) -> None:
    """Refuse runs that were evaluated on other users or targets."""
    differing = {"users": len(np.setxor1d(ranks.user, others.user))}
    if not differing["users"]:
        differing["targets"] = int((ranks.target != others.target).sum())
        differing["history lengths"] = int((ranks.history_length != others.history_length).sum())
    for what, count in differing.items():
        if count:
            raise UserError(f"{name} and {other} do not belong in one table: {count} {what} on {split} differ")


def _significance(tested: Mapping[str, Mapping[int, np.ndarray]], metric: str, k: int) -> Significance:
    """Test the best row against each other; a user's gain is the mean over the row's seeds.

    Args:
        tested: ranks of the test users, (users,), by label and seed.
    """
    gains = {
        label: {seed: gains_of_ranks(rank, k)[metric] for seed, rank in by_seed.items()}
        for label, by_seed in tested.items()
    }
    users = {label: np.mean(list(by_seed.values()), axis=0) for label, by_seed in gains.items()}
    best = max(users, key=lambda label: round(float(users[label].mean()), _DIGITS))
    by_users, by_seeds = {}, {}
    for label in (label for label in gains if label != best):
        by_users[label] = users[best], users[label]
        common = sorted(gains[best].keys() & gains[label].keys())
        if len(common) >= FEWEST_SEEDS:
            first, second = (np.array([gains[each][seed].mean() for seed in common]) for each in (best, label))
            by_seeds[label] = first, second
    return Significance(best, paired_tests(by_users) if len(users[best]) > 1 else {}, paired_tests(by_seeds))
