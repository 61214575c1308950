"""Kill trainings with SIGKILL at random moments, resume them, and compare the end with runs that nobody disturbed.

    python tests/kill.py --n 200

After every kill: the folder can be resumed, has every epoch that was complete, and no file in it is a part of one.
At the end of a run: weights, ranks and metrics equal the undisturbed run's to the last bit. Exit status 1 if not.
"""

import argparse
import csv
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_sigma import resume, run
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.runs import files
from recbole_sigma.runs.files import digest
from recbole_sigma.runs.folder import RunFolder

SETTINGS = {
    "MAX_ITEM_LIST_LENGTH": 10, "hidden_size": 16, "train_batch_size": 512, "epochs": 5, "stopping_step": 2,
    "user_inter_num_interval": "[0,30]", "use_gpu": False, "show_progress": False, "threads": 1, "state": "ERROR",
}  # fmt: skip
MODELS = ("Mamba4Rec", "BERT4Rec", "SIGMA", "GRU4Rec")
MOMENTS = ("at any time", "in a step", "in an evaluation", "in a write", "making the folder")
LONGEST = 120.0  # seconds that a child may take


def main() -> int:
    """Kill `--n` times, over as many runs as that takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), help="(default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        kills, failures = kill_often(Path(work), args.n, args.seed, args.models.split(","))
    print("\n".join(f"{count:5d} {moment}" for moment, count in sorted(kills.items())))
    print(f"{kills.total()} kills, {len(failures)} failures", *failures, sep="\n")
    return int(bool(failures))


def kill_often(work: Path, n_kills: int, seed: int, models: list[str]) -> tuple[Counter[str], list[str]]:
    """Kills by moment, and what was wrong after them, a line each."""
    moments = random.Random(seed)
    references: dict[str, dict[str, Any]] = {}
    kills: Counter[str] = Counter()
    failures: list[str] = []
    progress = tqdm(total=n_kills, unit="kill", disable=None)
    for number in range(10 * n_kills):
        if kills.total() >= n_kills:
            break
        model, saved = models[number % len(models)], work / str(number)
        if model not in references:
            child(functools.partial(run, model, "ml-100k", settings={**SETTINGS, "checkpoint_dir": str(work / model)}))
            references[model] = outcome(only_folder(work / model))
        try:
            for moment in one_run(model, saved, moments):
                kills[moment] += 1
                progress.update()
            if outcome(only_folder(saved)) != references[model]:
                raise AssertionError("the end is another than that of the undisturbed run")
        except AssertionError as error:
            failures.append(f"{model}, run {number}: {error}")
        shutil.rmtree(saved)
    return kills, failures


def one_run(model: str, saved: Path, moments: random.Random) -> Any:
    """Kill and resume until the run ends by itself; yields the moment of each kill that came before the end."""
    complete = 0
    while True:
        moment = moments.choice(MOMENTS)
        plan = random.Random(moments.random())
        folder = only_folder(saved)

        def work(folder: Path | None = folder, moment: str = moment, plan: random.Random = plan) -> None:
            if moment != "at any time":
                arm(moment, plan)
            if folder:
                resume(folder)
            else:
                run(model, "ml-100k", settings={**SETTINGS, "checkpoint_dir": str(saved)})

        seconds = plan.uniform(0.3, 3.0) if moment == "at any time" else LONGEST
        status, reported = child(work, seconds)
        complete = max([complete, *reported])
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"status {os.WEXITSTATUS(status)} after a kill"
            return
        assert seconds < LONGEST or os.WTERMSIG(status) == signal.SIGKILL
        check_folder(saved, complete)
        yield moment


def child(work: Callable[[], Any], seconds: float = LONGEST) -> tuple[int, list[int]]:
    """`work()` in a fork that is killed after `seconds`: its wait status, and each number of complete epochs."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            report_complete_epochs(write)
            work()
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    os.close(write)
    deadline = time.monotonic() + seconds
    while (exited := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            exited = os.waitpid(process, 0)
            break
        time.sleep(0.01)
    with os.fdopen(read, "rb") as pipe:
        return exited[1], list(pipe.read())


def report_complete_epochs(pipe: int) -> None:
    """In a child: a byte with the number of complete epochs after each."""
    from recbole_sigma.training.checkpoint import Checkpoint

    on_epoch_end = Checkpoint.on_epoch_end

    def reported(self: Any, row: Any) -> None:
        on_epoch_end(self, row)
        os.write(pipe, bytes([row["epoch"] + 1]))

    Checkpoint.on_epoch_end = reported  # type: ignore[method-assign]


def arm(moment: str, plan: random.Random) -> None:
    """In a child: end it with SIGKILL at the `moment`, some time."""
    from recbole_sigma.training.trainer import SequenceTrainer

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
        left = iter(range(calls))

        def counted(*args: Any) -> Any:
            if next(left, None) is None:
                kill()
            return function(*args)

        return counted

    if moment == "in a step":
        SequenceTrainer.step = after(SequenceTrainer.step, plan.randrange(40))  # type: ignore[method-assign]
    elif moment == "in an evaluation":
        SequenceTrainer._batch_ranks = after(SequenceTrainer._batch_ranks, plan.randrange(6))  # type: ignore[method-assign]
    elif moment == "making the folder":
        Path.rename = after(Path.rename, 0)  # type: ignore[method-assign]
    else:
        files.write_file = killing_write(files.write_file, plan, kill)


def killing_write(write_file: Callable[..., None], plan: random.Random, kill: Callable[[], None]) -> Any:
    """`write_file` that at one call ends the process before, within, or after."""
    calls, stage = plan.randrange(12), plan.choice(("before", "half", "written", "renamed"))

    def write(path: Path, fill: Callable[[Path], None]) -> None:
        nonlocal calls
        calls -= 1
        if calls >= 0:
            return write_file(path, fill)
        if stage == "renamed":
            write_file(path, fill)
        elif stage != "before":
            partial = path.with_name(f".{path.name}.{os.getpid()}.part")
            fill(partial)
            os.truncate(partial, partial.stat().st_size // (2 if stage == "half" else 1))
        return kill()

    return write


def only_folder(saved: Path) -> Path | None:
    """The one run in `saved`, or None; half-made folders are hidden."""
    folders = [each for each in saved.iterdir() if not each.name.startswith(".")] if saved.is_dir() else []
    assert len(folders) <= 1, f"{len(folders)} folders of one run"
    return folders[0] if folders else None


def check_folder(saved: Path, complete: int) -> None:
    """What must hold after a kill, after `complete` epochs were reported."""
    path = only_folder(saved)
    if path is None:
        assert complete == 0, "the folder is gone"
        return
    folder = RunFolder(path)
    with folder.locked():
        state = folder.load_state()
    epochs = len(state["epochs"]) if state else 0
    assert epochs >= complete, f"{complete} epochs were complete, the state has {epochs}"
    files.read_json(path / "items.json", list)
    if folder.weights.exists():
        folder.load_weights()
    if (path / "result.json").exists():
        files.read_json(path / "result.json", dict)


def outcome(path: Path | None) -> dict[str, Any]:
    """All of a run that must not depend on kills."""
    assert path is not None
    result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    ranks = {part: Ranks.load(path / f"ranks-{part}.npz").arrays() for part in ("valid", "test")}
    with (path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: row[key] for key in row if "seconds" not in key} for row in csv.DictReader(file)]
    return {
        "weights": digest(RunFolder(path).load_weights()),
        "ranks": {part: {name: array.tolist() for name, array in arrays.items()} for part, arrays in ranks.items()},
        "rows": rows,
        **{key: result[key] for key in ("valid", "test", "epochs", "best_epoch", "dataset", "protocol")},
    }


if __name__ == "__main__":
    sys.exit(main())
