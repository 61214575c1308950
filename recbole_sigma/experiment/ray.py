"""The Ray cluster in which runs are executed: one of our own, or the one that RAY_ADDRESS names."""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
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

from recbole_sigma.errors import UserError, one_line
from recbole_sigma.experiment.pool import SECONDS_TO_STOP, Launch, run_child


@contextlib.contextmanager
def cluster(jobs: int | None, cpus: float, gpus: float) -> Iterator[None]:
    """Join a cluster until the end: the caller's, the one that RAY_ADDRESS names, or one of our own on this machine.

    `jobs` runs at a time fit on one of our own (None: as many as there is room for); `cpus` and `gpus`, also fractions,
    are what one run takes. Raises UserError for an address without a cluster, and for runs too large for any machine.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdecimal() and "/" not in host:  # Ray would try for minutes where nobody listens
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(**quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"RAY_ADDRESS: cannot join {address!r}: {one_line(error)}") from None
    else:
        n_cpus = math.ceil(jobs * cpus) if jobs else None
        store = 100 * 2**20  # bytes: runs pass metrics only
        # "local": without it Ray joins whatever cluster somebody has started on this machine.
        ray.init("local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=store, **quiet)
    if on_sigterm and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray would exit at once and leave the runs' processes behind
    try:
        for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
            most = max(node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"])
            if wanted > most:  # Ray would wait for such a machine for ever
                right = f"at most {most:g}, what a machine here has"
                raise UserError(f"{kind.lower()}s_per_trial must be {right}, got {wanted:g}")
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def tasks(jobs: int, cpus: int, use_gpu: bool) -> Iterator[Launch]:
    """Launch runs as tasks of a cluster, each with so many CPUs, and a GPU if it uses one and there is one."""
    here = Path.cwd()
    with cluster(jobs, cpus, 0):
        gpus = 1 if use_gpu and ray.cluster_resources().get("GPU") else 0

        @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        def child(directory: Path) -> str:
            with contextlib.suppress(OSError):  # paths in settings may be relative
                os.chdir(here)
            return run_child(directory, threading.Event())  # a cancelled task is interrupted as by Ctrl-C

        def launch(directory: Path, stop: threading.Event) -> str:
            reference = child.remote(directory)
            while not ray.wait([reference], timeout=0.1)[0] and not stop.is_set():
                pass
            if stop.is_set():
                ray.cancel(reference)
                if not ray.wait([reference], timeout=SECONDS_TO_STOP)[0]:
                    ray.cancel(reference, force=True)
            try:
                return str(ray.get(reference))
            except ray.exceptions.RayError:
                return f"lost by Ray, or cancelled; see {directory / 'log.txt'}"

        yield launch
