"""Sweeps by Ray Tune: trials side by side, on this machine or a cluster, bad ones stopped early.

Ray keeps its state as pickles. None is read back: a sweep goes on from its own folder, where every trial that was
begun is tried first again, and tells the scheduler of the epochs that it has.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when ray is imported: no reports to its makers; Ctrl-C is ours; paths stay those of this process.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from recbole_sigma.errors import UserError
from recbole_sigma.experiment.pool import SECONDS_TO_STOP, Launch, run_child
from recbole_sigma.experiment.sweep import Outcome, Sweep, mark_stopped, read_outcome, train_trial

_OBJECT_STORE = 100 * 2**20  # bytes: trials pass metrics only
_RETRIES = 2  # of a trial whose process was killed: for memory, or with its machine


@dataclass(frozen=True)
class RayOptions:
    """How a sweep is spread, and when a trial is stopped.

    Attributes:
        jobs: trials at a time; None for as many as there is room for.
        cpus_per_trial, gpus_per_trial: what one takes, in parts of a CPU or GPU if need be.
        asha: stop trials whose validation is not among the best of what others had after as many epochs.
        grace_period: epochs that every trial gets.
        reduction_factor: one of so many trials goes on beyond a rung; the next rung is so many times as far.
    """

    jobs: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    asha: bool = True
    grace_period: int = 5
    reduction_factor: float = 3.0


class _Told(tune.Callback):
    """Passes on what happens to trials, to the process that leads the sweep."""

    def __init__(self, sweep: Sweep, ended: Callable[[Outcome], None]) -> None:
        self._sweep, self._ended = sweep, ended

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = self._sweep.space.values(trial.config)
        outcome = mark_stopped(self._sweep, values) or read_outcome(self._sweep.place(values))
        if outcome:
            self._ended(outcome)


def search(
    sweep: Sweep,
    algo: str,
    max_evals: int,
    seed: int,
    ended: Callable[[Outcome], None],
    options: RayOptions,
    epochs: int,
) -> None:
    """Try settings by `exhaustive`, `random` or `bayes`; `ended` is told of each trial, of at most `epochs` epochs."""
    if algo == "exhaustive":
        points = [sweep.space.samples(each) for each in sweep.space.places(max_evals, seed)]
    else:
        points = [each.samples for each in sweep.outcomes()][:max_evals]
    trainable = tune.with_parameters(train_in_ray, sweep=sweep)
    resources = {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}
    with cluster(options), _no_state(sweep) as storage:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space=None if algo == "bayes" else sweep.space.ray(),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=len(points) if algo == "exhaustive" else max_evals,
                max_concurrent_trials=options.jobs,
                search_alg=_searcher(sweep, algo, points, seed, options.jobs),
                scheduler=_scheduler(options, epochs),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=storage,
                callbacks=[_Told(sweep, ended)],
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                verbose=0,
            ),
        ).fit()


def train_in_ray(samples: Mapping[str, Any], sweep: Sweep) -> None:
    """A trial, in one of Ray's processes."""

    told = False

    def report(epochs: int, score: float) -> None:
        nonlocal told
        told = True
        tune.report({"epochs": epochs, "score": score})

    outcome = train_trial(sweep, samples, report)
    if not told:  # Ray wants a number of every trial
        tune.report({"epochs": outcome.epochs, "score": sweep.score(outcome)})


def _searcher(sweep: Sweep, algo: str, points: list[dict[str, Any]], seed: int, jobs: int | None) -> Any:
    """What draws settings: `points` first, then what no earlier part of the sweep has drawn."""
    if algo != "bayes":
        return BasicVariantGenerator(points or None, max_concurrent=jobs or 0, random_state=seed + len(points))
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(sweep.space.hyperopt(), "score", "max", points or None, random_state_seed=seed + len(points))


def _scheduler(options: RayOptions, epochs: int) -> Any:
    if not options.asha or options.grace_period >= epochs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epochs",
        max_t=epochs - 1,  # nothing is saved by stopping a trial after its last
        grace_period=options.grace_period,
        reduction_factor=options.reduction_factor,
        stop_last_trials=False,  # a trial at its last epoch ends by itself, and leaves a result
    )


@contextlib.contextmanager
def cluster(options: RayOptions) -> Iterator[None]:
    """A Ray to run in: the caller's, the cluster that RAY_ADDRESS names, or one of our own until the end."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _check_address(address)
            ray.init(**quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"RAY_ADDRESS: cannot join {address!r}: {' '.join(str(error).split())}") from None
    else:
        cpus = math.ceil(options.jobs * options.cpus_per_trial) if options.jobs else None
        # "local": without it Ray joins whatever cluster somebody has started on this machine.
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
    try:
        _check_room(options)
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise an OSError for a host and port where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _check_room(options: RayOptions) -> None:
    """Refuse a trial that no machine here has room for: Ray would wait for one for ever."""
    for kind, wanted in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
        most = max(node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"])
        if wanted > most:
            raise UserError(
                f"{kind.lower()}s_per_trial must be at most {most:g}, what a machine here has, got {wanted:g}"
            )


@contextlib.contextmanager
def tasks(jobs: int, machine: Mapping[str, Any]) -> Iterator[Launch]:
    """What launches runs as tasks of the cluster; a cluster of our own has `jobs` workers and ends with the context.

    A task takes as many CPUs as `machine` gives threads, and one GPU where there is one and `use_gpu` is not false.
    """
    threads = max(int(machine.get("threads") or 1), 1)
    with cluster(RayOptions(jobs=jobs, cpus_per_trial=threads)):
        gpus = 1 if machine.get("use_gpu", True) and ray.cluster_resources().get("GPU") else 0

        @ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)
        def child(directory: str) -> int:
            return run_child(Path(directory), threading.Event())  # a cancelled task is interrupted as by Ctrl-C

        def launch(directory: Path, stop: threading.Event) -> int:
            reference = child.remote(str(directory))
            while not ray.wait([reference], timeout=0.1)[0]:
                if stop.is_set():
                    ray.cancel(reference)
                    ray.wait([reference], timeout=SECONDS_TO_STOP)
                    ray.cancel(reference, force=True)
                    break
            try:
                return int(ray.get(reference))
            except ray.exceptions.RayError:  # Ray has lost the task, or it was cancelled
                return -signal.SIGKILL

        yield launch


@contextlib.contextmanager
def _no_state(sweep: Sweep) -> Iterator[str]:
    """A folder for what Ray writes, gone afterwards."""
    folder = (sweep.folder / ".ray").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
