"""Tables of recorded runs: means and deviations over seeds, ranks, significance, user groups; all from saved ranks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.groups import Group, age_groups, target_groups, user_groups
from recbole_sigma.evaluation.metrics import METRICS, gains_of_ranks
from recbole_sigma.evaluation.protocol import is_sampled
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.evaluation.significance import FEWEST_SEEDS, PairedTest, paired_tests
from recbole_sigma.runs.reader import RecordedRun

if TYPE_CHECKING:
    from recbole_sigma.report.case_study import CaseStudy

SPLITS = ("valid", "test")
MASKED = {split: f"{split}, seen masked" for split in SPLITS}  # the same scores, with seen items left out
COLUMNS = [(split, metric) for split in SPLITS for metric in METRICS]
MACHINE_COSTS = ("seconds_per_epoch", "eval_seconds", "peak_memory_mb")
COSTS = ("n_parameters", "epochs", *MACHINE_COSTS)
_CANDIDATES = "number of candidates"
_DIGITS = 12  # means that agree up to here are equal: sums in another order differ in later digits


class Cell(NamedTuple):
    """Mean and standard deviation over seeds (None for one seed), rank (1 best, 2 second, else 0), significance."""

    mean: float
    deviation: float | None
    rank: int
    mark: str


@dataclass(frozen=True)
class Row:
    """The runs of one label on one data set: one finished run per seed, and unfinished ones."""

    label: str
    runs: tuple[RecordedRun, ...]
    problems: tuple[str, ...]  # seeds without a result or test metrics, and runs that do not count
    costs: Mapping[str, float]  # means over the finished runs; not of seconds and MB if they had different devices

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
        mark = "*" * all(test.significant for test in self.users.values())
        every_row = self.seeds.keys() == self.users.keys()
        return mark + "†" * (every_row and all(test.significant for test in self.seeds.values()))


@dataclass(frozen=True)
class Table:
    """The table of one data set; improvement and significance are for at least two rows.

    `means` has the columns mean, deviation (NaN for one seed), rank and mark as in `Cell`, by label, group ("" for all
    users), split and metric. `improvement` is that of the best mean over the second, relative to the second (None if
    that is 0), by split and metric; `significance` is by test metric. `ranking` says which items targets are ranked
    among; of the ranks without seen items, the split is `MASKED[split]` and the tests are `significance_masked`.
    """

    dataset: str
    k: int
    rows: tuple[Row, ...]
    means: pd.DataFrame
    improvement: Mapping[tuple[str, str], float | None]
    significance: Mapping[str, Significance]
    significance_masked: Mapping[str, Significance]
    ranking: str
    groups: tuple[Group, ...]

    def cell(self, label: str, split: str, metric: str, group: str = "") -> Cell | None:
        """A cell of a row, or None if the row has no such metric."""
        key = label, group, split, metric
        if key not in self.means.index:
            return None
        mean, deviation, rank, mark = self.means.loc[key, :]
        return Cell(mean, None if np.isnan(deviation) else deviation, rank, mark)

    @property
    def problems(self) -> list[str]:
        """Problems of all rows, each in one line."""
        problems = [f"{row.label}, {problem}" for row in self.rows for problem in row.problems]
        protocols = [run.result["protocol"] for row in self.rows for run in row.complete]
        if any(map(is_sampled, protocols)):
            problems.append(f"targets are ranked among {protocols[0]['ranking']}")
        return problems


@dataclass(frozen=True)
class Report:
    """What a reader is shown; `command` repeats the report."""

    title: str
    tables: tuple[Table, ...]
    command: str = ""
    cases: "tuple[CaseStudy, ...]" = ()
    masked: bool = False  # whether the summary on the terminal shows the ranks without seen items, too


def table_of(runs: Sequence[RecordedRun], k: int = 10, bounds: Sequence[int] = ()) -> Table:
    """The table of runs on one data set, at `k`, by groups for `bounds`; UserError for other data, protocol, users."""
    _check_protocol([run for run in runs if run.complete])
    labels = dict.fromkeys(run.label for run in runs)
    rows = tuple(_row(label, [run for run in runs if run.label == label]) for label in labels)

    values: list[tuple[Any, ...]] = []
    test_splits = "test", MASKED["test"]
    tested: dict[str, dict[str, dict[str, dict[int, np.ndarray]]]]
    tested = {split: {metric: {} for metric in METRICS} for split in test_splits}
    groups: list[Group] = []
    users = np.empty(0, dtype=int)  # number of each test sample's user
    for split in SPLITS:
        evaluated = [(run, run.ranks(split)) for row in rows for run in row.complete if split in run.splits]
        _check_users(split, evaluated)
        if split == "test" and evaluated:
            first = evaluated[0][1]
            users = np.unique(first.user, return_inverse=True)[1]
            groups = user_groups(first.history_length, bounds) if bounds else []
            if groups and first.target_frequency is not None:
                groups += target_groups(first.target_frequency)
            if groups and first.target_age is not None:
                groups += age_groups(first.target_age)
        members: dict[str, Any] = {"": slice(None), **{group.title: group.members for group in groups if group.count}}
        shown = [(run, split, ranks.rank) for run, ranks in evaluated]
        shown += [(run, MASKED[split], each.rank_masked) for run, each in evaluated if each.rank_masked is not None]
        for run, name, rank in shown:
            for metric, gain in gains_of_ranks(rank, k).items():
                if name in test_splits and users.max() > 0:
                    tested[name][metric].setdefault(run.label, {})[run.seed] = gain
                for group, samples in members.items():
                    values.append((run.label, group, name, metric, run.seed, gain[samples].mean()))

    keys = ["label", "group", "split", "metric"]
    frame = pd.DataFrame(values, columns=[*keys, "seed", "value"]).astype({"value": float})
    means = frame.groupby(keys)["value"].agg(mean="mean", deviation="std")
    columns = means["mean"].round(_DIGITS).groupby(keys[1:])
    rank = columns.rank(method="min", ascending=False)
    means["rank"] = rank.where((rank <= 2) & (columns.transform("size") > 1), 0).astype(int)
    means["mark"] = ""
    significance: dict[str, dict[str, Significance]] = {}
    for split, by_metric in tested.items():
        significance[split] = {
            metric: _significance(gains, users) for metric, gains in by_metric.items() if len(gains) > 1
        }
        for metric, tests in significance[split].items():
            means.loc[(tests.best, "", split, metric), "mark"] = tests.mark
    improvement: dict[tuple[str, str], float | None] = {}
    for (group, split, metric), column in columns:
        if not group and len(column) > 1:
            best, second = column.nlargest(2)
            improvement[split, metric] = best / second - 1 if second else None if best else 0.0
    ranking = next((str(run.result["protocol"].get("ranking")) for row in rows for run in row.complete), "")
    test, masked = (significance[split] for split in test_splits)
    return Table(runs[0].dataset, k, rows, means, improvement, test, masked, ranking, tuple(groups))


def _row(label: str, runs: Sequence[RecordedRun]) -> Row:
    """The row of a label. If a run was repeated, the newest finished one counts; one that was tested comes first."""

    def age(run: RecordedRun) -> tuple[Any, ...]:
        stamps = re.findall(r"-(\d{8}-\d{6})-[0-9a-f]+$", run.name)
        return "test" in run.splits, stamps, Path(run.folder or "", "result.json").stat().st_mtime

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
    if len({run.result.get("device") for run in newest.values()}) > 1:
        costs = costs.drop([*MACHINE_COSTS])
    return Row(label, kept, tuple(problems), costs.dropna().to_dict())


def _check_protocol(runs: Sequence[RecordedRun]) -> None:
    """Refuse results of other data, or of another protocol, than those of the first run."""
    protocols, files = [], dict[str, tuple[str, RecordedRun]]()
    for run in runs:
        data = run.result["dataset"]
        counts = {_CANDIDATES: data.get("candidates", data["items"])}
        protocols.append({"checksum of the data": data["sha256"], **counts, **run.result["protocol"]})
        for name, sha256 in data.get("features", {}).items():
            before, reader = files.setdefault(name, (sha256, run))
            if before != sha256:
                what = f"they read different files {name}"
                raise UserError(f"{reader.name} and {run.name} do not belong in one table: {what}")
    trained = [run.result.get("samples_per_second") != 0 for run in runs]  # or fitted, or an ensemble
    chosen = next((own.get("selection") for own, each in zip(protocols, trained, strict=True) if each), None)
    for own, each in zip(protocols, trained, strict=True):
        if not each:
            own["selection"] = chosen  # nothing was: there is one epoch
    for run, other in zip(runs, protocols, strict=True):
        first = protocols[0]
        # The length is part of the protocol, but it says what a model sees, not what it is asked.
        for key in sorted((first.keys() | other.keys()) - {"max_item_list_length"}):
            if first.get(key) != other.get(key):
                both = f"{first.get(key, 'not recorded')!r} and {other.get(key, 'not recorded')!r}"
                hint = "; load_col says whether a run reads the .item file" if key == _CANDIDATES else ""
                raise UserError(f"{runs[0].name} and {run.name} do not belong in one table: {key} is {both}{hint}")


def _check_users(split: str, evaluated: Sequence[tuple[RecordedRun, Ranks]]) -> None:
    """Refuse runs that were evaluated on other users, targets, histories or training items than the first."""
    for run, ranks in evaluated[1:]:
        first, expected = evaluated[0]
        for name in (ranks.arrays().keys() & expected.arrays().keys()) - {"rank", "rank_masked"}:
            if not np.array_equal(ranks.arrays()[name], expected.arrays()[name]):
                what = f"the arrays {name!r} of their ranks-{split}.npz differ"
                raise UserError(f"{first.name} and {run.name} do not belong in one table: {what}")


def _significance(gains: Mapping[str, Mapping[int, np.ndarray]], user: np.ndarray) -> Significance:
    """Test the best row against each other, by gains (samples,) of each label and seed; over users, of means of seeds.

    `user` (samples,) numbers the users from 0. Samples of one user are not independent: their mean counts once.
    """
    samples = {label: np.mean(list(by_seed.values()), axis=0) for label, by_seed in gains.items()}
    best = max(samples, key=lambda label: round(float(samples[label].mean()), _DIGITS))
    users = samples
    if user.max() + 1 < len(user):
        users = {label: np.bincount(user, gain) / np.bincount(user) for label, gain in samples.items()}
    by_users, by_seeds = {}, {}
    for label in (label for label in gains if label != best):
        by_users[label] = users[best], users[label]
        common = sorted(gains[best].keys() & gains[label].keys())
        if len(common) >= FEWEST_SEEDS:
            first, second = (np.array([gains[each][seed].mean() for seed in common]) for each in (best, label))
            by_seeds[label] = first, second
    return Significance(best, paired_tests(by_users), paired_tests(by_seeds))
