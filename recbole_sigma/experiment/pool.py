"""Many runs, each in a child process that completes it: a process that is killed takes no other with it."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tqdm import tqdm

from recbole_sigma.config.config import Config
from recbole_sigma.config.schema import may_change
from recbole_sigma.config.values import read_config_file
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.spec import Arm
from recbole_sigma.experiment.store import complete_run, furthest_run, prepare
from recbole_sigma.quick_start import resume, run
from recbole_sigma.registry import find_model
from recbole_sigma.runs.files import locked
from recbole_sigma.runs.reader import RecordedRun, last_line
from recbole_sigma.runs.result import RunResult
from recbole_sigma.training.callbacks import Callback

# Ensures the run of a directory in another process, which it stops once the event is set. Returns why the run failed,
# "" if it did not.
Launch = Callable[[Path, threading.Event], str]
SECONDS_TO_STOP = 30  # for the files of the current epoch
SECONDS_TO_NOTICE = 0.5  # a Ctrl-C, at the latest


def ensure(directory: str | Path, callbacks: Sequence[Callback] = (), test: bool = True) -> RunResult:
    """Complete the run of `directory/settings.yaml`, else as `run`: nothing is trained twice, also by two processes."""
    directory = Path(directory).absolute()
    file = directory / "settings.yaml"
    settings = {key: given.value for key, given in read_config_file(file).items()}
    model, dataset = str(settings.get("model")), str(settings.get("dataset"))
    with locked(directory, wait=True):
        folder = furthest_run(directory)
        if folder is None:
            return run(model, dataset, [file], {"checkpoint_dir": str(directory)}, callbacks=callbacks, test=test)
        before = {key: given.value for key, given in read_config_file(folder / "config.yaml").items()}
        changes = {key: value for key, value in settings.items() if may_change(key) and before.get(key) != value}
        return resume(folder, changes, find_model(model), callbacks=callbacks, test=test)


def run_all(
    runs: Sequence[tuple[Arm, Config]],
    checkpoint_dir: Path,
    jobs: int,
    launcher: AbstractContextManager[Launch] | None = None,
) -> list[RecordedRun]:
    """Complete every run, `jobs` at the same time, and return them all as recorded, also one that failed.

    `launcher` starts the processes, by default on this machine; it is entered only if some run is missing. Raises
    Interrupted for Ctrl-C, after all processes have stopped; the same call resumes.
    """
    directories = [prepare(config, {}, checkpoint_dir) for _, config in runs]
    texts = [f"{arm.label}, {config.dataset}, seed {config['seed']}" for arm, config in runs]
    names = dict(zip(directories, texts, strict=True))  # two arms may be the same run
    missing = {path: name for path, name in names.items() if complete_run(path, tested=True) is None}
    problems: dict[Path, str] = {}
    if missing:
        try:
            with launcher or nullcontext(run_child) as launch:
                problems = _run_missing(missing, len(names), jobs, launch)
        except KeyboardInterrupt:
            raise Interrupted(checkpoint_dir, "the same command") from None
    return [
        RecordedRun(
            label=arm.label,
            model=arm.model,
            dataset=config.dataset,
            seed=config["seed"],
            folder=furthest_run(directory),
            settings=config.settings(),
            varied=dict(arm.settings),
            problem=problems.get(directory, ""),
        )
        for directory, (arm, config) in zip(directories, runs, strict=True)
    ]


def _run_missing(missing: Mapping[Path, str], total: int, jobs: int, launch: Launch) -> dict[Path, str]:
    """Run what is missing, `jobs` at a time, and report each finished run on stderr; why a run failed, by directory."""
    problems: dict[Path, str] = {}
    stop, started = threading.Event(), time.monotonic()
    with (
        tqdm(total=total, initial=total - len(missing), unit="run", dynamic_ncols=True, disable=None) as progress,
        ThreadPoolExecutor(jobs) as threads,
    ):
        futures = {threads.submit(launch, directory, stop): directory for directory in missing}
        waiting, n_done = set(futures), 0
        try:
            while waiting:
                # not without an end: a Ctrl-C that another thread receives is noticed only when this one wakes up
                done, waiting = wait(waiting, timeout=SECONDS_TO_NOTICE, return_when=FIRST_COMPLETED)
                for future in done:
                    n_done, directory = n_done + 1, futures[future]
                    left = len(missing) - n_done
                    problems[directory] = future.result()
                    line = f"{total - left} of {total} runs; {missing[directory]}: "
                    line += "FAILED" if problems[directory] else "done"
                    if left:
                        seconds = (time.monotonic() - started) / n_done * left  # as long a run as those of this call
                        line += f"; about {tqdm.format_interval(seconds)} left"
                    progress.update()
                    tqdm.write(line, file=sys.stderr)
        except BaseException:
            stop.set()
            threads.shutdown(cancel_futures=True)
            raise
    return problems


def run_child(directory: Path, stop: threading.Event) -> str:
    """`Launch` in a child process of this machine, which logs to `log.txt`."""
    command = [sys.executable, "-m", "recbole_sigma.cli", "ensure", str(directory)]
    log = directory / "log.txt"
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603
    except OSError as error:
        raise UserError(f"{directory}: cannot start a run: {error.strerror}") from None
    try:
        while child.poll() is None and not stop.wait(0.1):
            pass
    finally:
        child.terminate()  # if it still runs; as Ctrl-C does, it keeps its last complete epoch
        try:
            status = child.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; see {log}"
    line = last_line(log).removeprefix("recbole-sigma: ").removeprefix("error: ")
    return (line or f"exit status {status}; see {log}") if status else ""
