"""A sweep on disk: what it compares, and a place for each trial.

`<sweep>/<hash of the trial's settings>/` holds the folder of its run and `trial.json`, what is known of it. Whoever
trains a trial holds a lock on its place, so that processes, machines and sweeps that go on never do one twice.
"""

import csv
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_sigma.config.values import plain
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.space import Space
from recbole_sigma.quick_start import MAY_CHANGE, RunResult, resume, run
from recbole_sigma.runs.files import write_file

Report = Callable[[int, float], None]

# Settings that a trial takes anew each time it is begun: where and how fast, not what.
_MACHINE = set(MAY_CHANGE) - {"epochs", "stopping_step", "checkpoint_dir"}
_QUIET = {"show_progress": False, "state": "WARNING"}
_FAILED = 0.0  # as the score of a trial without one: of Hit, NDCG and MRR the worst


@dataclass(frozen=True)
class Outcome:
    """What is known of a trial.

    Attributes:
        values: its settings, as far as the sweep varies them.
        samples: what Hyperopt or Ray drew for them.
        started: when it was first begun, in seconds of the epoch.
        status: `complete`; `stopped` by the scheduler; `failed`, for the reason in `error`; `unfinished`.
        run: the name of its run's folder, in the trial's place.
        valid: validation metrics of the best epoch.
    """

    values: dict[str, Any]
    samples: dict[str, Any]
    started: float
    status: str = "unfinished"
    run: str = ""
    epochs: int = 0
    best_epoch: int = -1
    valid: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.status in ("complete", "stopped")


@dataclass(frozen=True)
class Sweep:
    """What is compared: a model on a data set with the user's settings, over a space. Plain values: it travels."""

    folder: Path
    model: str
    dataset: str
    given: dict[str, Any]
    space: Space
    metric: str  # of validation, that chooses

    def place(self, values: Mapping[str, Any]) -> Path:
        """The trial's."""
        text = json.dumps(values, sort_keys=True)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def machine(self) -> dict[str, Any]:
        """Settings of a trial that say where and how fast."""
        return {key: value for key, value in self.given.items() if key in _MACHINE} | _QUIET

    def outcomes(self) -> list[Outcome]:
        """Of all trials so far, in the order in which they were begun."""
        found = [read_outcome(file.parent) for file in self.folder.glob("[!.]*/trial.json")]
        return sorted((each for each in found if each), key=lambda each: each.started)

    def score(self, outcome: Outcome) -> float:
        """What chooses, in full precision."""
        return outcome.valid.get(self.metric, _FAILED)

    def run_folder(self, outcome: Outcome) -> Path:
        """The folder of a trial's run."""
        return self.place(outcome.values) / outcome.run


def train_trial(sweep: Sweep, samples: Mapping[str, Any], report: Report = lambda epochs, score: None) -> Outcome:
    """Do what is left of a trial; waits for whoever is at it.

    `report(epochs, score)` is told of every epoch with a validation, past ones first, and the best score so far. It may
    raise to end the trial. Test is not evaluated. A mistake of the trial's settings is an outcome, not an error.
    """
    values = sweep.space.values(samples)
    place = sweep.place(values)
    place.mkdir(parents=True, exist_ok=True)
    with _alone_in(place):
        before = read_outcome(place) or Outcome(values, plain(samples), time.time())
        folder = _run_in(place)
        told = _Told(sweep.metric, report)
        for row in _rows(folder):
            told.on_epoch_end(row)
        if before.done:
            return before
        write_outcome(place, replace(before, status="unfinished", error=""))
        try:
            outcome = _complete(sweep, before, _train(sweep, values, place, folder, [told]))
        except UserError as error:
            outcome = replace(before, status="failed", error=str(error))
        write_outcome(place, outcome)
        return outcome


def _train(
    sweep: Sweep, values: Mapping[str, Any], place: Path, folder: Path | None, callbacks: list[Any]
) -> RunResult:
    if int(sweep.given.get("nproc", 1)) > 1:  # the run's processes tell no epochs
        callbacks = []
    if folder:
        return resume(folder, sweep.machine(), callbacks=callbacks, test=False)
    settings = {**sweep.given, **values, **_QUIET, "checkpoint_dir": str(place)}
    return run(sweep.model, sweep.dataset, settings=settings, callbacks=callbacks, test=False)


def _complete(sweep: Sweep, before: Outcome, result: RunResult) -> Outcome:
    return replace(
        before,
        status="complete",
        error="",
        run=result.folder.name,
        epochs=len(_rows(result.folder)),
        best_epoch=result.best_epoch,
        valid=result.valid,
    )


def mark_stopped(sweep: Sweep, values: Mapping[str, Any]) -> Outcome | None:
    """Note that a scheduler has ended a trial, which keeps its best epoch; None for one that it has not."""
    place = sweep.place(values)
    outcome, folder = read_outcome(place), _run_in(place)
    rows = [row for row in _rows(folder) if sweep.metric in row]
    if outcome is None or outcome.status != "unfinished" or folder is None or not rows:
        return None
    best = max(rows, key=lambda row: row[sweep.metric])  # of equal ones the first, as in training
    stopped = replace(
        outcome,
        status="stopped",
        run=folder.name,
        epochs=len(_rows(folder)),
        best_epoch=int(best["epoch"]),
        valid={name: value for name, value in best.items() if "@" in name},
    )
    write_outcome(place, stopped)
    return stopped


def finish(sweep: Sweep, outcome: Outcome) -> RunResult:
    """The winner's result, with test: evaluated here, once, by the weights of its best epoch."""
    shorter = {"epochs": outcome.epochs} if outcome.status == "stopped" else {}
    with _alone_in(sweep.place(outcome.values)):
        return resume(sweep.run_folder(outcome), {**sweep.machine(), **shorter})


class _Told:
    """Turns rows of metrics.csv into reports."""

    def __init__(self, metric: str, report: Report) -> None:
        self._metric, self._report = metric, report
        self._best = _FAILED

    def on_epoch_end(self, row: Mapping[str, float]) -> None:
        if self._metric in row:
            self._best = max(self._best, row[self._metric])
            self._report(int(row["epoch"]) + 1, self._best)


def _run_in(place: Path) -> Path | None:
    """The folder of the trial's run, once it is there."""
    return next((file.parent for file in sorted(place.glob("[!.]*/config.yaml"))), None)


def _rows(folder: Path | None) -> list[dict[str, float]]:
    """metrics.csv without its empty cells; none before the first epoch. Raises UserError for a file that is none."""
    file = (folder or Path()) / "metrics.csv"
    if folder is None or not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as content:
            return [{name: float(each) for name, each in row.items() if each} for row in csv.DictReader(content)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{file}: not a table of metrics: {error}") from None


def write_outcome(place: Path, outcome: Outcome) -> None:
    """trial.json"""
    text = json.dumps(asdict(outcome), indent=2, ensure_ascii=False) + "\n"

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    write_file(place / "trial.json", write)


def read_outcome(place: Path) -> Outcome | None:
    """trial.json, or None if there is none. Raises UserError for a file that is none of ours."""
    file = place / "trial.json"
    kinds = {name: type(each) for name, each in asdict(Outcome({}, {}, 0.0)).items()}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or {name: type(each) for name, each in content.items()} != kinds:
        raise UserError(f"{file}: not a trial of a sweep; delete it, and the trial is read from its run's folder")
    return Outcome(**content)


@contextmanager
def _alone_in(place: Path) -> Iterator[None]:
    """Wait until nobody else is at the trial."""
    lock = os.open(place, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield
    finally:
        os.close(lock)
