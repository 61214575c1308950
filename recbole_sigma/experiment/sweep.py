"""A sweep on disk: its trials, each a normal run that is not tested, and two files about them.

    <sweep>/tuning.json      what is searched and how, every trial, the winner: enough to resume the sweep
    <sweep>/trials.csv       one row per trial
    <sweep>/<key>/           a trial, as `store.prepare` makes it; its run directory is inside

Only the leading process writes the two files. That a trial was stopped or failed is recorded in tuning.json alone;
everything else about a trial is read from its run directory.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_sigma.config.config import Config
from recbole_sigma.errors import UserError, one_line
from recbole_sigma.experiment.space import Space, parse_space
from recbole_sigma.experiment.store import complete_run, run_key, unfinished_run
from recbole_sigma.runs.files import json_text, read_json, write_text
from recbole_sigma.runs.reader import read_epochs
from recbole_sigma.runs.result import RunResult

# What tuning.json holds as it is, with the type of each.
_COPIED: dict[str, Any] = {
    "model": str, "dataset": str, "given": dict, "tool": str, "algo": str, "max_evals": int | None, "options": dict,
    "key": str, "finished": int,
}  # fmt: skip
_STOPPING = ("asha", "grace_period", "reduction_factor")  # options that decide which trials are stopped


@dataclass(frozen=True)
class Trial:
    """What is known about a trial.

    Attributes:
        values: its settings, as far as the sweep varies them.
        status: `complete`; `stopped` by the scheduler; `failed`, for the reason in `error`; `unfinished`.
        folder: its directory in the sweep's, or its run directory once there is one; "" if the settings are refused.
        epochs, best_epoch, valid: epochs so far; the best one, from 0, and its validation metrics.
    """

    values: dict[str, Any]
    status: str = "unfinished"
    folder: str = ""
    epochs: int = 0
    best_epoch: int = -1
    valid: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.status in ("complete", "stopped")


@dataclass
class Sweep:
    """What is compared: a model on a data set with the user's settings, over a space, and how settings are drawn.

    Attributes:
        given: the settings that all trials share, checkpoint_dir left out.
        metric: the validation metric that chooses.
        options: those of `search.RAY_OPTIONS` that were given.
        key: what `current_key` was when the sweep started.
        trials: in the order in which they started.
        finished: trials of the finished search; 0 while it is not finished, and if a trial failed: it runs again.
    """

    folder: Path
    model: str
    dataset: str
    given: dict[str, Any]
    space: Space
    metric: str
    tool: str
    algo: str
    max_evals: int | None
    options: dict[str, Any]
    key: str = ""
    trials: list[Trial] = field(default_factory=list)
    finished: int = 0

    def config(self, values: Mapping[str, Any] | None = None) -> Config:
        """The configuration of a trial, or of what all trials share."""
        return Config(self.model, self.dataset, settings={**self.given, **(values or {})})

    def current_key(self) -> str:
        """Hash of everything that decides the result: settings, data, version, space, and how settings are drawn."""
        stopping = {name: self.options[name] for name in _STOPPING if name in self.options}
        decides = [run_key(self.config()), str(self.space), self.tool, self.algo, stopping]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def trial(self, values: Mapping[str, Any]) -> Trial:
        """The trial of these settings as recorded, or a new one."""
        text = json.dumps(values)  # 1 and true differ as text
        return next((trial for trial in self.trials if json.dumps(trial.values) == text), Trial(dict(values)))

    def score(self, trial: Trial) -> float:
        """What chooses, in full precision; 0 for a trial without an evaluation, of all metrics the worst."""
        return trial.valid.get(self.metric, 0.0)

    def record(self, values: Mapping[str, Any], error: str = "", running: bool = False) -> Trial:
        """Note that a trial starts (`running`) or is finished, and write the files.

        A trial that is neither running nor complete, and has no error, was stopped by the scheduler.
        """
        before, folder = self.trial(values), ""
        with suppress(UserError):  # for settings that are refused; the trial itself says so
            folder = before.folder or run_key(self.config(values))
        status = "failed" if error else before.status if before.status == "stopped" else "unfinished"
        trial = self.read(Trial(dict(values), status, folder, error=error))
        if not running and trial.status == "unfinished" and trial.valid:
            trial = replace(trial, status="stopped")
        if before in self.trials:
            self.trials[self.trials.index(before)] = trial
        else:
            self.trials.append(trial)
        self.write()
        return trial

    def read(self, trial: Trial) -> Trial:
        """The trial with what its run directory says; only `stopped` and `failed` are not known there."""
        directory = self.folder / Path(trial.folder).parts[0] if trial.folder else None
        run = (complete_run(directory) or unfinished_run(directory)) if directory else None
        rows = read_epochs(run) if run else []
        scored = [row for row in rows if self.metric in row]
        best = max(scored, key=lambda row: row[self.metric], default={"epoch": -1.0})  # the first one, as in training
        status = trial.status
        if status != "failed" and not (status == "stopped" and scored):
            status = "complete" if run and (run / "result.json").is_file() else "unfinished"
        return replace(
            trial,
            status=status,
            folder=str(run.relative_to(self.folder)) if run else trial.folder,
            epochs=len(rows),
            best_epoch=int(best["epoch"]),
            valid={name: value for name, value in best.items() if "@" in name},
        )

    def best(self) -> Trial:
        """The trial with the best validation score, of equal ones the first. Raises UserError if none has a result."""
        done = [trial for trial in self.trials if trial.done]
        if not done:
            errors = [trial.error for trial in self.trials if trial.error]
            raise UserError(f"{self.folder}: no trial has a result: {errors[0] if errors else 'all were killed'}")
        return max(done, key=self.score)

    def write(self, winner: RunResult | None = None) -> None:
        """Write tuning.json and trials.csv, in the end with the winner."""
        record = {
            **{name: getattr(self, name) for name in _COPIED},
            "space": str(self.space).splitlines(),
            "chosen_by": f"validation {self.metric}",
            "trials": [asdict(trial) for trial in self.trials],
            "winner": winner and {**asdict(self.best()), "test": winner.test},
        }
        write_text(self.folder / "tuning.json", json_text(record))
        rows = [
            {**trial.values, **{f"valid {name}": value for name, value in trial.valid.items()}, **asdict(trial)}
            for trial in self.trials
        ]
        table = pd.DataFrame(rows, index=range(1, len(rows) + 1)).drop(columns=["values", "valid"], errors="ignore")
        write_text(self.folder / "trials.csv", table.to_csv(index_label="trial"))


def read_sweep(folder: Path) -> Sweep:
    """Read the sweep in a directory. Raises UserError for a directory of anything else."""
    file = folder / "tuning.json"
    if not file.is_file():
        raise UserError(f"{folder}: not the directory of a sweep; one has a tuning.json")
    record = read_json(file, dict)
    for name, kind in {**_COPIED, "space": list, "chosen_by": str, "trials": list}.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{file}: not of a sweep: {name} is {record.get(name)!r}")
    space = parse_space("\n".join(map(str, record["space"])), str(file))
    metric = record["chosen_by"].removeprefix("validation ")
    sweep = Sweep(folder, space=space, metric=metric, **{name: record[name] for name in _COPIED})
    is_old = any(folder.glob("*/trial.json"))  # of an older version: the sweep starts again
    try:
        for trial in [] if is_old else record["trials"]:
            values = space.values(space.samples(trial["values"]))
            status, run, error = (str(trial[name]) for name in ("status", "folder", "error"))
            sweep.trials.append(sweep.read(Trial(values, status, run, error=error)))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{file}: damaged: {one_line(error)}; delete it and give the command of the sweep") from None
    if is_old or not all(trial.done for trial in sweep.trials):
        sweep.finished = 0
    return sweep
