"""Sweeps: validation chooses, test is evaluated once, and an interrupted sweep is resumed. Ray is a real one."""

import csv
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recbole.trainer.hyper_tuning import HyperTuning

from recbole_sigma import cli, resume
from recbole_sigma.commands.tune import tables
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment import search
from recbole_sigma.experiment.search import resume_tuning, tune
from recbole_sigma.experiment.space import OPTIONS, parse_space
from recbole_sigma.experiment.sweep import Sweep, Trial
from recbole_sigma.quick_start import run
from recbole_sigma.runs.result import RunResult
from recbole_sigma.training.trainer import SequenceTrainer
from tests.helpers.runs import TINY, environment

Begin = Callable[..., Sweep]  # the fixture `begin`

ROWS = [(f"u{user}", f"i{(user * 3 + step * (1 + user % 3)) % 12}", step) for user in range(40) for step in range(8)]
SMALL_BATCHES = {**TINY, "train_batch_size": 64}
GOOD_FIRST = next(seed for seed in range(99) if parse_space("a choice [0, 1, 2]", "").points(1, seed) == [{"a": 0}])
GRID = "learning_rate choice [0.02, 1e-6]\nnum_layers choice [1, 2]\n"


@pytest.fixture
def begin(tmp_path: Path, write_inter: Any) -> Begin:
    """`begin(setting=value, ...)` -> the result of a sweep over GRID on 40 users with 8 items each, in `saved`."""
    write_inter(ROWS)
    file = tmp_path / "hyper.test"
    file.write_text(GRID)

    def start(tool: str = "hyperopt", **given: Any) -> Sweep:
        options = {"tool": tool, **{key: given.pop(key) for key in OPTIONS if key in given}}
        if "space" in given:
            file.write_text(given.pop("space"))
        where = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
        model = given.pop("model", "Mamba4Rec")
        fixed = {name: value for name, value in SMALL_BATCHES.items() if f"{name} " not in file.read_text()}
        return tune(model, "tiny", file, settings={**fixed, **where, **given}, options=options)

    return start


def calls(monkeypatch: pytest.MonkeyPatch, method: str, of: Callable[..., Any]) -> list[Any]:
    """`of(trainer, arguments)` of every call of a trainer's method from now on."""
    notes: list[Any] = []
    original = getattr(SequenceTrainer, method)
    monkeypatch.setattr(SequenceTrainer, method, lambda *args, **kw: notes.append(of(*args)) or original(*args, **kw))
    return notes


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that were ranked: validation in every epoch, then valid and test."""
    return calls(monkeypatch, "ranks", lambda trainer, data, what: what.partition(",")[0])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained."""
    return calls(monkeypatch, "_train_epoch", lambda trainer, *_: len(trainer.rows))


def raising(error: type[BaseException], when: Callable[[], bool]) -> Any:
    """A callback that raises an error once `when` is true."""

    def on_epoch_end(row: Any) -> None:
        if when():
            raise error

    return SimpleNamespace(on_epoch_end=on_epoch_end)


def record(result: Sweep) -> dict[str, Any]:
    return json.loads((result.folder / "tuning.json").read_text())


def run_folders(result: Sweep) -> list[Path]:
    return sorted(file.parent for file in result.folder.glob("*/*/config.yaml"))


def test_hyperopt_chooses_on_validation_and_evaluates_test_once(
    begin: Begin, evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    trial = HyperTuning.trial
    monkeypatch.setattr(HyperTuning, "trial", lambda self, params: drawn.append(params) or trial(self, params))
    monkeypatch.setattr(HyperTuning, "_build_space_from_file", None)  # where RecBole would execute the file
    result = begin()
    assert len(drawn) == len(result.trials) == len(run_folders(result)) == 4
    assert evaluated.index("test") == len(evaluated) - 1
    assert result.winner.valid == result.best.valid
    assert result.best.valid["ndcg@10"] == max(trial.valid["ndcg@10"] for trial in result.trials)
    assert result.best.values["learning_rate"] == 0.02 and result.folder / result.best.folder == result.winner.folder
    for folder in run_folders(result):
        content = json.loads((folder / "result.json").read_text())
        assert ("test" in content) == (folder == result.winner.folder) != content.get("trial", False)
        assert (folder / "ranks-test.npz").exists() == (folder == result.winner.folder)
    alone = run("Mamba4Rec", "tiny", [result.winner.folder / "config.yaml"])
    assert replace(alone, folder=result.winner.folder) == result.winner  # the run that `train` makes


def test_files_have_every_trial_with_settings_validation_and_folder(begin: Begin) -> None:
    result = begin(space="num_layers choice [1, 2]", epochs=1)
    with (result.folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, trial, recorded in zip(rows, result.trials, record(result)["trials"], strict=True):
        assert int(row["num_layers"]) == trial.values["num_layers"] == recorded["values"]["num_layers"]
        assert float(row["valid ndcg@10"]) == trial.valid["ndcg@10"] == recorded["valid"]["ndcg@10"]
        assert row["folder"] == recorded["folder"] and (result.folder / row["folder"] / "model.safetensors").is_file()
        assert "test" not in "".join(row) + "".join(recorded)
    assert record(result)["winner"]["test"] == result.winner.test


def test_the_same_command_trains_nothing_again_and_more_trials_only_what_is_new(
    begin: Begin, trained: list[int], evaluated: list[str]
) -> None:
    first = begin(max_evals=2)
    assert len(trained) == 2 * 3
    assert begin(max_evals=2).winner == first.winner and len(trained) == 2 * 3
    more = begin()
    assert more.folder == first.folder and more.trials[:2] == first.trials and len(trained) == 4 * 3
    assert resume_tuning(more.folder).winner == more.winner and len(trained) == 4 * 3
    assert begin(hidden_size=32, max_evals=1).folder != more.folder
    assert begin(threads=None).folder == more.folder  # how fast it goes does not make another sweep
    again = evaluated.copy()
    begin()
    assert evaluated == again


def test_an_interrupted_sweep_is_resumed_in_the_middle_of_a_trial(begin: Begin, trained: list[int]) -> None:
    interrupting = raising(KeyboardInterrupt, lambda: len(trained) == 4)  # in the first epoch of the second trial
    ensure = search.ensure
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as interrupted:
        patch.setattr(search, "ensure", lambda directory, *_, **options: ensure(directory, [interrupting], **options))
        begin()
    folder = Path(str(interrupted.value))
    assert interrupted.value.how == f"recbole-sigma tune --resume={folder}"
    trained.clear()
    result = resume_tuning(folder)
    assert trained == [1, 2, *[0, 1, 2] * 2]
    assert result == begin() and {trial.status for trial in result.trials} == {"complete"}


def test_a_trial_that_fails_is_reported_and_the_others_continue(begin: Begin, capsys: Any) -> None:
    space = "learning_rate choice [1e30, 0.02]\nhidden_size choice [8, 6]\nn_heads choice [4]"
    result = begin(space=space, epochs=1, model="SASRec")
    failed = {trial.values["hidden_size"]: trial for trial in result.trials if trial.status == "failed"}
    assert result.best.values == {"learning_rate": 0.02, "hidden_size": 8, "n_heads": 4}
    assert "learning_rate" in failed[8].error and "n_heads" in failed[6].error
    assert failed[8].error in capsys.readouterr().err
    assert sum(bool(trial["error"]) for trial in record(result)["trials"]) == 3
    with pytest.raises(UserError, match=r"no trial has a result.* learning_rate"):
        begin(space="learning_rate choice [1e30, 1e31]", epochs=1)


def test_a_table_fits_80_columns_and_marks_the_best(begin: Begin) -> None:
    valid = {"hit@10": 0.5, "ndcg@10": 0.25, "mrr@10": 0.125}
    values = [{f"a_long_name_{n}": 1.23456789e-5 * step for n in range(8)} for step in (1, 2, 3)]
    trials = [Trial(values[0], "failed", "for a reason")]
    trials += [Trial(each, "complete", "", "run", 3, 1, valid) for each in values[1:]]
    sweep = begin(max_evals=1, epochs=1)
    sweep.by_values = {str(trial.values): trial for trial in trials}
    sweep.winner = RunResult(Path("saved"), 1, valid, valid)
    lines = tables(sweep).splitlines()
    starts = [line for line in lines[2:] if line.rstrip().endswith(("complete", "failed"))]
    assert max(map(len, lines)) <= 80 and [line[0] for line in starts] == ["*", " ", " "]
    assert "HR@10" in lines[1] and "0.2500" in starts[0] and "failed" in starts[2]
    assert all("".join(lines).count(f"long_name_{n}=2.469e-05") == 2 for n in range(8))  # the table, the winner


def command(tmp_path: Path, *arguments: str) -> list[str]:
    settings = {**SMALL_BATCHES, "data_path": tmp_path, "checkpoint_dir": tmp_path / "saved"}
    given = ["--model=Mamba4Rec", "--dataset=tiny", f"--params_file={tmp_path / 'hyper.test'}"]
    return ["tune", *given, *(f"--{key}={value}" for key, value in settings.items()), *arguments]


def test_the_command_prints_trials_then_the_winner_and_its_run_directory_last(
    begin: Begin, tmp_path: Path, capsys: Any
) -> None:
    assert cli.main(command(tmp_path, "--max_evals=2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "NDCG@10" in lines[0] and "test" not in "".join(lines[:5])
    assert lines[6].split() == ["valid", "test"] and lines[7].startswith("HR@10")
    folder = Path(lines[-1])
    assert resume(folder).test == json.loads((folder / "result.json").read_text())["test"]
    assert cli.main(["tune", f"--resume={folder.parents[1]}"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


MISTAKES = [
    (["--tool=optuna"], ["--engine", "hyperopt", "ray", "'optuna'"]),
    (["--algo=grid"], ["algo", "exhaustive", "random", "bayes", "'grid'"]),
    (["--max_evals=0"], ["max_evals", "at least 1", "0"]),
    (["--jobs=2"], ["jobs", "--engine=ray"]),
    (["--tool=ray", "--jobs=0"], ["jobs", "whole number", "0"]),
    (["--tool=ray", "--asha=2"], ["asha", "true or false", "2"]),
    (["--tool=ray", "--nproc=2"], ["nproc", "1", "--engine=ray", "2"]),
    (["--params_file=none"], ["params_file", "'none'"]),
    (["--learning_rat=1"], ["'learning_rat'", "'learning_rate'"]),
    (["--num_layers=3"], ["hyper.test:2", "num_layers is tuned"]),
    (["--resume=nowhere"], ["nowhere", "tuning.json"]),
]


@pytest.mark.parametrize(("arguments", "names"), MISTAKES)
def test_a_mistake_ends_with_one_line_that_names_it(
    begin: Begin, tmp_path: Path, arguments: list[str], names: list[str], refused: Callable[..., str]
) -> None:
    given = [each for each in command(tmp_path) if not arguments[0].startswith(each.partition("=")[0])]
    given = ["tune", *arguments] if "resume" in arguments[0] else [*given, *arguments]
    refused(*given, names=names)


@pytest.mark.parametrize("tool", ["hyperopt", "ray"])
def test_a_missing_extra_is_named(begin: Begin, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tool, None)
    with pytest.raises(UserError, match=rf"{tool} is not installed.*pip install 'recbole-sigma\[tune\]'"):
        begin(tool)


def test_what_is_not_this_sweep_is_refused(begin: Begin, write_inter: Any) -> None:
    folder = begin(max_evals=1, epochs=1).folder
    with pytest.raises(UserError, match="hidden_size"):
        resume_tuning(folder, {"hidden_size": 16})
    write_inter(ROWS[:-8])
    with pytest.raises(UserError, match="other data"):
        resume_tuning(folder)
    file = folder / "tuning.json"
    content = json.loads(file.read_text())
    for name, value in (("space", 3), ("trials", [{"values": {"num_layers": 7}}]), ("model", "own_code:Model")):
        file.write_text(json.dumps({**content, name: value}))
        with pytest.raises(UserError, match=r"tuning\.json|--model=own_code:Model"):  # which is not imported
            resume_tuning(folder)


def test_a_trial_of_another_process_is_waited_for(begin: Begin) -> None:
    result = begin(max_evals=1, epochs=1)
    directory = result.winner.folder.parent
    code = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], 0), 2); print(1, flush=True); time.sleep(2)"
    with subprocess.Popen([sys.executable, "-c", code, directory], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert begin(max_evals=1, epochs=1).winner == result.winner and holder.poll() == 0


# Ray


def test_a_cluster_that_is_not_there_is_reported_at_once(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=rf"^RAY_ADDRESS: cannot join '{address}': .*refused"):
            begin("ray")


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """One local Ray with two workers, which the sweeps of this module join."""
    import recbole_sigma.experiment.ray  # noqa: F401 - its environment is read when ray is imported

    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def test_ray_has_the_results_of_hyperopt(own_ray: None, begin: Begin) -> None:
    theirs, ours = begin("ray", asha=False), begin()
    one, other = ({str(trial.values): trial.valid for trial in result.trials} for result in (theirs, ours))
    assert one == other
    assert (theirs.winner.valid, theirs.winner.test) == (ours.winner.valid, ours.winner.test)
    tested = [folder for folder in run_folders(theirs) if (folder / "ranks-test.npz").exists()]
    assert tested == [theirs.winner.folder] and not (theirs.folder / ".ray").exists()


def test_asha_stops_what_is_behind_and_it_stays_stopped(own_ray: None, begin: Begin) -> None:
    space = "learning_rate choice [0.02, 1e-9, 1e-10]"
    options = {"grace_period": 2, "reduction_factor": 2, "jobs": 1}  # one by one: what is ahead is known to be
    result = begin("ray", space=space, epochs=8, seed=GOOD_FIRST, **options)
    states = {each.values["learning_rate"]: (each.status, each.epochs) for each in result.trials}
    assert states == {0.02: ("complete", 8), 1e-9: ("stopped", 2), 1e-10: ("stopped", 2)}
    assert all(each.valid for each in result.trials) and result.best.values == {"learning_rate": 0.02}
    assert begin("ray", space=space, epochs=8, seed=GOOD_FIRST, **options).trials == result.trials


@pytest.mark.parametrize("algo", ["random", "bayes"])
@pytest.mark.parametrize("tool", ["hyperopt", "ray"])
def test_a_sweep_with_more_trials_begins_with_the_same_settings(
    own_ray: None, begin: Begin, tool: str, algo: str
) -> None:
    space = "clip_grad_norm choice [{max_norm: 1}, {max_norm: 5}]\n"
    space += "learning_rate loguniform -6,-3\ndropout_prob quniform 0,0.4,0.1\nd_conv quniform 2,4,1\n"
    first = begin(tool, space=space, algo=algo, max_evals=2, epochs=1)
    more = resume_tuning(first.folder, max_evals=3)
    assert more.trials[:2] == first.trials and len(run_folders(more)) == len(more.trials) == 3
    values = [trial.values for trial in more.trials]
    assert all(type(each["d_conv"]) is int and each["clip_grad_norm"]["max_norm"] in (1, 5) for each in values)
    assert len({each["learning_rate"] for each in values}) == 3
    assert tool == "ray" or begin(space=space, algo=algo, max_evals=1, epochs=1, seed=5).trials[0].values != values[0]


def test_a_stopped_winner_is_tested_with_its_best_epoch(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    ensure = search.ensure

    def stopped(directory: Path, test: bool) -> RunResult | None:
        if test:
            return ensure(directory)
        with pytest.raises(SystemExit):  # as Ray stops a trial
            ensure(directory, [raising(SystemExit, lambda: len(trained) == 2)], test=False)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(search, "ensure", stopped)
        result = begin(space="learning_rate choice [0.02]")
    assert (result.best.status, result.best.epochs, trained) == ("stopped", 2, [0, 1])
    assert result.winner.valid == result.best.valid and result.winner.best_epoch == result.best.best_epoch
    shorter = run("Mamba4Rec", "tiny", [result.winner.folder / "config.yaml"], {"checkpoint_dir": str(tmp_path)})
    assert shorter.test == result.winner.test
    assert begin(space="learning_rate choice [0.02]") == result and len(trained) == 4


def test_a_killed_sweep_of_ray_is_resumed(begin: Begin, tmp_path: Path) -> None:
    """SIGKILL to the leading process: trials in its own Ray stop with it, and the same command resumes the sweep."""
    settings = ["--tool=ray", "--jobs=2", "--asha=False", "--epochs=40", "--stopping_step=100", "--max_evals=3"]
    line = [sys.executable, "-W", "ignore", "-m", "recbole_sigma.cli", *command(tmp_path)]
    line = [each for each in line if not each.startswith("--epochs")] + settings
    variables = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(line, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(len(file.read_text().splitlines()) > 3 for file in tmp_path.glob("saved/*/*/*/metrics.csv")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = {file.parent for file in tmp_path.glob("saved/*/*/*/metrics.csv")}
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parents[1]
    results = [json.loads(file.read_text()) for file in folder.glob("*/*/result.json")]
    assert len(results) == 3 and begun <= {file.parent for file in folder.glob("*/*/result.json")}
    assert any(each["resumed_after_epochs"] for each in results)
    assert all(each["epochs"] == 40 for each in results) and sum("test" in each for each in results) == 1
