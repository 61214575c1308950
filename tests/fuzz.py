"""Bad input in bulk: `python tests/fuzz.py --n 10000` runs `recbole-sigma` on generated files, settings, command lines.

Each case is a run of `cli.main` in this process, in a folder of its own. It must end within seconds, with exit status
0 and a result that can be right, or with exit status 2 and one line that names what is wrong. No exception, no memory
without bound, no file outside the run's folder. Cases that fail are printed as a command that runs them again.
"""

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from recbole_sigma import cli  # noqa: E402
from recbole_sigma.config.config import Config  # noqa: E402
from recbole_sigma.config.values import read_config_file  # noqa: E402
from tests.helpers import fuzz_cases, fuzz_folders  # noqa: E402
from tests.helpers.fuzz_cases import SMALL, Case, tiny_inter  # noqa: E402
from tests.helpers.fuzz_words import CANARY  # noqa: E402

# What is fuzzed: a name and a strategy of Cases. A further kind is one line here.
KINDS = {
    "files": fuzz_cases.files(),
    "settings": fuzz_cases.settings(),
    "commands": fuzz_cases.commands(),
    "folders": fuzz_folders.folder_cases(),
}
SECONDS = 10
BYTES = 2**30  # that a case may add to the memory of the process
# Beyond what the process has at the start: what it cannot get is a refusal, not a full machine.
ADDRESS_SPACE = 3 * 2**30
LONGEST_LINE = 1000
PREFIX = "recbole-sigma: error: "
RUN_FOLDER = re.compile(r"[\w-]+-.*-\d{8}-\d{6}-[0-9a-f]{6}")


class Hang(BaseException):
    """No Exception: nothing that it interrupts may take it for one of its own."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `result` is `done`, `refused`, `help` or `FAILED`; `fault` says what was wrong with it."""

    result: str
    seconds: float
    message: str = ""
    fault: str = ""


def judge(case: Case, limit: float = SECONDS) -> Outcome:
    """Run a case and say whether it ended as every input must; `limit` in seconds, 0 for none."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, _here(Path(place, "some", "where")) as here:
        _lay_out(case, here)
        before = set(Path(place).rglob("*"))
        memory, started = _peak_bytes(), time.perf_counter()
        status, out, err, fault = _run(case.argv, limit)
        seconds = time.perf_counter() - started
        if status == 130:
            raise KeyboardInterrupt
        fault = fault or (
            _wrong_refusal(case, err) if status == 2 else _wrong_result(case, here, out) if out and status == 0 else ""
        )
        fault = fault or _wrong_files(Path(place), set(Path(place).rglob("*")) - before)
    if not fault and _peak_bytes() - memory > BYTES:
        fault = f"took {(_peak_bytes() - memory) / 2**20:.0f} MB"
    if not fault and status not in (0, 2, "help"):
        fault = f"exit status {status}"
    result = "FAILED" if fault else {0: "done", 2: "refused"}.get(status, "help")
    return Outcome(result, seconds, err.strip().rpartition("\n")[2], fault)


def _run(argv: list[str], limit: float) -> tuple[Any, str, str, str]:
    """Exit status, stdout, stderr, and what went wrong, of `recbole-sigma argv`."""
    out, err = _stream("strict"), _stream("backslashreplace")  # as Python sets up the two of a process
    fault, status = "", None
    ours = logging.getLogger("recbole_sigma")
    for handler in list(ours.handlers):
        ours.removeHandler(handler)  # it writes to the stderr of an earlier case
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), _no_stdin():
        try:
            with _limit(limit):
                status = cli.main(argv)
        except SystemExit as ended:
            status = "help" if ended.code in (0, None) else ended.code
        except Hang:
            fault = f"still running after {limit} s\n{_last_frames()}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = f"{type(error).__name__}: {error}"[:500] + f"\n{_last_frames()}"
    for stream in (out, err):
        stream.flush()
    return status, _text(out), _text(err), fault


def _last_frames() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])[-5:]
    return "".join(f"    {frame.filename.rpartition('packages/')[2]}:{frame.lineno} {frame.line}\n" for frame in frames)


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[Path]:
    """`folder` as the working directory: deep enough that `..` stays where files are counted."""
    folder.mkdir(parents=True)
    old = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(old)


@contextlib.contextmanager
def _no_stdin() -> Iterator[None]:
    old, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = old


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise Hang after so many seconds, and again, should something have caught it."""

    def stop(*_: Any) -> None:
        raise Hang

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _lay_out(case: Case, here: Path) -> None:
    for name in case.folders:
        (here / name).mkdir(parents=True)
    for name, text in case.files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(text.encode("latin-1"))
    for name, target in case.links.items():
        (here / name).symlink_to(target)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def _wrong_refusal(case: Case, err: str) -> str:
    """What is wrong with the lines on stderr, or nothing."""
    lines = err.splitlines()
    if err.count(PREFIX) != 1 or not lines or not lines[-1].startswith(PREFIX) or err.count("\n") != len(lines):
        return f"not one line of error, last: {err[-500:]!r}"
    message = lines[-1].removeprefix(PREFIX)
    if "Traceback" in err or not message or not message.isprintable() or len(message) > LONGEST_LINE:
        return f"not a line to read: {message[:500]!r}, {len(message)} characters"
    if case.right:
        return f"nothing is wrong with this input, but: {message}"
    if case.named and not any(name and name in message for name in case.named):
        return f"the message names no setting, file or line: {message}"
    return ""


def _wrong_result(case: Case, here: Path, out: str) -> str:
    """What is wrong with the folder of a training that ended well, or nothing."""
    if case.argv[0] != "train":
        return ""
    if case.kind == "folders":
        return fuzz_folders.wrong_resume(case, here, out)
    folder = here / out.splitlines()[-1]
    return _wrong_config(folder / "config.yaml") or _wrong_metrics(case, folder)


def _wrong_config(file: Path) -> str:
    """The file must be read back as the settings of the same run."""
    settings = {key: given.value for key, given in read_config_file(file).items()}
    again = Config(settings["model"], settings["dataset"], config_files=[file]).settings()
    other = {key: (settings.get(key), again.get(key)) for key in {**settings, **again}}
    other = {key: pair for key, pair in other.items() if pair[0] != pair[1]}
    return f"config.yaml is read back as other settings: {other}" if other else ""


def _wrong_metrics(case: Case, folder: Path) -> str:
    """Metrics and ranks out of range, or of targets that are not the users' last items."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metrics = {**result["valid"], **{f"test {name}": number for name, number in result["test"].items()}}
    if not metrics or not all(0 <= number <= 1 for number in metrics.values()):
        return f"metrics out of range: {metrics}"
    items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
    for part in ("valid", "test"):
        with np.load(folder / f"ranks-{part}.npz", allow_pickle=False) as ranks:
            if not len(ranks["rank"]) or not np.all((ranks["rank"] >= 1) & (ranks["rank"] <= len(items))):
                return f"ranks of {part} out of range: {ranks['rank']}"
            if not set(ranks["target"]) <= set(items):
                return f"targets of {part} are no items: {set(ranks['target']) - set(items)}"
            targets = dict(zip(ranks["user"].tolist(), ranks["target"].tolist(), strict=True))
            if part == "test" and case.right and targets != _last_items(case):
                return f"wrong targets: {targets}, not {_last_items(case)}"
    return ""


def _last_items(case: Case) -> dict[str, str]:
    """Of the users with three interactions or more: what stands last in time, equal times as in the file."""
    rows = [line.split("\t") for line in case.files["dataset/tiny/tiny.inter"].split("\n")[1:-1]]
    users = Counter(user for user, *_ in rows)
    ordered = sorted(rows, key=lambda row: float(row[2]))
    return {user: item for user, item, _ in ordered if users[user] >= 3}


def _wrong_files(place: Path, new: set[Path]) -> str:
    """A file that is in no run's folder, or that stands under a temporary name."""
    for path in sorted(new):
        inside = [each for each in path.relative_to(place).parts if RUN_FOLDER.fullmatch(each)]
        if path.name == CANARY or (path.is_file() and not inside) or path.name.endswith(".part"):
            return f"left behind: {path.relative_to(place)}"
    return ""


# --- many of them


def cases(kind: str, n: int, first_seed: int) -> Iterator[Case]:
    """`n` cases of a kind, the same for the same seed; anew every hundred, since Hypothesis starts simple."""
    for number in itertools.count():
        found = drawn(kind, min(n, 100), first_seed + number)
        yield from found
        n -= len(found)
        if n <= 0:
            return


def drawn(kind: str, n: int, number: int) -> list[Case]:
    """At most `n` cases of a kind, as many as Hypothesis finds different ones."""
    found: list[Case] = []

    @seed(number)
    @settings(
        max_examples=n, database=None, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(KINDS[kind])
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found[:n]


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """What is refused beyond ADDRESS_SPACE inside is refused by the system, before the machine is full."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(FileNotFoundError):  # where there is no /proc, there is no limit
        used = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 2**10
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def warm_up() -> None:
    """Imports and compilation, which no case should wait for."""
    small = [f"--{key}={value}" for key, value in SMALL.items()]
    for model in ("Mamba4Rec", "SIGMA"):
        case = Case("warm-up", ["train", f"--model={model}", *small], {"dataset/tiny/tiny.inter": tiny_inter()})
        outcome = judge(case, limit=0)
        if outcome.fault:
            raise RuntimeError(f"the input that must be right fails: {outcome.fault}")
    judge(Case("warm-up", ["models"]), limit=0)


def main() -> int:
    """Exit status 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="cases, evenly of each kind (1000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kind", choices=KINDS, help="of this kind only")
    parser.add_argument("--replay", metavar="TEXT", help="run one case, as printed for one that failed")
    args = parser.parse_args()
    warm_up()
    with limited_memory():
        if args.replay:
            case = Case.unpacked(args.replay)
            outcome = judge(case)
            print(case, outcome, outcome.fault, sep="\n")
            return int(bool(outcome.fault))
        return _many([args.kind] if args.kind else list(KINDS), args.n, args.seed)


def _many(kinds: list[str], n: int, first_seed: int) -> int:
    """Run cases of each kind and say how they ended; those so far, if Ctrl-C ends it."""
    counts: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    slowest = (0.0, "")
    try:
        for index, kind in enumerate(kinds):
            share = n // len(kinds) + (index < n % len(kinds))
            for case in tqdm(cases(kind, share, first_seed), desc=f"{kind:>9}", total=share, ncols=80):
                outcome = judge(case)
                counts[kind, outcome.result] += 1
                slowest = max(slowest, (outcome.seconds, case.packed() if outcome.seconds > slowest[0] else ""))
                if outcome.fault:
                    _report(case, outcome, faults)
    except KeyboardInterrupt:
        print("interrupted")
    print(f"seed {first_seed}")
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind:>9} {result:>8} {count:7}")
    print(f"slowest {slowest[0]:.2f} s: --replay {slowest[1]}\n{faults.total()} failed, of {len(faults)} sorts")
    return int(bool(faults))


def _report(case: Case, outcome: Outcome, faults: Counter[str]) -> None:
    """Print a case that failed; the same again and again would hide the others."""
    sort = re.sub(r"[\d.'\"]+", "", "\n".join(outcome.fault.splitlines()[::-1][:2]))[:150]
    faults[sort] += 1
    if faults[sort] <= 3:
        tqdm.write(f"FAILED {case.kind}: {outcome.fault}\n  {_shown(case)}\n  --replay {case.packed()}\n")


def _shown(case: Case) -> str:
    """The case for a reader: arguments and the files that are not as always."""
    drawn = {name: text[:300] for name, text in case.files.items() if name != "base.yaml"}
    if case.kind != "files":
        drawn.pop("dataset/tiny/tiny.inter", None)
    return f"{[each[:200] for each in case.argv]} {drawn} {case.links or ''} {case.folders or ''}"


if __name__ == "__main__":
    sys.exit(main())
