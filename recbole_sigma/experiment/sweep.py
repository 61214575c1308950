"""A sweep on disk: its trials, each a normal run that is not tested, and two files about them.

<sweep>/tuning.json      what is searched and how, every trial, the winner: enough to resume the sweep
<sweep>/trials.csv       one row per trial
<sweep>/<key>/           a trial, as `store.prepare` makes it; its run directory is inside
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import check
from recbole_sigma.config.values import Given
from recbole_sigma.data.splits import has_samples
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.space import Space
from recbole_sigma.experiment.store import furthest_run, run_key
from recbole_sigma.runs.files import csv_text, json_text, read_json, write_text
from recbole_sigma.runs.reader import read_epochs
from recbole_sigma.runs.result import RunResult

_COPIED = ("model", "dataset", "settings", "options", "key", "finished")  # to tuning.json as they are
_DECIDING = ("tool", "algo", "asha", "grace_period", "reduction_factor")  # options that decide what is trained


@dataclass(frozen=True)
class Trial:
    """What is known about a trial."""

    values: dict[str, Any]  # the settings that the sweep varies
    status: str = "unfinished"  # or complete, stopped (by the scheduler), failed
    error: str = ""  # why it failed
    folder: str = ""  # the run directory in that of the sweep, once there is one
    epochs: int = 0  # so far
    best_epoch: int = -1  # from 0
    valid: dict[str, float] = field(default_factory=dict)  # metrics of the best epoch

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.status in ("complete", "stopped")


@dataclass
class Sweep:
    """What is compared, and how settings are drawn. Only the leading process records trials."""

    folder: Path
    model: str
    dataset: str
    settings: dict[str, Any]  # those that all trials share, checkpoint_dir left out
    space: Space
    options: dict[str, Any]  # those of `space.OPTIONS`
    finished: int = 0  # trials of the finished search; 0 before its end, and if a trial failed: it runs again
    winner: RunResult | None = None  # the run of the best trial, which alone is tested; at the end
    by_values: dict[str, Trial] = field(default_factory=dict)  # by values as JSON, as started; 1 and true differ
    metric: str = field(init=False)  # on validation: it chooses
    key: str = field(init=False)  # hash of what decides the result: settings, data, version, space, how they are drawn

    def __post_init__(self) -> None:
        base = self.config()
        self.metric = base["valid_metric"].lower()
        if not has_samples(base)["validation"]:
            raise UserError("tune: a sweep chooses on validation, and these settings have no validation split")
        if not base["valid_metric_bigger"]:
            raise UserError(f"valid_metric: less is better of {base['valid_metric']}, but a sweep looks for the most")
        options = {name: self.options[name] for name in _DECIDING}
        decides = {"run": run_key(base), "space": str(self.space), "options": options}
        self.key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def config(self, values: Mapping[str, Any] | None = None) -> Config:
        """The configuration of a trial, or of what all trials share."""
        return Config(self.model, self.dataset, settings={**self.settings, **(values or {})})

    @property
    def trials(self) -> list[Trial]:
        """In the order in which they started."""
        return list(self.by_values.values())

    def trial(self, values: Mapping[str, Any]) -> Trial:
        """The trial of these settings as recorded, or a new one."""
        return self.by_values.get(json.dumps(values), Trial(dict(values)))

    def score(self, trial: Trial) -> float:
        """What chooses, in full precision; 0 for a trial without an evaluation, of all metrics the worst."""
        return trial.valid.get(self.metric, 0.0)

    @property
    def best(self) -> Trial:
        """The trial with the best validation score, of equal ones the first. Raises UserError if none has a result."""
        done = [trial for trial in self.trials if trial.done]
        if not done:
            errors = [trial.error for trial in self.trials if trial.error]
            raise UserError(f"{self.folder}: no trial has a result: {errors[0] if errors else 'all were killed'}")
        return max(done, key=self.score)

    def record(self, values: Mapping[str, Any], error: str = "", running: bool = False) -> Trial:
        """Write that a trial starts (`running`) or ends: complete, with `error`, or stopped by the scheduler."""
        trial = self._read(values, "failed" if error else self.trial(values).status, error)
        if not running and trial.status == "unfinished" and trial.valid:
            trial = replace(trial, status="stopped")
        self.by_values[json.dumps(values)] = trial
        self.write()
        return trial

    def _read(self, values: Mapping[str, Any], status: str, error: str) -> Trial:
        """A trial as its run directory has it, where it is not recorded that a trial was stopped or failed."""
        try:
            run = furthest_run(self.folder / run_key(self.config(values)))
        except UserError:  # settings that are refused; the trial itself says so
            run = None
        rows = read_epochs(run) if run else []
        scored = [row for row in rows if self.metric in row]
        best = max(scored, key=lambda row: row[self.metric], default={"epoch": -1.0})  # the first one, as in training
        if not error and not (status == "stopped" and scored):
            status = "complete" if run and (run / "result.json").is_file() else "unfinished"
        return Trial(
            values=dict(values),
            status=status,
            error=error,
            folder=str(run.relative_to(self.folder)) if run else "",
            epochs=len(rows),
            best_epoch=int(best["epoch"]),
            valid={name: value for name, value in best.items() if "@" in name},
        )

    def load(self, record: Mapping[str, Any]) -> None:
        """Take over the trials of a tuning.json."""
        for trial in record["trials"]:
            self.by_values[json.dumps(trial["values"])] = self._read(trial["values"], trial["status"], trial["error"])
        self.finished = record["finished"] if all(trial.done for trial in self.trials) else 0

    def write(self) -> None:
        """Write tuning.json and trials.csv."""
        record = {
            **{name: getattr(self, name) for name in _COPIED},
            "space": str(self.space).splitlines(),
            "chosen_by": f"validation {self.metric}",
            "trials": [asdict(trial) for trial in self.trials],
            "winner": self.winner and {**asdict(self.best), "test": self.winner.test},
        }
        rows = []
        for number, trial in enumerate(self.trials, start=1):
            valid = {f"valid {name}": value for name, value in trial.valid.items()}
            others = {name: value for name, value in vars(trial).items() if name not in ("values", "valid")}
            rows.append({"trial": number, **trial.values, **valid, **others})
        write_text(self.folder / "tuning.json", json_text(record))
        write_text(self.folder / "trials.csv", csv_text(rows))


def read_record(folder: Path) -> dict[str, Any]:
    """The tuning.json of a sweep's directory. Raises UserError for a directory of anything else."""
    file = folder / "tuning.json"
    if not file.is_file():
        raise UserError(f"{folder}: not the directory of a sweep; one has a tuning.json")
    record: dict[str, Any] = read_json(file, dict)
    for name in (*_COPIED, "space", "trials"):
        check("tuning.json", Given({name: record.get(name)}, str(file)), None, {})
    return record
