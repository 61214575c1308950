"""tune(): a sweep from its parameter file to the winner's test metrics, by Hyperopt or Ray Tune.

A sweep's directory is named by what the sweep compares, so that the same command resumes it. No tool's own state is
read back: earlier trials are drawn again first, and report the epochs that they have.
"""

import contextlib
import io
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import role
from recbole_sigma.config.values import Files, read_config_files
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.pool import ensure
from recbole_sigma.experiment.space import check_space, complete_options, parse_space, read_space
from recbole_sigma.experiment.store import furthest_run, make_directory, prepare
from recbole_sigma.experiment.sweep import Sweep, Trial, read_record
from recbole_sigma.registry import model_name
from recbole_sigma.runs.reader import read_epochs

_QUIET = {"show_progress": False, "state": "WARNING"}

Finish = Callable[[Mapping[str, Any], str], Trial]  # called with the settings of a trial and why it failed, or ""


def tune(
    model: str | type,
    dataset: str,
    params_file: str | Path,
    config_files: Files = (),
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Sweep:
    """Train a model with the settings of a parameter file, choose on validation, evaluate test once, for the winner.

    Args:
        model, dataset, config_files, settings: as for `run`; they hold for every trial.
        params_file: in RecBole's format, see `space`.
        options: those of OPTIONS that differ from the defaults; `recbole-sigma tune --help` explains them.

    Raises UserError also if no trial has a result, and Interrupted for Ctrl-C: the same call resumes the sweep.
    """
    base = Config(model, dataset, config_files, settings)
    space = read_space(params_file)
    check_space(space, base)
    for parameter in space.parameters:
        if parameter.name in (settings or {}):
            raise UserError(
                f"{parameter.origin}: {parameter.name} is tuned, and given as a setting as well; leave one out"
            )
    options = complete_options(options or {})
    options["algo"] = options["algo"] or ("bayes" if space.size() is None else "exhaustive")
    given = {name: each.value for name, each in read_config_files(config_files).items()} | dict(settings or {})
    given = {name: value for name, value in given.items() if name not in ("model", "dataset", "checkpoint_dir")}
    given["data_path"] = str(Path(base.settings()["data_path"]).absolute())
    parent = Path(base["checkpoint_dir"]).absolute()
    sweep = Sweep(parent, model_name(base.model_class, importable=True), dataset, given, space, options)
    sweep.folder = parent / f"tune-{base.model}-{dataset}-{options['tool']}-{sweep.key[:12]}"
    if (sweep.folder / "tuning.json").is_file():
        sweep.load(read_record(sweep.folder))
    return _search(sweep)


def resume_tuning(folder: str | Path, settings: Mapping[str, Any] | None = None, max_evals: int | None = None) -> Sweep:
    """Resume a sweep, with the settings it has but for the given ones, which say where and how fast trials run.

    `settings` also confirm a model of the user's own, `{"model": "package.module:Class"}`, which importing executes.
    Raises UserError for a directory or data that are not a sweep's; else as `tune`.
    """
    folder, changes = Path(folder).absolute(), dict(settings or {})
    record = read_record(folder)
    model, confirmed = record["model"], changes.pop("model", None)
    if confirmed != model and (confirmed or ":" in model):
        raise UserError(f"{folder}: the model is {model!r}; confirm it with --model={model}")
    for name in changes:
        if role(name) not in ("machine", "location") or name == "checkpoint_dir":
            raise UserError(f"{name}: a resumed sweep keeps its settings; start a new one")
    options = complete_options(record["options"] | ({"max_evals": max_evals} if max_evals else {}))
    given = {**record["settings"], **changes}
    given["data_path"] = str(Path(given["data_path"]).absolute())
    space = parse_space("\n".join(record["space"]), str(folder / "tuning.json"))
    sweep = Sweep(folder, model, record["dataset"], given, space, options)
    if sweep.key != record["key"]:
        raise UserError(f"{folder}: of other data, or of another version of recbole-sigma; start a new sweep")
    sweep.load(record)
    return _search(sweep)


def _search(sweep: Sweep) -> Sweep:
    """Run the trials that are missing, then test the best one."""
    base, size, max_evals = sweep.config(), sweep.space.size(), sweep.options["max_evals"]
    n_trials = max_evals or 20
    if sweep.options["algo"] == "exhaustive":
        if size is None:
            endless = next(each for each in sweep.space.parameters if each.kind != "choice")
            raise UserError(f"--algo=exhaustive needs choices, got {str(endless)!r}; use random or bayes")
        if max_evals is None and size > 10_000:
            raise UserError(f"{size} settings would be tried: give max_evals")
        n_trials = min(max_evals or size, size)
    if sweep.options["tool"] == "ray" and base["nproc"] > 1:
        raise UserError(f"nproc must be 1 with --engine=ray, which runs trials side by side, got {base['nproc']}")
    make_directory(sweep.folder)

    def finish(values: Mapping[str, Any], error: str) -> Trial:
        """Record that a trial is finished, and show it."""
        trial = sweep.record(values, error)
        bar.set_postfix_str(f"best {sweep.metric} {max(map(sweep.score, sweep.trials)):.4f}", refresh=False)
        bar.update()
        if error:
            tqdm.write(f"trial failed: {values}: {error}", file=sys.stderr)
        return trial

    try:
        if sweep.finished < n_trials:
            sweep.finished = 0
            sweep.write()
            shown = None if base["show_progress"] else True
            with tqdm(total=n_trials, unit="trial", desc="trials", dynamic_ncols=True, disable=shown) as bar:
                (_by_ray if sweep.options["tool"] == "ray" else _by_hyperopt)(sweep, base, n_trials, finish)
        best = sweep.best
        limit = {"epochs": best.epochs} if best.status == "stopped" else {}  # it ends where the scheduler stopped it
        sweep.winner = ensure(prepare(sweep.config(best.values), {**_QUIET, **limit}, sweep.folder), test=True)
        sweep.finished = max(n_trials, sweep.finished)
        sweep.write()
    except KeyboardInterrupt:
        raise Interrupted(sweep.folder, f"recbole-sigma tune --resume={shlex.quote(str(sweep.folder))}") from None
    return sweep


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
        error = ""
        try:
            ensure(prepare(sweep.config(values), _QUIET, sweep.folder), test=False)
        except UserError as failure:
            error = str(failure)
        score = sweep.score(finish(values, error))
        nothing: dict[str, Any] = {"model": "", "best_valid_result": {}, "test_result": {}}  # only printed
        return {"best_valid_score": score, "valid_score_bigger": True, **nothing}

    algo, points = sweep.options["algo"], None
    if algo == "exhaustive":
        algo, points = lambda *_: [], sweep.space.points(n_trials, base["seed"])
    tuning = HyperTuning(objective, sweep.space.hyperopt(), algo=algo)
    drawn = {"points_to_evaluate": points, "rstate": np.random.default_rng(base["seed"])}
    with contextlib.redirect_stdout(io.StringIO()):  # RecBole prints each trial
        fmin(tuning.trial, tuning.space, tuning.algo, n_trials, **drawn, show_progressbar=False, verbose=False)


def _by_ray(sweep: Sweep, base: Config, n_trials: int, finish: Finish) -> None:
    """Trials side by side, on this machine or a cluster; with `asha`, those that are behind are stopped early."""
    from recbole_sigma.experiment.ray import cluster  # first: it sets what ray reads when imported

    from ray import tune  # isort: skip
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.hyperopt import HyperOptSearch

    class Leader(tune.Callback):
        """Records trials in the process that leads the sweep."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            sweep.record(sweep.space.values(trial.config), running=True)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            finish(sweep.space.values(trial.config), (trial.last_result or {}).get("failure", ""))

    algo, jobs, cpus, gpus = (sweep.options[name] for name in ("algo", "jobs", "cpus_per_trial", "gpus_per_trial"))
    if gpus is None:
        gpus = 1.0 if base["device"].type == "cuda" else 0.0
    if algo == "exhaustive":
        points = sweep.space.points(n_trials, base["seed"])
    else:
        points = [sweep.space.samples(trial.values) for trial in sweep.trials][:n_trials]
    goal: dict[str, Any] = {"metric": "score", "mode": "max"}
    seed = base["seed"] + len(points)  # what is drawn after the points was not drawn before
    at_random = 20 if algo == "bayes" else n_trials  # before bayes looks at results, as with Hyperopt alone
    drawn = {"points_to_evaluate": points or None, "n_initial_points": at_random, "random_state_seed": seed}
    searcher = HyperOptSearch(sweep.space.hyperopt(), **goal, **drawn)
    tuned = [value for each in sweep.space.parameters if each.name == "epochs" for value in each.extremes()]
    last_epoch, grace_period = max([base["epochs"], *tuned]) - 1, sweep.options["grace_period"]
    scheduler = None
    if sweep.options["asha"] and grace_period <= last_epoch:  # a trial that gets as far as its last epoch completes
        halving = {"reduction_factor": sweep.options["reduction_factor"], "stop_last_trials": False}
        scheduler = ASHAScheduler(time_attr="epochs", grace_period=grace_period, max_t=last_epoch, **halving)
    machine = {"threads": max(int(cpus), 1), **sweep.settings} | ({} if gpus else {"use_gpu": False})
    trainable = tune.with_parameters(_train_in_ray, sweep=replace(sweep, settings=machine))
    goal |= {"num_samples": n_trials, "max_concurrent_trials": jobs}
    settings = tune.TuneConfig(search_alg=searcher, scheduler=scheduler, reuse_actors=True, **goal)
    storage = str(sweep.folder / ".ray")  # pickles, which nobody reads
    shutil.rmtree(storage, ignore_errors=True)  # of a sweep that was killed
    retries = tune.FailureConfig(max_failures=2)  # of a trial whose process was killed: for memory, for example
    files = tune.RunConfig("ray", storage, callbacks=[Leader()], failure_config=retries, verbose=0)
    with cluster(jobs, cpus, gpus):
        try:
            resources = tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus})
            tune.Tuner(resources, tune_config=settings, run_config=files).fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _train_in_ray(samples: Mapping[str, Any], sweep: Sweep) -> None:
    """A trial in one of Ray's processes; reports the best score so far after each epoch."""
    from ray import tune

    values, failure = sweep.space.values(samples), ""
    reported: dict[str, Any] = {"epochs": 0, "score": 0.0}

    def report(*rows: Mapping[str, float]) -> None:
        for row in rows:
            if sweep.metric in row and row["epoch"] >= reported["epochs"]:
                reported.update(epochs=int(row["epoch"]) + 1, score=max(reported["score"], row[sweep.metric]))
                tune.report(dict(reported))

    try:
        directory = prepare(sweep.config(values), _QUIET, sweep.folder)
        if run := furthest_run(directory):
            report(*read_epochs(run))
        if sweep.trial(values).status != "stopped":
            run = ensure(directory, [SimpleNamespace(on_epoch_end=report)], test=False).folder
            report(*read_epochs(run))  # also those of another process that was waited for
    except UserError as error:
        failure = str(error)
    if failure or not reported["epochs"]:  # Ray wants a result of every trial
        tune.report({**reported, "failure": failure})
