"""tune(): a sweep from its parameter file to the winner's test metrics.

Validation chooses; test is evaluated once, for the winner, when all trials are done. A sweep's folder is named by what
it compares: the same command goes on with what is there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_sigma.config.config import Config
from recbole_sigma.config.values import read_config_files
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.record import Records, Search, read_record
from recbole_sigma.experiment.space import Choice, check_space, read_space
from recbole_sigma.experiment.spec import Arm, Planned
from recbole_sigma.experiment.store import key_of
from recbole_sigma.experiment.sweep import Outcome, Sweep, finish
from recbole_sigma.quick_start import MAY_CHANGE, RunResult

if TYPE_CHECKING:
    from recbole_sigma.experiment.ray import RayOptions

TOOLS = ("hyperopt", "ray")
ALGORITHMS = ("exhaustive", "random", "bayes")
# Kind, least value, and both in words.
RAY_OPTIONS: dict[str, tuple[type, float, str]] = {
    "jobs": (int, 1, "a whole number, at least 1"),
    "cpus_per_trial": (float, 0.01, "a number, at least 0.01"),
    "gpus_per_trial": (float, 0, "a number, at least 0"),
    "asha": (bool, False, "true or false"),
    "grace_period": (int, 1, "a whole number, at least 1"),
    "reduction_factor": (float, 1.1, "a number, at least 1.1"),
}
_DEFAULT_EVALS = 20
_LARGEST_GRID = 10_000


@dataclass(frozen=True)
class TuneResult:
    """What a sweep came to: its trials in the order in which they were begun, and the winner's run."""

    folder: Path
    metric: str  # of validation, that chose
    trials: list[Outcome]
    best: Outcome
    winner: RunResult


def tune(
    model: str,
    dataset: str,
    params_file: str | Path,
    tool: str = "hyperopt",
    max_evals: int | None = None,
    algo: str | None = None,
    config_files: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> TuneResult:
    """Train a model with the settings of a parameter file, choose on validation, evaluate test for the winner.

    Args:
        model, dataset, config_files, settings: as `run` takes them; those of every trial.
        params_file: RecBole's format, see `space`.
        tool: `hyperopt`, here and one by one; or `ray`, side by side.
        max_evals: trials in all; None for all of a finite space, else 20.
        algo: `exhaustive`, `random` or `bayes`; None for exhaustive where the space is finite, else bayes.
        options: those of by_ray.RayOptions, by name.

    Raises:
        UserError: for a mistake, and if no trial came to a result.
        Interrupted: for Ctrl-C. The same call goes on.
    """
    given = {key: each.value for key, each in read_config_files(config_files).items()} | dict(settings or {})
    given = {key: value for key, value in given.items() if key not in ("model", "dataset")}
    base = Config(model, dataset, settings=given)
    space = check_space(read_space(params_file), base)
    search = _checked(Search(tool, algo or ("exhaustive" if space.is_finite else "bayes"), max_evals, options or {}))
    parent = given.pop("checkpoint_dir", base["checkpoint_dir"])
    given["data_path"] = str(Path(base.settings()["data_path"]).absolute())
    sweep = Sweep(Path(), model, dataset, given, space, base["valid_metric"].lower())
    name = f"tune-{base.model}-{dataset}-{tool}-{_key(sweep, search)[:12]}"
    return _go(replace(sweep, folder=Path(parent).absolute() / name), search)


def resume_tuning(
    folder: str | Path, settings: Mapping[str, Any] | None = None, max_evals: int | None = None
) -> TuneResult:
    """Go on with a sweep. `settings` may say anew where things are and how fast they go.

    Raises UserError for a folder that is none of a sweep, and for data that are not the sweep's; else as `tune`.
    """
    folder, settings = Path(folder).absolute(), dict(settings or {})
    sweep, search, key = read_record(folder)
    for name in settings:
        if name not in MAY_CHANGE or name in ("epochs", "stopping_step", "checkpoint_dir"):
            raise UserError(f"{name}: a sweep keeps its settings; begin another one")
    sweep.given.update(settings)
    if "data_path" in settings:
        sweep.given["data_path"] = str(Path(settings["data_path"]).absolute())
    if _key(sweep, search) != key:
        raise UserError(f"{folder}: of other data, or of another version of recbole-sigma; begin another sweep")
    return _go(sweep, _checked(replace(search, max_evals=max_evals or search.max_evals)))


def _checked(search: Search) -> Search:
    """Refuse what cannot be, and what is not installed, before anything is begun."""
    for name, value, right in (("tool", search.tool, TOOLS), ("algo", search.algo, ALGORITHMS)):
        if value not in right:
            raise UserError(f"{name} must be one of {', '.join(right)}, got {value!r}")
    evals = search.max_evals
    if evals is not None and (type(evals) is not int or evals < 1):
        raise UserError(f"max_evals must be a whole number, at least 1, got {evals!r}")
    for name, value in search.options.items():
        if search.tool != "ray":
            raise UserError(f"{name} is an option of --tool=ray")
        kind, least, wanted = RAY_OPTIONS[name]
        if type(value) not in ((int, float) if kind is float else (kind,)) or not value >= least:
            raise UserError(f"{name} must be {wanted}, got {value!r}")
    try:
        if search.tool == "ray":
            import recbole_sigma.experiment.ray  # noqa: F401
        if search.tool == "hyperopt" or search.algo == "bayes":
            import hyperopt  # noqa: F401
    except ImportError as error:
        missing = "hyperopt" if "hyperopt" in str(error) else "ray"
        raise UserError(f"{missing} is not installed; install with pip install 'recbole-sigma[tune]'") from None
    return search


def _key(sweep: Sweep, search: Search) -> str:
    """Hash of what the sweep compares, and how: settings, data, version, space, search."""
    base = Config(sweep.model, sweep.dataset, settings=sweep.given)
    runs = key_of(Planned(Arm(sweep.model, sweep.model), sweep.dataset, base["seed"], base))
    stops = ("asha", "grace_period", "reduction_factor")
    how = {name: search.options[name] for name in stops if name in search.options}
    determines = [runs, str(sweep.space), search.tool, search.algo, how]
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()


def _go(sweep: Sweep, search: Search) -> TuneResult:
    base = Config(sweep.model, sweep.dataset, settings=sweep.given)
    n_trials = _number_of_trials(sweep, search)
    records = Records(sweep, search, _key(sweep, search))
    try:
        if records.finished < n_trials:
            records.write()
            engine = _by_ray if search.tool == "ray" else _by_hyperopt
            engine(sweep, search, n_trials, base, records)
        best = _best(sweep)
        winner = finish(sweep, best)
        records.write(best, winner, max(n_trials, records.finished))
    except KeyboardInterrupt:
        raise Interrupted(sweep.folder, f"recbole-sigma tune --resume={sweep.folder}") from None
    return TuneResult(sweep.folder, sweep.metric, sweep.outcomes(), best, winner)


def _by_hyperopt(sweep: Sweep, search: Search, n_trials: int, base: Config, records: Records) -> None:
    from recbole_sigma.experiment import by_hyperopt

    with records.progress(n_trials, base["show_progress"]) as ended:
        by_hyperopt.search(sweep, search.algo, n_trials, base["seed"], ended)


def _by_ray(sweep: Sweep, search: Search, n_trials: int, base: Config, records: Records) -> None:
    from recbole_sigma.experiment import ray as by_ray

    options = _ray_options(search, base)
    machine = {"threads": max(int(options.cpus_per_trial), 1), **sweep.given}
    machine |= {} if options.gpus_per_trial else {"use_gpu": False}
    most = [each.extremes() for each in sweep.space.parameters if each.name == "epochs"]
    epochs = int(max([base["epochs"], *(most[0] if most else ())]))
    on_machine = replace(sweep, given=machine)
    with records.progress(n_trials, base["show_progress"]) as ended:
        by_ray.search(on_machine, search.algo, n_trials, base["seed"], ended, options, epochs)


def _ray_options(search: Search, base: Config) -> "RayOptions":
    from recbole_sigma.experiment.ray import RayOptions

    if base["nproc"] > 1:
        raise UserError("nproc must be 1 with --tool=ray, which runs trials side by side")
    gpus = 1.0 if base["device"].type == "cuda" else 0.0
    return RayOptions(**{"gpus_per_trial": gpus, **search.options})


def _number_of_trials(sweep: Sweep, search: Search) -> int:
    if search.algo != "exhaustive":
        return search.max_evals or _DEFAULT_EVALS
    for each in sweep.space.parameters:
        if not isinstance(each, Choice):
            raise each.error(f"{each.kind} has no end of values: algo must be random or bayes, or make it a choice")
    size = sweep.space.size()
    if search.max_evals is None and size > _LARGEST_GRID:
        raise UserError(f"{size} settings would be tried: say how many by max_evals")
    return min(search.max_evals or size, size)


def _best(sweep: Sweep) -> Outcome:
    """The trial of the best validation; of equal ones the first. Raises UserError if none came to a result."""
    outcomes = sweep.outcomes()
    done = [each for each in outcomes if each.done]
    if not done:
        errors = [each.error for each in outcomes if each.error] or ["the processes of the trials were killed"]
        raise UserError(f"{sweep.folder}: no trial came to a result; the first said: {errors[0]}")
    return max(done, key=sweep.score)
