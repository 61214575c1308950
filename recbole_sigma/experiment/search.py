"""tune(): a sweep from its parameter file to the winner's test metrics, by Hyperopt or Ray Tune.

Validation chooses; test is evaluated once, for the winner, after all trials. A sweep's directory is named by what the
sweep compares, so that the same command resumes it. No tool's own state is read back: earlier trials are drawn again
first, and report the epochs that they have.
"""

import contextlib
import io
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import role
from recbole_sigma.config.values import read_config_files
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.pool import ensure
from recbole_sigma.experiment.space import check_space, read_space
from recbole_sigma.experiment.store import complete_run, prepare, unfinished_run
from recbole_sigma.experiment.sweep import Sweep, Trial, read_sweep
from recbole_sigma.registry import model_name
from recbole_sigma.runs.reader import read_epochs
from recbole_sigma.runs.result import RunResult
from recbole_sigma.training.callbacks import Callback

TOOLS = ("hyperopt", "ray")
ALGORITHMS = ("exhaustive", "random", "bayes")
# Name: default, type, least value, and what is right in words.
RAY_OPTIONS: dict[str, tuple[Any, type, float, str]] = {
    "jobs": (None, int, 1, "a whole number, at least 1"),  # trials at a time; None: as many as there is room for
    "cpus_per_trial": (1.0, float, 0.01, "a number, at least 0.01"),
    "gpus_per_trial": (None, float, 0, "a number, at least 0"),  # None: one on a machine that has one
    "asha": (True, bool, False, "true or false"),
    "grace_period": (5, int, 1, "a whole number, at least 1"),  # epochs that every trial gets
    "reduction_factor": (3.0, float, 1.1, "a number, at least 1.1"),
}
_DEFAULT_EVALS = 20
_LARGEST_GRID = 10_000
_RETRIES = 2  # of a trial whose process was killed: for memory, or with its machine
_QUIET = {"show_progress": False, "state": "WARNING"}

Finish = Callable[[Mapping[str, Any], str], Trial]  # called with the settings of a trial and why it failed, or ""


@dataclass(frozen=True)
class TuneResult:
    """The result of a sweep: its trials in the order in which they started, and the winner's run."""

    folder: Path
    metric: str  # the validation metric that chose
    trials: list[Trial]
    best: Trial
    winner: RunResult


def tune(
    model: str | type,
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
        model, dataset, config_files, settings: as for `run`; they hold for every trial.
        params_file: in RecBole's format, see `space`.
        tool: `hyperopt`, one trial after the other in this process; or `ray`, side by side.
        max_evals: number of trials; None for all of a finite space, else 20.
        algo: `exhaustive`, `random` or `bayes`; None for exhaustive if the space is finite, else bayes.
        options: those of RAY_OPTIONS, by name.

    Raises:
        UserError: for a mistake, and if no trial has a result.
        Interrupted: for Ctrl-C. The same call resumes the sweep.
    """
    given = {name: entry.value for name, entry in read_config_files(config_files).items()} | dict(settings or {})
    given = {name: value for name, value in given.items() if name not in ("model", "dataset")}
    base = Config(model, dataset, settings=given)
    space = read_space(params_file)
    check_space(space, base)
    parent = Path(given.pop("checkpoint_dir", base["checkpoint_dir"])).absolute()
    given["data_path"] = str(Path(base.settings()["data_path"]).absolute())
    algo = algo or ("bayes" if space.size() is None else "exhaustive")
    name, metric = model_name(base.model_class, importable=True), base["valid_metric"].lower()
    sweep = Sweep(parent, name, dataset, given, space, metric, tool, algo, max_evals, dict(options or {}))
    _check(sweep)
    sweep.key = sweep.current_key()
    sweep.folder = parent / f"tune-{base.model}-{dataset}-{tool}-{sweep.key[:12]}"
    if (sweep.folder / "tuning.json").is_file():
        before = read_sweep(sweep.folder)
        sweep.trials, sweep.finished = before.trials, before.finished
    return _search(sweep)


def resume_tuning(
    folder: str | Path, settings: Mapping[str, Any] | None = None, max_evals: int | None = None
) -> TuneResult:
    """Resume a sweep, with the settings it has but for the given ones, which say where and how fast trials run.

    `settings` also confirm a model of the user's own, `{"model": "package.module:Class"}`, which importing executes.

    Raises:
        UserError: for a directory that is not a sweep's, and for data that are not the sweep's; else as `tune`.
        Interrupted: for Ctrl-C.
    """
    folder, settings = Path(folder).absolute(), dict(settings or {})
    sweep = read_sweep(folder)
    confirmed = settings.pop("model", None)
    if confirmed != sweep.model and (confirmed or ":" in sweep.model):
        raise UserError(f"{folder}: the model is {sweep.model!r}; confirm it with --model={sweep.model}")
    for name in settings:
        if role(name) not in ("machine", "location") or name == "checkpoint_dir":
            raise UserError(f"{name}: a resumed sweep keeps its settings; start a new one")
    sweep.given.update(settings)
    sweep.given["data_path"] = str(Path(sweep.given["data_path"]).absolute())
    sweep.max_evals = max_evals or sweep.max_evals
    _check(sweep)
    if sweep.current_key() != sweep.key:
        raise UserError(f"{folder}: of other data, or of another version of recbole-sigma; start a new sweep")
    return _search(sweep)


def _check(sweep: Sweep) -> None:
    """Refuse wrong options, and tools that are not installed, before anything starts."""
    for name, value, known in (("tool", sweep.tool, TOOLS), ("algo", sweep.algo, ALGORITHMS)):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    evals = sweep.max_evals
    if evals is not None and (type(evals) is not int or evals < 1):
        raise UserError(f"max_evals must be a whole number, at least 1, got {evals!r}")
    for name, value in sweep.options.items():
        if sweep.tool != "ray":
            raise UserError(f"{name} is an option of --tool=ray")
        _, kind, least, right = RAY_OPTIONS[name]
        if type(value) not in ((int, float) if kind is float else (kind,)) or not value >= least:
            raise UserError(f"{name} must be {right}, got {value!r}")
    for library in [sweep.tool, *["hyperopt"] * (sweep.algo == "bayes")]:
        if find_spec(library) is None:
            raise UserError(f"{library} is not installed; install with pip install 'recbole-sigma[tune]'")


def _search(sweep: Sweep) -> TuneResult:
    """Run the trials that are missing, then test the best one."""
    base, size, n_trials = sweep.config(), sweep.space.size(), sweep.max_evals or _DEFAULT_EVALS
    if sweep.algo == "exhaustive":
        if size is None:
            endless = next(parameter for parameter in sweep.space.parameters if parameter.kind != "choice")
            raise endless.error(f"{endless.kind} has no end of values; use algo random or bayes, or make it a choice")
        if sweep.max_evals is None and size > _LARGEST_GRID:
            raise UserError(f"{size} settings would be tried: give max_evals")
        n_trials = min(sweep.max_evals or size, size)
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"checkpoint_dir: cannot make the directory {sweep.folder}: {error.strerror}") from None
    try:
        if sweep.finished < n_trials:
            sweep.finished = 0
            sweep.write()
            shown = None if base["show_progress"] else True
            with tqdm(total=n_trials, unit="trial", desc="trials", ncols=100, disable=shown) as bar:
                (_by_ray if sweep.tool == "ray" else _by_hyperopt)(sweep, base, n_trials, partial(_finish, sweep, bar))
        best = sweep.best()
        limit = {"epochs": best.epochs} if best.status == "stopped" else {}  # it ends where the scheduler stopped it
        winner = ensure(prepare(sweep.config(best.values), {**_QUIET, **limit}, sweep.folder), test=True)
        sweep.finished = max(n_trials, sweep.finished)
        sweep.write(winner)
    except KeyboardInterrupt:
        raise Interrupted(sweep.folder, f"recbole-sigma tune --resume={sweep.folder}") from None
    return TuneResult(sweep.folder, sweep.metric, sweep.trials, best, winner)


def _finish(sweep: Sweep, bar: Any, values: Mapping[str, Any], error: str) -> Trial:
    """Record that a trial is finished, and show it."""
    trial = sweep.record(values, error)
    bar.set_postfix_str(f"best {sweep.metric} {max(map(sweep.score, sweep.trials)):.4f}", refresh=False)
    bar.update()
    if error:
        tqdm.write(f"trial failed: {values}: {error}", file=sys.stderr)
    return trial


def run_trial(sweep: Sweep, samples: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> str:
    """Complete a trial, waiting while another process is at it; return why it failed, "" if it did not.

    `callbacks` also get the epochs that were there before, and those of a process that was waited for: they must skip
    an epoch that they have had. They may raise to stop the trial.
    """
    values = sweep.space.values(samples)

    def replay(folder: Path | None) -> None:
        for row in read_epochs(folder) if callbacks and folder else ():
            for callback in callbacks:
                callback.on_epoch_end(row)

    try:
        directory = prepare(sweep.config(values), _QUIET, sweep.folder)
        replay(complete_run(directory) or unfinished_run(directory))
        if sweep.trial(values).status != "stopped":
            replay(ensure(directory, callbacks, test=False).folder)
    except UserError as error:
        return str(error)
    return ""


def _by_hyperopt(sweep: Sweep, base: Config, n_trials: int, finish: Finish) -> None:
    """One trial after the other in this process, through RecBole's HyperTuning.

    Its own `run` cannot be seeded and stops early; its exhaustive search asks for a generator of NumPy that Hyperopt no
    longer takes, so that the settings are listed for it here.
    """
    from hyperopt import fmin
    from recbole.trainer.hyper_tuning import HyperTuning

    def objective(samples: dict[str, Any], _: Any) -> dict[str, Any]:
        values = sweep.space.values(samples)
        sweep.record(values, running=True)
        score = sweep.score(finish(values, run_trial(sweep, samples)))
        nothing: dict[str, Any] = {"model": "", "best_valid_result": {}, "test_result": {}}  # only printed
        return {"best_valid_score": score, "valid_score_bigger": True, **nothing}

    points = sweep.space.points(n_trials, base["seed"]) if sweep.algo == "exhaustive" else None
    tuning = HyperTuning(objective, sweep.space.hyperopt(), algo=sweep.algo if points is None else lambda *_: [])
    drawn = {"points_to_evaluate": points, "rstate": np.random.default_rng(base["seed"])}
    with contextlib.redirect_stdout(io.StringIO()):  # RecBole prints each trial
        fmin(tuning.trial, tuning.space, tuning.algo, n_trials, **drawn, show_progressbar=False, verbose=False)


def _by_ray(sweep: Sweep, base: Config, n_trials: int, finish: Finish) -> None:
    """Trials side by side, on this machine or a cluster; with `asha`, those that are behind are stopped early."""
    from recbole_sigma.experiment.ray import cluster  # first: it sets what ray reads when imported

    from ray import tune  # isort: skip
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if base["nproc"] > 1:
        raise UserError(f"nproc must be 1 with --tool=ray, which runs trials side by side, got {base['nproc']}")
    options = {name: default for name, (default, *_) in RAY_OPTIONS.items()} | sweep.options
    jobs, cpus, gpus = (options[name] for name in ("jobs", "cpus_per_trial", "gpus_per_trial"))
    if gpus is None:
        gpus = 1.0 if base["device"].type == "cuda" else 0.0
    machine = {"threads": max(int(cpus), 1), **sweep.given} | ({} if gpus else {"use_gpu": False})

    class Leader(tune.Callback):
        """Records trials in the process that leads the sweep."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            sweep.record(sweep.space.values(trial.config), running=True)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            finish(sweep.space.values(trial.config), (trial.last_result or {}).get("failure", ""))

    if sweep.algo == "exhaustive":
        points = sweep.space.points(n_trials, base["seed"])
    else:
        points = [sweep.space.samples(trial.values) for trial in sweep.trials][:n_trials]
    seed = base["seed"] + len(points)  # what is drawn after the points was not drawn before
    searcher: Any = BasicVariantGenerator(points or None, max_concurrent=jobs or 0, random_state=seed)
    if sweep.algo == "bayes":
        from ray.tune.search.hyperopt import HyperOptSearch

        searcher = HyperOptSearch(sweep.space.hyperopt(), "score", "max", points or None, random_state_seed=seed)
    tuned = [value for each in sweep.space.parameters if each.name == "epochs" for value in each.extremes()]
    last_epoch, grace_period = max([base["epochs"], *tuned]) - 1, options["grace_period"]
    scheduler: Any = FIFOScheduler()
    if options["asha"] and grace_period <= last_epoch:  # a trial that gets as far as its last epoch completes
        halving = {"reduction_factor": options["reduction_factor"], "stop_last_trials": False}
        scheduler = ASHAScheduler(time_attr="epochs", grace_period=grace_period, max_t=last_epoch, **halving)
    trainable = tune.with_parameters(_train_in_ray, sweep=replace(sweep, given=machine))
    settings = tune.TuneConfig(
        metric="score",
        mode="max",
        num_samples=n_trials,
        max_concurrent_trials=jobs,
        search_alg=searcher,
        scheduler=scheduler,
        reuse_actors=True,
    )
    storage = str(sweep.folder / ".ray")  # pickles, which nobody reads
    shutil.rmtree(storage, ignore_errors=True)  # of a sweep that was killed
    retries = tune.FailureConfig(max_failures=_RETRIES)
    files = tune.RunConfig("ray", storage, callbacks=[Leader()], failure_config=retries, verbose=0)
    param_space = None if sweep.algo == "bayes" else sweep.space.ray()
    with cluster(jobs, cpus, gpus):
        try:
            resources = tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus})
            tune.Tuner(resources, param_space=param_space, tune_config=settings, run_config=files).fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _train_in_ray(samples: Mapping[str, Any], sweep: Sweep) -> None:
    """A trial in one of Ray's processes."""
    from ray import tune

    class Reports:
        """Reports the best score so far after each epoch."""

        epochs, score = 0, 0.0

        def on_epoch_end(self, row: Mapping[str, float]) -> None:
            if sweep.metric in row and row["epoch"] >= self.epochs:
                self.epochs, self.score = int(row["epoch"]) + 1, max(self.score, row[sweep.metric])
                tune.report({"epochs": self.epochs, "score": self.score})

    reports = Reports()
    failure = run_trial(sweep, samples, [reports])
    if failure or not reports.epochs:  # Ray wants a result of every trial
        tune.report({"epochs": reports.epochs, "score": reports.score, "failure": failure})
