"""Runs as their folders have them, complete or not: what every report is a view of."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recbole_sigma.config.shapes import is_number
from recbole_sigma.config.values import read_config_file
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.metrics import METRICS, metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.quick_start import MAY_CHANGE
from recbole_sigma.runs.folder import RunFolder

# What does not make two runs different arms: where and how fast they ran, and what a table keeps apart anyway.
_NO_DIFFERENCE = (set(MAY_CHANGE) - {"epochs", "stopping_step"}) | {"model", "dataset", "seed", "nproc", "world_size"}
_RESULT = {
    "model": str, "dataset": dict, "seed": int, "protocol": dict, "epochs": int, "best_epoch": int, "valid": dict,
    "versions": dict, "device": str, "command": str,
}  # fmt: skip
_NUMBERS = ("n_parameters", "seconds_per_epoch", "eval_seconds", "peak_memory_mb")  # where they are recorded
_STATISTICS = ("users", "items", "interactions", "mean_length")
_LONGEST_VALUE = 40  # characters of a setting in a label


@dataclass(frozen=True)
class RecordedRun:
    """One run. Runs of one label and data set are the same but for their seeds.

    Attributes:
        label: the arm's name in tables.
        folder: the run's, or None if it never had one.
        settings: all of config.yaml.
        varied: the settings in which runs of this model differ.
        problem: why there is no result; empty for a complete run.
    """

    label: str
    model: str
    dataset: str
    seed: int
    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    varied: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether there is a result."""
        return not self.problem

    @property
    def parts(self) -> list[str]:
        """`valid`, and `test` unless the run was a trial of a sweep, which is not tested."""
        return [part for part in ("valid", "test") if part in self.result] if self.complete else []

    @property
    def name(self) -> str:
        """The folder's name, without the folders above it."""
        return self.folder.name if self.folder else ""

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json. Raises UserError for one that is not this run's."""
        content: dict[str, Any] = RunFolder(self._folder, lock=False).read_json("result.json", dict)
        file = self._folder / "result.json"
        for key, kind in _RESULT.items():
            if not isinstance(content.get(key), kind):
                raise UserError(f"{file}: not the result of a run: {key} must be a {kind.__name__}")
        if not isinstance(content.get("test", {}), dict):
            raise UserError(f"{file}: not the result of a run: test must be a dict")
        numbers = [*((content, key) for key in _NUMBERS), *((content["dataset"], key) for key in _STATISTICS)]
        for where, key in numbers:
            if key in where and not is_number(where[key]):
                raise UserError(f"{file}: not the result of a run: {key} must be a number")
        recorded = content["model"], content["dataset"].get("name"), content["seed"]
        if recorded != (self.model, self.dataset, self.seed):
            raise UserError(f"{file}: is of {_words(*recorded)}, config.yaml of {_words(*self._identity)}")
        return content

    def ranks(self, part: str) -> Ranks:
        """Ranks on `valid` or `test`, sorted by user. Raises UserError unless the result's metrics follow from them."""
        path = self._folder / f"ranks-{part}.npz"
        ranks = Ranks.load(path)
        order = np.argsort(ranks.user, kind="stable")
        ranks = Ranks(**{name: array[order] for name, array in ranks.arrays().items()})
        if (ranks.user[1:] == ranks.user[:-1]).any():
            raise UserError(f"{path}: has a user twice")
        for name, value in self.result[part].items():
            metric, _, k = str(name).partition("@")
            known = metric in METRICS and k.isdecimal() and isinstance(value, float)
            if not known or not math.isclose(metrics_of_ranks(ranks.rank, [int(k)])[name], value, rel_tol=1e-9):
                raise UserError(f"{self._folder / 'result.json'}: {part} {name} is not what {path.name} gives")
        return ranks

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """metrics.csv, a row an epoch, without empty cells. Raises UserError naming file and line."""
        path = self._folder / "metrics.csv"
        if not path.is_file():
            return []
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return [
                    {str(name): float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
                ]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{path}: not a table of metrics ({error})") from None

    @property
    def _folder(self) -> Path:
        if self.folder is None:
            raise UserError(f"{_words(*self._identity)}: has no folder: {self.problem}")
        return self.folder

    @property
    def _identity(self) -> tuple[str, str, int]:
        return self.model, self.dataset, self.seed


def read_runs(paths: Sequence[str | Path]) -> list[RecordedRun]:
    """The runs in `paths`, each a run's folder or a folder of them (or an experiment's, of folders of them).

    Labels are the model's name, followed by the settings in which runs of the model differ on some data set. Models
    are in the order in which they come, their arms in the order of these settings, runs in that of data set and seed.
    Raises UserError for a path without runs, and for a file that is damaged.
    """
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        found = list(_folders(path))
        if not found:
            raise UserError(f"{path}: no run there; the folder of a run has a config.yaml")
        folders |= dict.fromkeys(each.resolve() for each in found)
    return labelled([_read(folder) for folder in folders])


def labelled(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """The runs with `label` and `varied` from how their settings differ, sorted as `read_runs` says."""
    models = list(dict.fromkeys(run.model for run in runs))
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    named = []
    for model in models:
        same = [run for run in runs if run.model == model]
        keys = _differing(same)
        for run in same:
            varied = {key: run.settings[key] for key in keys if key in run.settings}
            label = " ".join([model, ", ".join(f"{key}={_text(value)}" for key, value in varied.items())]).strip()
            named.append(replace(run, label=label, varied=varied))
    return sorted(
        named,
        key=lambda run: (
            models.index(run.model),
            [_sortable(value) for value in run.varied.values()],
            datasets.index(run.dataset),
            run.seed,
        ),
    )


def _differing(runs: Sequence[RecordedRun]) -> list[str]:
    """Settings in which runs on the same data set differ."""
    differing = set()
    for dataset in {run.dataset for run in runs}:
        settings = [run.settings for run in runs if run.dataset == dataset]
        keys = {key for each in settings for key in each} - _NO_DIFFERENCE
        differing |= {key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)}
    return sorted(differing)


def _folders(path: Path) -> Iterator[Path]:
    """Folders with a config.yaml at `path` or up to two levels below; an experiment's place of a run that has none."""
    for pattern in ("", "[!.]*/", "[!.]*/[!.]*/"):
        yield from sorted(file.parent for file in path.glob(f"{pattern}config.yaml"))
    for pattern in ("", "[!.]*/"):
        places = sorted(file.parent for file in path.glob(f"{pattern}settings.yaml"))
        yield from (place for place in places if not any(place.glob("[!.]*/config.yaml")))


def _read(folder: Path) -> RecordedRun:
    """What settings say of a run; its other files are read when they are asked for."""
    begun = (folder / "config.yaml").is_file()
    file = folder / ("config.yaml" if begun else "settings.yaml")
    settings = {key: given.value for key, given in read_config_file(file).items()}
    for key, kind in (("model", str), ("dataset", str), ("seed", int)):
        if not isinstance(settings.get(key), kind):
            raise UserError(f"{file}: not the settings of a run: {key} is {settings.get(key)!r}")
    run = RecordedRun("", settings["model"], settings["dataset"], settings["seed"], folder, settings)
    if not begun:
        return replace(run, problem=_last_line(folder / "log.txt") or "never began")
    if not (folder / "result.json").is_file():
        n_epochs = len(run.curve)
        return replace(run, problem=f"not complete: {n_epochs} epoch{'s' * (n_epochs != 1)}")
    return run


def _last_line(file: Path) -> str:
    """What a run's process said last: why it failed."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return f"failed: {said[-1]}" if said else ""


def _text(value: Any) -> str:
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _sortable(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, (int, float))
    return (0, value, "") if is_number else (1, 0.0, str(value))


def _words(model: str, dataset: Any, seed: int) -> str:
    return f"{model} on {dataset}, seed {seed}"
