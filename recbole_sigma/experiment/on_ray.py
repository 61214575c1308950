"""Runs of an experiment as tasks of a Ray cluster: each is the same process as it would be here."""

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_sigma.experiment.pool import Process, Start
from recbole_sigma.experiment.ray import RayOptions, cluster

import ray  # isort: skip  # after by_ray, which sets what Ray reads at import


class _Task:
    """A process somewhere in the cluster."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference
        self.returncode: Any = None

    def poll(self) -> Any:
        """Exit status, or None while it runs; that of a kill where Ray has lost it."""
        return self.wait(0)

    def wait(self, seconds: float, /) -> Any:
        """`poll` after at most so many seconds."""
        if self.returncode is None and ray.wait([self._reference], timeout=seconds)[0]:
            try:
                self.returncode = ray.get(self._reference)
            except ray.exceptions.RayError:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        """End the process, which saves what it has."""
        ray.cancel(self._reference, force=number == signal.SIGKILL)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)


@contextmanager
def starting_on_ray(jobs: int, speed: Mapping[str, Any]) -> Iterator[Start]:
    """What starts commands in the cluster; a local cluster of `jobs` workers is there while the context is.

    A task takes as many CPUs as `speed` gives threads, and one GPU where there is one and `use_gpu` does not say no.
    """
    threads = max(int(speed.get("threads") or 1), 1)
    with cluster(RayOptions(jobs=jobs, cpus_per_trial=threads)):
        gpus = 1 if speed.get("use_gpu", True) and ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_run)

        def start(command: list[str], log: Path, _lock: int) -> Process:
            return _Task(task.remote(command, str(log)))

        yield start


def _run(command: list[str], log: str) -> int:
    """The command's exit status; ended as by Ctrl-C where the task is."""
    with Path(log).open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)  # noqa: S603 - our own
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
