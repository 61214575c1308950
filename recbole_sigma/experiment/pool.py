"""Running what an experiment lacks, in processes of this machine: one that is killed takes no other with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from tqdm import tqdm

from recbole_sigma.config.values import dump_settings
from recbole_sigma.errors import UserError
from recbole_sigma.experiment.store import Slot

_PROGRAM = "recbole-sigma: "


@dataclass(frozen=True)
class Failure:
    """A run that did not come to an end, and the last line that it said."""

    slot: Slot
    reason: str


class Process(Protocol):
    """What is asked of a run's process, wherever it is; as of subprocess.Popen."""

    returncode: Any

    def poll(self) -> Any: ...
    def send_signal(self, number: int, /) -> None: ...
    def wait(self, seconds: float, /) -> Any: ...
    def kill(self) -> None: ...


Start = Callable[[list[str], Path, int], Process]


def start_here(command: list[str], log: Path, lock: int) -> Process:
    """The command as a process of this machine. It keeps its place's lock, should this process be killed before it."""
    with log.open("ab") as file:
        return subprocess.Popen(  # noqa: S603 - our own
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=(lock,)
        )


def run_missing(slots: Sequence[Slot], jobs: int, settings: dict[str, Any], start: Start = start_here) -> list[Failure]:
    """Train, or go on with, the runs that are not complete, `jobs` at a time. `settings` say where and how fast.

    A run that fails is told at the end and not tried again; one that another experiment trains is waited for. Ctrl-C
    ends all, each after its last complete epoch.
    """
    places = {slot.path: slot for slot in slots}  # two arms may be the same run
    waiting = [slot for slot in places.values() if slot.complete() is None]
    running: dict[Process, tuple[Slot, int]] = {}
    failures: list[Failure] = []
    clock = _Clock(len(places), len(waiting))
    with tqdm(total=len(places), initial=len(places) - len(waiting), unit="run", ncols=100, disable=None) as progress:
        try:
            while waiting or running:
                for slot in list(waiting):
                    if len(running) < jobs and (lock := _take(slot)) is not None:
                        waiting.remove(slot)
                        if slot.complete():  # by another experiment, a moment ago
                            os.close(lock)
                            progress.update()
                        else:
                            running[_begin(slot, settings, start, lock)] = slot, lock
                time.sleep(0.1)
                progress.set_postfix_str(_states([slot for slot, _ in running.values()])[:60])
                for process in [each for each in running if each.poll() is not None]:
                    slot, lock = running.pop(process)
                    os.close(lock)
                    if slot.complete() is None:
                        failures.append(Failure(slot, _reason(slot, process.returncode)))
                    progress.update()
                    tqdm.write(clock.line(slot, len(waiting) + len(running)), file=sys.stderr)
        except BaseException:
            _end(list(running))
            raise
    return failures


class _Clock:
    """How far an experiment is, and for how long it may go on: as long a run as those of this call took."""

    def __init__(self, total: int, missing: int) -> None:
        self._total, self._missing, self._begun = total, missing, time.monotonic()

    def line(self, slot: Slot, left: int) -> str:
        """Of a run that ended: which, and what is left."""
        planned, seconds = slot.planned, time.monotonic() - self._begun
        end = "done" if slot.complete() else "FAILED"
        rest = tqdm.format_interval(seconds / (self._missing - left) * left)
        run = f"{planned.arm.label}, {planned.dataset}, seed {planned.seed}: {end}"
        return f"{self._total - left} of {self._total} runs; {run}" + (f"; about {rest} left" if left else "")


def _take(slot: Slot) -> int | None:
    try:
        return slot.take()
    except OSError as error:
        raise UserError(f"{slot.path}: cannot be written: {error.strerror or error}") from None


def _begin(slot: Slot, settings: dict[str, Any], start: Start, lock: int) -> Process:
    """The process of a run: a new one, or the rest of one that was ended."""
    planned, folder = slot.planned, slot.ended()
    try:
        if folder:
            arguments: dict[str, Any] = {"resume": folder, **settings}
        else:
            file = slot.path / "settings.yaml"
            file.write_text(dump_settings({**planned.config.settings(), **settings}), encoding="utf-8")
            arguments = {"config_files": file, "checkpoint_dir": slot.path}
        return start([sys.executable, "-m", "recbole_sigma.cli", "train", *_options(arguments)], slot.log, lock)
    except OSError as error:
        raise UserError(f"{slot.path}: cannot be written: {error.strerror or error}") from None


def _options(arguments: dict[str, Any]) -> list[str]:
    """`--name=value`, the value as YAML in one line."""
    texts = {
        key: yaml.safe_dump(value if not isinstance(value, Path) else str(value), default_flow_style=True, width=10**6)
        for key, value in arguments.items()
    }
    return [f"--{key}={text.removesuffix('...' + chr(10)).strip()}" for key, text in texts.items()]


def _states(running: Sequence[Slot]) -> str:
    """A few words of where runs are."""
    if not running:
        return "waits for runs of another experiment"
    return " | ".join(f"{slot.planned.arm.label}: {_epoch(slot)}" for slot in running)


def _epoch(slot: Slot) -> str:
    epochs = [line for line in _last_lines(slot.log) if line.startswith("epoch ")]
    return epochs[-1].split("  ")[0] if epochs else "begins"


def _reason(slot: Slot, status: int) -> str:
    """Why a run has no result, in a line."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}; see {slot.log}"
    said = [line.removeprefix(_PROGRAM).removeprefix("error: ") for line in _last_lines(slot.log) if line.strip()]
    return said[-1] if said else f"ended with status {status}; see {slot.log}"


def _last_lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as log:
            log.seek(max(file.stat().st_size - 4096, 0))
            return log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _end(processes: list[Process]) -> None:
    """As Ctrl-C does, which reaches them, too, unless this process alone was told."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
