"""Many runs, each in a child process that completes it: a process that is killed takes no other with it."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tqdm import tqdm

from recbole_sigma.config.schema import may_change
from recbole_sigma.config.values import read_config_file
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.spec import Planned
from recbole_sigma.experiment.store import complete_run, prepare, run_key, unfinished_run
from recbole_sigma.quick_start import resume, run
from recbole_sigma.registry import find_model
from recbole_sigma.runs.files import locked
from recbole_sigma.runs.reader import RecordedRun, last_line
from recbole_sigma.runs.result import RunResult
from recbole_sigma.training.callbacks import Callback

# Ensures the run of a directory in another process and returns its exit status; asks it to stop once the event is set.
Launch = Callable[[Path, threading.Event], int]
SECONDS_TO_STOP = 30  # for the files of the current epoch


def ensure(directory: str | Path, callbacks: Sequence[Callback] = (), test: bool = True) -> RunResult:
    """Complete the run that `directory/settings.yaml` describes: return its result, resume it, or train it.

    Waits while another process is at the same run, so that nothing is trained twice.

    Args:
        directory: made by `store.prepare`; the run directory is inside.
        callbacks: called after each further epoch.
        test: False for a trial of a sweep. A complete trial is tested as soon as this is True.

    Raises:
        UserError: for settings, data or a training that cannot be right.
        Interrupted: for Ctrl-C.
    """
    directory = Path(directory).absolute()
    file = directory / "settings.yaml"
    settings = {key: given.value for key, given in read_config_file(file).items()}
    model, dataset = settings.get("model"), settings.get("dataset")
    if not isinstance(model, str) or not isinstance(dataset, str):
        raise UserError(f"{file}: model and dataset must be names, got {model!r} and {dataset!r}")
    with locked(directory, wait=True):
        if complete := complete_run(directory, tested=test):
            return resume(complete, model=find_model(model), test=test)
        folder = complete_run(directory) or unfinished_run(directory)
        if folder is None:
            location = {"checkpoint_dir": str(directory)}
            return run(model, dataset, [file], location, callbacks=callbacks, test=test)
        before = {key: given.value for key, given in read_config_file(folder / "config.yaml").items()}
        changes = {key: value for key, value in settings.items() if may_change(key) and before.get(key) != value}
        return resume(folder, changes, find_model(model), callbacks=callbacks, test=test)


def run_all(
    runs: Sequence[Planned],
    checkpoint_dir: Path,
    jobs: int,
    launcher: AbstractContextManager[Launch] | None = None,
) -> list[RecordedRun]:
    """Complete every run and return them all as recorded; one that fails says why and is not tried again.

    Args:
        runs: of `Experiment.runs`.
        checkpoint_dir: where the runs of all experiments are kept, by key.
        jobs: runs at the same time.
        launcher: what starts the processes, entered only if some run is missing; by default on this machine.

    Raises:
        Interrupted: for Ctrl-C, after all processes have stopped; the same call resumes.
    """
    parent = checkpoint_dir.absolute()
    directories = [parent / run_key(planned.config) for planned in runs]
    # Two arms may be the same run.
    missing = {
        directory: planned
        for directory, planned in zip(directories, runs, strict=True)
        if complete_run(directory, tested=True) is None
    }
    for planned in missing.values():
        prepare(planned.config, {}, parent)
    problems: dict[Path, str] = {}
    if missing:
        try:
            with launcher or nullcontext(run_child) as launch:
                problems = _run_missing(missing, len(set(directories)), jobs, launch)
        except KeyboardInterrupt:
            raise Interrupted(checkpoint_dir, "the same command") from None
    return [
        RecordedRun(
            label=planned.arm.label,
            model=planned.arm.model,
            dataset=planned.dataset,
            seed=planned.seed,
            folder=complete_run(directory, tested=True) or unfinished_run(directory),
            settings=planned.config.settings(),
            varied=dict(planned.arm.settings),
            problem=problems.get(directory, ""),
        )
        for directory, planned in zip(directories, runs, strict=True)
    ]


def _run_missing(missing: Mapping[Path, Planned], total: int, jobs: int, launch: Launch) -> dict[Path, str]:
    """Run what is missing, `jobs` at a time, and report each finished run on stderr; why a run failed, by directory."""
    problems: dict[Path, str] = {}
    stop, started = threading.Event(), time.monotonic()
    n_complete = total - len(missing)
    with (
        tqdm(total=total, initial=n_complete, unit="run", ncols=100, disable=None) as progress,
        ThreadPoolExecutor(jobs) as threads,
    ):
        futures = {threads.submit(launch, directory, stop): directory for directory in missing}
        try:
            for n_done, future in enumerate(as_completed(futures), 1):
                directory, status = futures[future], future.result()
                planned, left = missing[directory], len(missing) - n_done
                if complete_run(directory, tested=True) is None:
                    problems[directory] = _problem(directory / "log.txt", status)
                state = "FAILED" if directory in problems else "done"
                line = f"{n_complete + n_done} of {total} runs; {planned.arm.label}, {planned.dataset}, "
                line += f"seed {planned.seed}: {state}"
                if left:
                    seconds = (time.monotonic() - started) / n_done * left  # as long a run as those of this call took
                    line += f"; about {tqdm.format_interval(seconds)} left"
                progress.update()
                tqdm.write(line, file=sys.stderr)
        except BaseException:
            stop.set()
            threads.shutdown(cancel_futures=True)
            raise
    return problems


def run_child(directory: Path, stop: threading.Event) -> int:
    """Ensure one run in a child process of this machine that logs to `log.txt`; return its exit status."""
    command = [sys.executable, "-m", "recbole_sigma.cli", "ensure", str(directory)]
    try:
        with (directory / "log.txt").open("ab") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - our own
    except OSError as error:
        raise UserError(f"{directory}: cannot start a run: {error.strerror}") from None
    try:
        while child.poll() is None and not stop.wait(0.1):
            pass
    finally:
        if child.poll() is None:
            child.terminate()  # as Ctrl-C does: it keeps its last complete epoch
            try:
                child.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                child.kill()
    return child.wait()


def _problem(log: Path, status: int) -> str:
    """Why a run has no result, in one line."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; see {log}"
    line = last_line(log).removeprefix("recbole-sigma: ").removeprefix("error: ")
    return line or f"exit status {status}; see {log}"
