"""The table of one data set: means and deviations over seeds, places, significance, user groups; all from ranks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.groups import user_groups
from recbole_sigma.evaluation.metrics import METRICS, gains_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.evaluation.significance import FEWEST_SEEDS, PairedTest, paired_tests
from recbole_sigma.runs.reader import RecordedRun

PARTS = ("valid", "test")
COSTS = ("n_parameters", "epochs", "seconds_per_epoch", "eval_seconds", "peak_memory_mb")
_MAY_DIFFER = ("max_item_list_length",)  # of a protocol: what a model sees, not what it is asked
_DIGITS = 12  # means that agree so far are equal: sums in another order differ behind
Column = tuple[str, str]  # part, metric


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds (None for one seed); `place` is 1 for the best, 2 for the second."""

    mean: float
    deviation: float | None
    place: int = 0


@dataclass(frozen=True)
class Arm:
    """One row: the runs of a label on one data set. Without a complete run it has no cells."""

    label: str
    runs: tuple[RecordedRun, ...]
    cells: Mapping[Column, Cell]

    @property
    def complete(self) -> list[RecordedRun]:
        """Runs with a result, by seed."""
        return [run for run in self.runs if run.complete]

    @property
    def problems(self) -> list[str]:
        """What seeds without a result, or without one on test, came to."""
        done = {run.seed for run in self.complete}
        problems = [f"seed {run.seed}: {run.problem}" for run in self.runs if run.seed not in done]
        return [*problems, *(f"seed {run.seed}: not tested" for run in self.complete if "test" not in run.parts)]

    def costs(self) -> dict[str, float]:
        """Means over runs, as far as they are recorded."""
        known = {key: [run.result[key] for run in self.complete if key in run.result] for key in COSTS}
        return {key: float(np.mean(values)) for key, values in known.items() if values}


@dataclass(frozen=True)
class Significance:
    """The best arm of a metric on test against each other arm, over users and, where there are enough, over seeds."""

    best: str
    users: Mapping[str, PairedTest]
    seeds: Mapping[str, PairedTest]

    @property
    def mark(self) -> str:
        """`*` where the best is better than every other arm over users, `†` over seeds."""
        others = set(self.users)
        by_users = bool(others) and all(test.significant for test in self.users.values())
        by_seeds = bool(others) and others == set(self.seeds) and all(test.significant for test in self.seeds.values())
        return "*" * by_users + "†" * by_seeds


@dataclass(frozen=True)
class GroupRow:
    """Test metrics of users with similar history lengths: cells by label, then metric."""

    title: str
    count: int
    cells: Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class Table:
    """One data set's.

    Attributes:
        improvement: of the best over the second, as a share of the second; lacks columns with less than two arms.
        significance: by metric, on test; empty with less than two arms.
        groups: empty unless asked for.
    """

    dataset: str
    k: int
    arms: tuple[Arm, ...]
    improvement: Mapping[Column, float | None]
    significance: Mapping[str, Significance]
    groups: tuple[GroupRow, ...]

    @property
    def complete(self) -> list[RecordedRun]:
        """All runs with a result."""
        return [run for arm in self.arms for run in arm.complete]

    def mark(self, label: str, column: Column) -> str:
        """The significance mark of a cell."""
        part, metric = column
        found = self.significance.get(metric)
        return found.mark if part == "test" and found and found.best == label else ""


@dataclass(frozen=True)
class _Measured:
    """Ranks of one arm on one part: `rank` is (seeds, users), users in the same order in all arms."""

    seeds: list[int]
    rank: np.ndarray

    def gains(self, metric: str, k: int) -> np.ndarray:
        """(seeds, users)"""
        return gains_of_ranks(self.rank, k)[metric]


def table_of(runs: Sequence[RecordedRun], k: int = 10, bounds: Sequence[int] = ()) -> Table:
    """The table of runs on one data set, metrics at `k`; with `bounds` also by user groups.

    Raises UserError for runs that do not belong side by side: other data, protocol or users, or the same run twice.
    """
    arms = {label: [run for run in runs if run.label == label] for label in dict.fromkeys(run.label for run in runs)}
    for same in arms.values():
        _check_once(same)
    _check_protocol([run for run in runs if run.complete])
    measured, history_length = _measured(arms)
    columns = [(part, metric) for part in PARTS for metric in METRICS]
    cells = {(part, metric): _cells(_by_seed(measured[part], metric, k)) for part, metric in columns}
    tested = measured["test"]
    groups = [] if history_length is None or not bounds else user_groups(history_length, bounds)
    return Table(
        dataset=runs[0].dataset,
        k=k,
        arms=tuple(
            Arm(label, tuple(same), {column: cells[column][label] for column in columns if label in cells[column]})
            for label, same in arms.items()
        ),
        improvement={column: _improvement(cells[column].values()) for column in columns if len(cells[column]) > 1},
        significance={metric: _significance(tested, metric, k) for metric in METRICS if len(tested) > 1},
        groups=tuple(GroupRow(each.title, each.count, _group_cells(tested, each.members, k)) for each in groups),
    )


def _check_once(runs: Sequence[RecordedRun]) -> None:
    """Refuse two results of one arm and seed: one run would count twice."""
    by_seed: dict[int, RecordedRun] = {}
    for run in runs:
        first = by_seed.setdefault(run.seed, run) if run.complete else run
        if first is not run:
            raise UserError(f"{first.name} and {run.name} are both {run.label} with seed {run.seed}; leave one out")


def _check_protocol(runs: Sequence[RecordedRun]) -> None:
    """Refuse results of other data, or of another protocol, than the first's."""

    def facts(run: RecordedRun) -> dict[str, Any]:
        protocol = {key: value for key, value in run.result["protocol"].items() if key not in _MAY_DIFFER}
        return {"checksum of the data": run.result["dataset"].get("sha256"), **protocol}

    for run in runs[1:]:
        ours, theirs = facts(runs[0]), facts(run)
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                both = f"{_or_none(ours.get(key))} and {_or_none(theirs.get(key))}"
                raise UserError(f"{runs[0].name} and {run.name} do not belong in one table: {key} is {both}")


def _measured(
    arms: Mapping[str, Sequence[RecordedRun]],
) -> tuple[dict[str, dict[str, _Measured]], np.ndarray | None]:
    """By part, the arms with a result on it; and the users' history lengths on test. Of runs only ranks are kept."""
    measured: dict[str, dict[str, _Measured]] = {part: {} for part in PARTS}
    history_length = None
    for part in PARTS:
        first: tuple[str, Ranks] | None = None
        for label, same in arms.items():
            runs, rank = [run for run in same if part in run.parts], []
            for run in runs:
                ranks = run.ranks(part)
                first = first or (run.name, ranks)
                _check_users(part, *first, run.name, ranks)
                rank.append(ranks.rank)
            if runs:
                measured[part][label] = _Measured([run.seed for run in runs], np.stack(rank))
        history_length = first[1].history_length if first else None
    return measured, history_length


def _check_users(part: str, name: str, ranks: Ranks, other: str, others: Ranks) -> None:
    """Refuse runs that were asked for other things."""
    problem = ""
    if not np.array_equal(ranks.user, others.user):
        alone = len(np.setdiff1d(ranks.user, others.user)), len(np.setdiff1d(others.user, ranks.user))
        problem = f"{part} users differ: {alone[0]} only in the first, {alone[1]} only in the second"
    elif (wrong := ranks.target != others.target).any():
        problem = f"{part} targets of {int(wrong.sum())} users differ"
    elif (wrong := ranks.history_length != others.history_length).any():
        problem = f"{part} history lengths of {int(wrong.sum())} users differ"
    if problem:
        raise UserError(f"{name} and {other} do not belong in one table: {problem}")


def _by_seed(
    measured: Mapping[str, _Measured], metric: str, k: int, members: np.ndarray | slice = slice(None)
) -> dict[str, np.ndarray]:
    """Each arm's metric, (seeds,)."""
    return {label: each.gains(metric, k)[:, members].mean(axis=1) for label, each in measured.items()}


def _cells(values: Mapping[str, np.ndarray]) -> dict[str, Cell]:
    """Each arm's (seeds,) values as a cell. Equal means share their place; a place that is shared by more is not given
    below; of one arm nothing is best."""
    cells = {
        label: Cell(float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else None)
        for label, each in values.items()
    }
    means = {label: round(cell.mean, _DIGITS) for label, cell in cells.items()}
    if len(means) < 2:
        return cells
    place = {label: 1 + sum(other > mean for other in means.values()) for label, mean in means.items()}
    return {label: replace(cell, place=place[label] if place[label] <= 2 else 0) for label, cell in cells.items()}


def _improvement(cells: Iterable[Cell]) -> float | None:
    """Of the best over the second, which may be as good; None over nothing, of which there is no share."""
    best, second = sorted((cell.mean for cell in cells), reverse=True)[:2]
    if round(best, _DIGITS) == round(second, _DIGITS):
        return 0.0
    return best / second - 1 if second else None


def _significance(measured: Mapping[str, _Measured], metric: str, k: int) -> Significance:
    """The best on test against each other; a user's gain is the mean over the arm's seeds."""
    gains = {label: each.gains(metric, k) for label, each in measured.items()}
    best = max(gains, key=lambda label: round(float(gains[label].mean()), _DIGITS))

    def of_seeds(label: str, seeds: Iterable[int]) -> np.ndarray:
        return np.array([gains[label][measured[label].seeds.index(seed)].mean() for seed in seeds])

    by_users, by_seeds = {}, {}
    for label in gains:
        if label == best:
            continue
        by_users[label] = gains[best].mean(axis=0), gains[label].mean(axis=0)
        common = sorted(set(measured[best].seeds) & set(measured[label].seeds))
        if len(common) >= FEWEST_SEEDS:
            by_seeds[label] = of_seeds(best, common), of_seeds(label, common)
    n_users = gains[best].shape[1]
    return Significance(best, paired_tests(by_users) if n_users > 1 else {}, paired_tests(by_seeds))


def _group_cells(measured: Mapping[str, _Measured], members: np.ndarray, k: int) -> dict[str, dict[str, Cell]]:
    """Cells by label, then metric, of the users that are members; none without users."""
    if not members.any():
        return {}
    cells = {metric: _cells(_by_seed(measured, metric, k, members)) for metric in METRICS}
    return {label: {metric: cells[metric][label] for metric in METRICS} for label in measured}


def _or_none(value: Any) -> str:
    return "not recorded" if value is None else repr(value)
