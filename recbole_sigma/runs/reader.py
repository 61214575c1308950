"""The one reader of run directories, finished or not: results, ranks, epochs, models."""

import csv
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jsonschema import Draft202012Validator

from recbole_sigma.config.schema import identity
from recbole_sigma.config.values import read_config_file
from recbole_sigma.errors import UserError, one_line
from recbole_sigma.evaluation.metrics import LIST_METRICS, METRICS, RANK_METRICS, metrics_of_ranks
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.runs.files import read_json
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.runs.result import RunResult

_WEIGHTS = ("distill_digest", "init_digest")  # of the runs that this one began with
_LONGEST_VALUE = 40  # characters of a setting in a label
_TEXT, _INTEGER, _NUMBER, _OBJECT = ({"type": kind} for kind in ("string", "integer", "number", "object"))
_METRICS = {
    "type": "object", "additionalProperties": False, "minProperties": 1,
    "patternProperties": {f"^({'|'.join((*RANK_METRICS, *LIST_METRICS))})@[1-9][0-9]{{0,8}}$": _NUMBER},
}  # fmt: skip
_DATASET = {"sha256": _TEXT, "users": _NUMBER, "items": _NUMBER, "interactions": _NUMBER, "mean_length": _NUMBER}
_RESULT = {
    "device": _TEXT, "command": _TEXT, "epochs": _INTEGER, "best_epoch": _INTEGER, "protocol": _OBJECT,
    "versions": _OBJECT, "n_parameters": _NUMBER, "seconds_per_epoch": _NUMBER, "eval_seconds": _NUMBER,
    "peak_memory_mb": _NUMBER, "valid": _METRICS, "test": _METRICS,
}  # fmt: skip
_MASKED = {"type": "object", "properties": {"valid": _METRICS, "test": _METRICS}, "additionalProperties": False}


@dataclass(frozen=True)
class RecordedRun:
    """One run. Runs with the same label and data set differ in nothing but their seeds."""

    label: str  # the name of its row in tables
    model: str
    dataset: str
    seed: int
    folder: Path | None = None  # the run directory, if there is one
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # all of config.yaml
    varied: Mapping[str, Any] = field(default_factory=dict)  # those in which runs of this model differ
    problem: str = ""  # why there is no result; empty for a finished run

    @property
    def complete(self) -> bool:
        """Whether there is a result."""
        return not self.problem

    @property
    def splits(self) -> list[str]:
        """`valid` and `test`, those that have samples; without `test` for a trial of a sweep, which is not tested."""
        return [split for split in ("valid", "test") if self.complete and self.result.get(split)]

    @property
    def name(self) -> str:
        """The name of the run directory, without its parents."""
        return self.folder.name if self.folder else ""

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json. Raises UserError if it is not the result of this run."""
        file = Path(self.folder or "", "result.json")
        content: dict[str, Any] = read_json(file, dict)
        class_name = re.escape(re.split("[.:]", self.model)[-1])  # of package.module:Class
        data = {**_DATASET, "name": {"enum": [self.dataset]}}
        properties = {
            **_RESULT, "model": {"type": "string", "pattern": f"(^|[.:]){class_name}$"}, "seed": {"enum": [self.seed]},
            "dataset": {"type": "object", "properties": data, "required": [*data]},
        }  # fmt: skip
        # Only a trial of a sweep has no test metrics, and only splits without samples have empty ones.
        empty = content["empty_splits"] if isinstance(content.get("empty_splits"), list) else []
        properties |= {split: {"const": {}} for split in ("valid", "test") if split in empty}
        required = [name for name in properties if name != "test" or "trial" not in content]
        schema = {"properties": properties | {"seen_masked": _MASKED}, "required": required}
        for error in Draft202012Validator(schema).iter_errors(content):
            name = ".".join(map(str, error.path))
            raise UserError(f"{file}: not the result of this run: {name} {error.message[:200]}")
        return content

    def ranks(self, split: str, tolerance: float = 1e-9) -> Ranks:
        """Ranks on `valid` or `test`, sorted by user and history length.

        Raises UserError for a damaged file, and if a metric of result.json is not that of the ranks; the relative
        `tolerance` allows for a version of NumPy that adds in another order.
        """
        path = Path(self.folder or "", f"ranks-{split}.npz")
        ranks = Ranks.load(path)
        recorded: dict[str, float] = self.result[split]
        masked = self.result.get("seen_masked", {}).get(split, {}) if ranks.rank_masked is not None else {}
        parts = [name.partition("@") for name in recorded]
        names = [name for name in RANK_METRICS if name in METRICS or name in (part[0] for part in parts)]
        topk = sorted({int(part[2]) for part in parts})
        for title, metrics, rank in (("", recorded, ranks.rank), ("seen_masked ", masked, ranks.rank_masked)):
            for name, value in metrics_of_ranks(rank, topk, names).items() if metrics and rank is not None else ():
                if not math.isclose(metrics.get(name, math.nan), value, rel_tol=tolerance):
                    wrong = f"{title}{split} {name} is {metrics.get(name)}, {value} by {path.name}"
                    raise UserError(f"{path.with_name('result.json')}: {wrong}")
        users, user = np.unique(ranks.user, return_inverse=True)
        if len(users) < len(user) and str(self.result["protocol"].get("split")).startswith("leave-one-out"):
            raise UserError(f"{path}: contains a user twice")
        order = np.lexsort((ranks.history_length, user))
        return Ranks(**{name: array[order] for name, array in ranks.arrays().items()})

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, one per epoch."""
        return read_epochs(self.folder) if self.folder else []


def read_runs(paths: Sequence[str | Path]) -> list[RecordedRun]:
    """The runs in `paths`: each is a run directory, or a directory that contains some, one or two levels below.

    A label is the model's name, followed by the settings in which runs of that model differ on some data set. Models
    are sorted as they first appear, then by those settings, data set and seed.
    Raises UserError for a path without runs, and for a damaged file.
    """
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        below = list(_run_directories(path))
        if not below:
            raise UserError(f"{path}: contains no run; a run directory has a config.yaml")
        folders |= dict.fromkeys(folder.resolve() for folder in below)
    runs = [_read(folder) for folder in folders]

    models = list(dict.fromkeys(run.model for run in runs))
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    differing: dict[str, set[str]] = {model: set() for model in models}
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        settings = identity(run.settings)
        reference = first.setdefault((run.model, run.dataset), settings)
        keys = (settings.keys() | reference.keys()) - {"model", "dataset", "seed"}  # tables keep runs of these apart
        differing[run.model] |= {key for key in keys if settings.get(key) != reference.get(key)}

    def order(run: RecordedRun) -> tuple[Any, ...]:
        values = [(0, each) if isinstance(each, (int, float)) else (1, str(each)) for each in run.varied.values()]
        return models.index(run.model), values, datasets.index(run.dataset), run.seed

    varied = [{key: run.settings[key] for key in sorted(differing[run.model]) if key in run.settings} for run in runs]
    # Seeds that each have a teacher of their own are one row, unless two runs of a seed differ only in the teacher.
    plain = [{key: "given" if key in _WEIGHTS and own[key] else own[key] for key in own} for own in varied]
    rows = [(_label(run.model, own), run.dataset, run.seed) for run, own in zip(runs, plain, strict=True)]
    weights = [(row, *(own.get(key) for key in _WEIGHTS)) for row, own in zip(rows, varied, strict=True)]
    shown = plain if len({*rows}) == len({*weights}) else varied
    triples = zip(runs, shown, varied, strict=True)
    labelled = [replace(run, label=_label(run.model, own), varied=full) for run, own, full in triples]
    return sorted(labelled, key=order)


def _label(model: str, varied: Mapping[str, Any]) -> str:
    return f"{model} {', '.join(f'{key}={_in_label(value)}' for key, value in varied.items())}".strip()


def _in_label(value: Any) -> str:
    """A setting's value in a label. A long one is cut; members of an ensemble may have other weights for each seed."""
    if isinstance(value, list) and all(isinstance(each, dict) and "digest" in each for each in value):
        same = [{name: own for name, own in each.items() if name not in ("digest", "seed")} for each in value]
        text, cut = json.dumps(same, sort_keys=True), "+".join(str(each.get("model")) for each in value)
    else:
        text = str(value).lower() if value in (None, True, False) else str(value)
        if len(text) <= _LONGEST_VALUE:
            return text
        cut = f"{text[:_LONGEST_VALUE]}…"
    return f"{cut} {hashlib.sha256(text.encode()).hexdigest()[:4]}"


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, one per epoch, without empty cells; none if there is no file. Raises UserError."""
    path = folder / "metrics.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{str(name): float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of metrics ({error})") from None


def read_finished(folder: str | Path) -> RunResult:
    """Read the result of a finished run and check its metrics against the saved ranks. Raises UserError."""
    run = _read(Path(folder))
    for split in run.splits:
        run.ranks(split, tolerance=0)
    result, metric = run.result, str(run.settings.get("valid_metric", "NDCG@10")).lower()
    masked = result.get("seen_masked", {})
    return RunResult(
        Path(folder), result["best_epoch"], result["valid"], result.get("test", {}), metric, seen_masked=masked
    )


def last_line(log_file: Path) -> str:
    """The last line of a log that is not empty, or "" if there is none."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


class LoadedRun(NamedTuple):
    """A run as it was when it was evaluated: `model` has the best epoch's weights and is in evaluation mode."""

    config: Any
    model: Any
    dataset: Any
    train: Any  # the loaders
    valid: Any
    test: Any


def load_run(folder: str | Path, **settings: Any) -> LoadedRun:
    """Rebuild a run's settings, model and loaders from its directory and its data set.

    `settings` are those that differ here, such as `use_gpu`. `model` confirms the name of a class outside this package,
    or is the class: no module is imported only because a file names it.
    Raises UserError for a model that is not confirmed, and if data, items or weights are not those of the run.
    """
    from recbole_sigma.data.preparation import load

    folder = Path(folder)
    run = _read(folder)
    config = _config(run, folder, settings)
    data = load(config)
    if data.dataset.checksum() != run.result["dataset"].get("sha256"):
        raise UserError(f"{folder}: {run.dataset}.inter is not the file that the run was trained on")
    before, now = run.result["dataset"].get("features"), data.dataset.feature_checksums()
    for name in sorted({*(before or ()), *now}) if before is not None else ():  # older runs did not record them
        if before.get(name) != now.get(name):
            raise UserError(f"{folder}: {name} is not the file that the run was trained with")
    RunFolder(folder).check_items(data.dataset.item_ids)
    network = _network(config, folder, data.train.dataset)
    return LoadedRun(config, network, data.dataset, data.train, data.valid, data.test)


@dataclass(frozen=True)
class LoadedModel:
    """A run's model without its data: `items` are the item ids by number, the padding item included."""

    config: Any
    model: Any
    items: list[str]
    counts: list[int]  # of each item in training; empty for a run of an older version
    titles: dict[str, str]  # by item, where the data has them


def load_model(folder: str | Path, **settings: Any) -> LoadedModel:
    """Rebuild a run's model from its directory alone, with the best epoch's weights, in evaluation mode.

    `settings` as for `load_run`. Raises UserError for a model that is not confirmed, and for damaged files.
    """
    from recbole_sigma.data.items import Items

    folder = Path(folder)
    RunFolder(folder)  # refuses any other directory
    config = _config(_read(folder), folder, settings, need_data=False)
    file = folder / "items.json"
    items = read_json(file, list)
    if not all(isinstance(item, str) for item in items) or len(items) < 2 or len({*items}) < len(items):
        raise UserError(f"{file}: not a list of different item ids")
    file = folder / "item_info.json"
    info = read_json(file, dict) if file.is_file() else {}
    counts, titles = info.get("counts", []), info.get("titles", {})
    numbers = isinstance(counts, list) and all(isinstance(count, int) for count in counts)
    texts = isinstance(titles, dict) and all(isinstance(title, str) for title in titles.values())
    if not numbers or not texts or len(counts) not in (0, len(items)):
        raise UserError(f"{file}: not the counts and titles of the {len(items)} items of items.json")
    return LoadedModel(config, _network(config, folder, Items(len(items) - 1)), items, counts, titles)


def _config(run: RecordedRun, folder: Path, settings: dict[str, Any], need_data: bool = True) -> Any:
    """The Config of a run whose model is known, or is confirmed by the setting `model`."""
    from recbole_sigma.config.config import Config  # RecBole: slow, and tables need none of it

    model = settings.pop("model", None)
    if model is None and ":" in run.model and run.model.partition(":")[0] not in sys.modules:
        raise UserError(
            f"{folder / 'config.yaml'}: confirm the import of its model with --model={run.model} (model=... in Python)"
        )
    if isinstance(model, str) and model.lower() != run.model.lower():
        raise UserError(f"model: {folder} is a run of {run.model}, not of {model}")
    files = [folder / "config.yaml"]
    return Config(model or run.model, run.dataset, config_files=files, settings=settings, need_data=need_data)


def _network(config: Any, folder: Path, dataset: Any) -> Any:
    """The model with the run's weights, in evaluation mode."""
    from recbole_sigma.registry import build_model

    directory = RunFolder(folder)
    network = build_model(config, dataset)
    try:
        network.load_state_dict(directory.load_weights())
    except RuntimeError as error:
        raise UserError(f"{directory.weights}: not the weights of {config.model}: {one_line(error)}") from None
    return network.eval()


def _run_directories(path: Path) -> Iterator[Path]:
    """Directories with a config.yaml at `path` or up to two levels below, and those of runs that failed before that."""
    for pattern in ("", "[!.]*/", "[!.]*/[!.]*/"):
        yield from sorted(file.parent for file in path.glob(f"{pattern}config.yaml"))
    for pattern in ("", "[!.]*/"):
        prepared = sorted(file.parent for file in path.glob(f"{pattern}settings.yaml"))
        yield from (directory for directory in prepared if not any(directory.glob("[!.]*/config.yaml")))


def _read(folder: Path) -> RecordedRun:
    """A run's settings; its other files are read when they are needed."""
    started = (folder / "config.yaml").is_file()
    file = folder / ("config.yaml" if started else "settings.yaml")
    settings = {key: given.value for key, given in read_config_file(file).items()}
    for key, kind in (("model", str), ("dataset", str), ("seed", int)):
        if not isinstance(settings.get(key), kind):
            raise UserError(f"{file}: not the settings of a run: {key} is {settings.get(key)!r}")
    run = RecordedRun("", settings["model"], settings["dataset"], settings["seed"], folder, settings)
    if not started:
        reason = last_line(folder / "log.txt")
        return replace(run, problem=f"failed: {reason}" if reason else "never started")
    if not (folder / "result.json").is_file():
        epochs = len(run.curve)
        return replace(run, problem=f"not finished: {epochs} epoch{'s' * (epochs != 1)}")
    return run
