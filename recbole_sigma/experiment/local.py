"""Running what an experiment lacks, in processes of this machine: one that is killed takes no other with it."""

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

from recbole_sigma.errors import UserError
from recbole_sigma.experiment.plan import Slot
from recbole_sigma.settings import dump_settings

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


Start = Callable[[list[str], Path], Process]


def start_here(command: list[str], log: Path) -> Process:
    """The command as a process of this machine."""
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)  # noqa: S603 - our own


def run_missing(slots: Sequence[Slot], jobs: int, settings: dict[str, Any], start: Start = start_here) -> list[Failure]:
    """Train, or go on with, the runs that are not complete, `jobs` at a time. `settings` say where and how fast.

    A run that fails is told at the end and not tried again; Ctrl-C ends all, each after its last complete epoch.
    """
    waiting = [slot for slot in slots if slot.complete() is None]
    running: dict[Process, Slot] = {}
    failures: list[Failure] = []
    with tqdm(total=len(slots), initial=len(slots) - len(waiting), unit="run", ncols=100, disable=None) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    slot = waiting.pop(0)
                    running[_begin(slot, settings, start)] = slot
                time.sleep(0.1)
                progress.set_postfix_str(" | ".join(_state(slot) for slot in running.values())[:60])
                for process in [each for each in running if each.poll() is not None]:
                    slot = running.pop(process)
                    if slot.complete() is None:
                        failures.append(Failure(slot, _reason(slot, process.returncode)))
                    progress.update()
        except BaseException:
            _end(list(running))
            raise
    return failures


def _begin(slot: Slot, settings: dict[str, Any], start: Start) -> Process:
    """The process of a run: a new one, or the rest of one that was ended."""
    planned, folder = slot.planned, slot.ended()
    try:
        slot.path.mkdir(parents=True, exist_ok=True)
        if folder:
            arguments: dict[str, Any] = {"resume": folder, **settings}
        else:
            file = slot.path / "settings.yaml"
            file.write_text(dump_settings({**planned.config.settings(), **settings}), encoding="utf-8")
            arguments = {"config_files": file, "checkpoint_dir": slot.path}
        return start([sys.executable, "-m", "recbole_sigma.cli", "train", *_options(arguments)], slot.log)
    except OSError as error:
        raise UserError(f"{slot.path}: cannot be written: {error.strerror or error}") from None


def _options(arguments: dict[str, Any]) -> list[str]:
    """`--name=value`, the value as YAML in one line."""
    texts = {
        key: yaml.safe_dump(value if not isinstance(value, Path) else str(value), default_flow_style=True, width=10**6)
        for key, value in arguments.items()
    }
    return [f"--{key}={text.removesuffix('...' + chr(10)).strip()}" for key, text in texts.items()]


def _state(slot: Slot) -> str:
    """A few words of where a run is."""
    epochs = [line for line in _last_lines(slot.log) if line.startswith("epoch ")]
    return f"{slot.planned.arm.label}: {epochs[-1].split('  ')[0] if epochs else 'begins'}"


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
