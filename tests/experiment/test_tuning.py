"""Sweeps: validation chooses, test is looked at once, and what was ended goes on. Ray is a real one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recbole.trainer.hyper_tuning import HyperTuning

from recbole_sigma import cli, quick_start, resume
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment import sweep as sweeps
from recbole_sigma.experiment.record import settings_text, trials_table
from recbole_sigma.experiment.search import TuneResult, resume_tuning, tune
from recbole_sigma.experiment.space import parse_space
from recbole_sigma.experiment.sweep import Outcome
from recbole_sigma.quick_start import run
from recbole_sigma.training.checkpoint import Progress
from recbole_sigma.training.trainer import SequenceTrainer

ROWS = [(f"u{user}", f"i{(user * 3 + step * (1 + user % 3)) % 12}", step) for user in range(40) for step in range(8)]
TINY = {
    "MAX_ITEM_LIST_LENGTH": 6,
    "hidden_size": 8,
    "d_state": 2,
    "train_batch_size": 64,
    "epochs": 3,
    "threads": 1,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
}
GOOD_FIRST = next(seed for seed in range(99) if parse_space("a choice [0, 1, 2]", "").places(1, seed) == [{"a": 0}])
GRID = "learning_rate choice [0.02, 1e-6]\nnum_layers choice [1, 2]\n"


@pytest.fixture
def begin(tmp_path: Path, write_inter: Any) -> Callable[..., TuneResult]:
    """`begin(setting=value, ...)` -> a sweep over GRID on 40 users with 8 items each, in `saved`."""
    write_inter(ROWS)
    file = tmp_path / "hyper.test"
    file.write_text(GRID)

    def start(tool: str = "hyperopt", **given: Any) -> TuneResult:
        named = {key: given.pop(key) for key in ("max_evals", "algo", "options") if key in given}
        if "space" in given:
            file.write_text(given.pop("space"))
        where = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
        return tune("Mamba4Rec", "tiny", file, tool, settings={**TINY, **where, **given}, **named)

    return start


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What was ranked, and for the run in which folder."""
    seen: list[tuple[str, Path]] = []
    ranks = SequenceTrainer.ranks

    def counted(self: SequenceTrainer, data: Any, what: str) -> Any:
        seen.append((what.partition(",")[0], self.folder.path))
        return ranks(self, data, what)

    monkeypatch.setattr(SequenceTrainer, "ranks", counted)
    return seen


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that were trained."""
    seen: list[int] = []
    train_epoch = SequenceTrainer._train_epoch

    def counted(self: SequenceTrainer, data: Any, epoch_idx: int, **rest: Any) -> float:
        seen.append(epoch_idx)
        return train_epoch(self, data, epoch_idx, **rest)

    monkeypatch.setattr(SequenceTrainer, "_train_epoch", counted)
    return seen


def record(result: TuneResult) -> dict[str, Any]:
    return json.loads((result.folder / "tuning.json").read_text())


def run_folders(result: TuneResult) -> list[Path]:
    return sorted(file.parent for file in result.folder.glob("*/*/config.yaml"))


def test_hyperopt_chooses_on_validation_and_looks_at_test_once(
    begin: Callable[..., TuneResult], evaluated: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[dict[str, Any]] = []
    trial = HyperTuning.trial
    monkeypatch.setattr(HyperTuning, "trial", lambda self, params: handed.append(params) or trial(self, params))
    monkeypatch.setattr(HyperTuning, "_build_space_from_file", None)  # where RecBole would run the file
    result = begin()
    assert len(handed) == len(result.trials) == len(run_folders(result)) == 4
    assert [each for each in evaluated if each[0] == "test"] == [("test", result.winner.folder)]
    assert evaluated[-1][0] == "test"
    scores = {settings_text(each.values): each.valid["ndcg@10"] for each in result.trials}
    assert result.winner.valid == result.best.valid and result.best.valid["ndcg@10"] == max(scores.values())
    assert result.best.values["learning_rate"] == 0.02
    for folder in run_folders(result):
        content = json.loads((folder / "result.json").read_text())
        assert ("test" in content) == (folder == result.winner.folder) != content.get("trial", False)
        assert (folder / "ranks-test.npz").exists() == (folder == result.winner.folder)


def test_the_winner_is_the_run_that_train_makes_with_its_settings(begin: Callable[..., TuneResult]) -> None:
    result = begin(space="num_layers choice [1, 2]")
    alone = run("Mamba4Rec", "tiny", [result.winner.folder / "config.yaml"])
    assert (alone.valid, alone.test, alone.best_epoch) == (
        result.winner.valid, result.winner.test, result.winner.best_epoch
    )  # fmt: skip


def test_the_same_command_trains_nothing_again_and_more_trials_only_what_is_new(
    begin: Callable[..., TuneResult], trained: list[int], evaluated: list[tuple[str, Path]]
) -> None:
    first = begin(max_evals=2)
    assert len(trained) == 2 * 3
    assert begin(max_evals=2).winner == first.winner and len(trained) == 2 * 3
    more = begin()
    assert more.folder == first.folder and more.trials[:2] == first.trials and len(trained) == 4 * 3
    assert resume_tuning(more.folder).winner == more.winner and len(trained) == 4 * 3
    assert begin(hidden_size=16, max_evals=1).folder != more.folder
    assert begin(threads=None).folder == more.folder  # how fast it goes makes no other sweep
    again = evaluated.copy()
    begin()
    assert evaluated == again


def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on_in_the_middle_of_a_trial(
    begin: Callable[..., TuneResult], trained: list[int], tmp_path: Path
) -> None:
    save = Progress.save

    def stopping(self: Progress) -> None:
        save(self)
        if len(trained) == 4:  # the first epoch of the second trial
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as ended:
        patch.setattr(Progress, "save", stopping)
        begin()
    folder = Path(str(ended.value))
    assert ended.value.how == f"recbole-sigma tune --resume={folder}"
    trained.clear()
    result = resume_tuning(folder)
    assert trained == [1, 2, *[0, 1, 2] * 2]
    assert result == begin() and {each.status for each in result.trials} == {"complete"}


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_hyperopt_draws_the_same_settings_again(
    begin: Callable[..., TuneResult], algo: str, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = "learning_rate loguniform -6,-3\ndropout_prob quniform 0,0.4,0.1\nnum_layers quniform 1,2,1\n"
    first = begin(space=space, algo=algo, max_evals=2, epochs=1)
    assert all(type(each.values["num_layers"]) is int for each in first.trials)
    more = begin(space=space, algo=algo, max_evals=3, epochs=1)
    assert [each.values for each in more.trials[:2]] == [each.values for each in first.trials] and len(trained) == 3
    assert begin(space=space, algo=algo, max_evals=3, epochs=1, seed=5).trials[0].values != more.trials[0].values


def test_a_trial_that_fails_is_told_and_the_others_go_on(begin: Callable[..., TuneResult], capsys: Any) -> None:
    result = begin(space="learning_rate choice [1e30, 0.02]", epochs=1)
    failed = next(each for each in result.trials if each.status == "failed")
    assert "try a lower learning_rate" in failed.error and result.best.values == {"learning_rate": 0.02}
    assert next(each for each in record(result)["trials"] if each["error"])["values"] == {"learning_rate": 1e30}
    with pytest.raises(UserError, match=r"no trial came to a result; the first said: .* try a lower learning_rate"):
        begin(space="learning_rate choice [1e30, 1e31]", epochs=1)


def test_files_have_every_trial_with_settings_validation_and_folder(begin: Callable[..., TuneResult]) -> None:
    result = begin(space="num_layers choice [1, 2]", epochs=1)
    with (result.folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, trial, told in zip(rows, result.trials, record(result)["trials"], strict=True):
        assert int(row["num_layers"]) == trial.values["num_layers"] == told["values"]["num_layers"]
        assert float(row["valid ndcg@10"]) == trial.valid["ndcg@10"] == told["valid"]["ndcg@10"]
        assert row["folder"] == told["folder"] and (result.folder / row["folder"] / "model.safetensors").is_file()
        assert not any("test" in name for name in row) and "test" not in told
    assert record(result)["winner"]["test"] == result.winner.test


def test_a_table_fits_100_columns_and_marks_the_best() -> None:
    valid = {"hit@10": 0.5, "ndcg@10": 0.25, "mrr@10": 0.125}
    values = [{f"a_setting_with_a_long_name_{n}": 1.23456789e-5 * step for n in range(8)} for step in (1, 2, 3)]
    trials = [Outcome(each, each, 0.0, "complete", "run", 3, 1, valid) for each in values[:2]]
    trials.append(Outcome(values[2], values[2], 1.0, "failed", error="for a reason"))
    lines = trials_table(trials, trials[0], "ndcg@10").splitlines()
    assert max(map(len, lines)) <= 100 and [line[0] for line in lines[3:]] == ["*", " ", " "]
    assert "HR@10" in lines[1] and "0.2500" in lines[3] and "failed" in lines[5]


def command(tmp_path: Path, *arguments: str) -> list[str]:
    settings = {**TINY, "data_path": tmp_path, "checkpoint_dir": tmp_path / "saved"}
    given = ["--model=Mamba4Rec", "--dataset=tiny", f"--params_file={tmp_path / 'hyper.test'}"]
    return ["tune", *given, *(f"--{key}={value}" for key, value in settings.items()), *arguments]


def test_the_command_prints_trials_then_the_winner_and_its_folder_last(
    begin: Callable[..., TuneResult], tmp_path: Path, capsys: Any
) -> None:
    assert cli.main(command(tmp_path, "--max_evals=2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Validation, * chosen by NDCG@10" and "test" not in "".join(lines[:5])
    assert lines[7].split() == ["valid", "test"] and lines[9].startswith("HR@10")
    folder = Path(lines[-1])
    assert resume(folder).test == json.loads((folder / "result.json").read_text())["test"]
    assert cli.main(["tune", f"--resume={folder.parents[1]}"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


MISTAKES = [
    (["--tool=optuna"], "tool must be one of hyperopt, ray, got 'optuna'"),
    (["--algo=grid"], "algo must be one of exhaustive, random, bayes, got 'grid'"),
    (["--max_evals=0"], "max_evals must be a whole number, at least 1, got 0"),
    (["--jobs=2"], "jobs is an option of --tool=ray"),
    (["--tool=ray", "--jobs=0"], "jobs must be a whole number, at least 1, got 0"),
    (["--tool=ray", "--asha=2"], "asha must be true or false, got 2"),
    (["--tool=ray", "--nproc=2"], "nproc must be 1 with --tool=ray, which runs trials side by side"),
    (["--params_file=none"], "params_file 'none' does not exist"),
    (["--learning_rat=1"], "unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
    (["--resume=nowhere"], "nowhere: not the folder of a sweep; one has a tuning.json"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES)
def test_a_mistake_ends_with_one_line(
    begin: Callable[..., TuneResult], tmp_path: Path, arguments: list[str], says: str, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [each for each in command(tmp_path) if not arguments[0].startswith(each.partition("=")[0])]
    given = ["tune", *arguments] if "resume" in arguments[0] else [*given, *arguments]
    assert cli.main(given) == 2
    out, err = capsys.readouterr()
    assert (out, err.replace(f"{tmp_path}/", "")) == ("", f"recbole-sigma: error: {says}\n")


@pytest.mark.parametrize("tool", ["hyperopt", "ray"])
def test_a_missing_extra_is_told(begin: Callable[..., TuneResult], tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tool, None)
    monkeypatch.delitem(sys.modules, "recbole_sigma.experiment.ray", raising=False)
    with pytest.raises(UserError) as error:
        begin(tool)
    assert str(error.value) == f"{tool} is not installed; install with pip install 'recbole-sigma[tune]'"


def test_nothing_of_a_sweep_is_imported_before_one_begins() -> None:
    code = "import sys, recbole_sigma, recbole_sigma.cli; print({'ray', 'hyperopt', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ray" not in done.stdout and "hyperopt" not in done.stdout


def test_a_sweep_of_other_data_is_refused(begin: Callable[..., TuneResult], write_inter: Any) -> None:
    folder = begin(max_evals=1, epochs=1).folder
    write_inter(ROWS[:-8])
    with pytest.raises(UserError, match="of other data, or of another version of recbole-sigma; begin another sweep"):
        resume_tuning(folder)


def test_a_trial_of_another_process_is_waited_for(
    begin: Callable[..., TuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = begin(max_evals=1, epochs=1)
    place = result.winner.folder.parent
    code = f"import fcntl, os, time; fcntl.flock(os.open({str(place)!r}, 0), 2); print(1, flush=True); time.sleep(1)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with sweeps._alone_in(place):
        assert holder.wait() == 0


# Ray


def test_a_cluster_that_is_not_there_is_told_at_once(
    begin: Callable[..., TuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_ray_comes_to_what_hyperopt_comes_to(own_ray: None, begin: Callable[..., TuneResult]) -> None:
    theirs, ours = begin("ray", options={"asha": False}), begin()
    assert {settings_text(each.values): each.valid for each in theirs.trials} == {
        settings_text(each.values): each.valid for each in ours.trials
    }
    assert (theirs.winner.valid, theirs.winner.test) == (ours.winner.valid, ours.winner.test)
    tested = [folder for folder in run_folders(theirs) if (folder / "ranks-test.npz").exists()]
    assert tested == [theirs.winner.folder] and not (theirs.folder / ".ray").exists()


def test_asha_stops_what_is_behind_and_it_stays_stopped(own_ray: None, begin: Callable[..., TuneResult]) -> None:
    space = "learning_rate choice [0.02, 1e-9, 1e-10]"
    options = {"grace_period": 2, "reduction_factor": 2, "jobs": 1}  # one by one: what is ahead is known to be
    result = begin("ray", space=space, epochs=8, seed=GOOD_FIRST, options=options)
    states = {each.values["learning_rate"]: (each.status, each.epochs) for each in result.trials}
    assert states == {0.02: ("complete", 8), 1e-9: ("stopped", 2), 1e-10: ("stopped", 2)}
    assert all(each.valid for each in result.trials) and result.best.values == {"learning_rate": 0.02}
    assert begin("ray", space=space, epochs=8, seed=GOOD_FIRST, options=options).trials == result.trials


def test_ray_draws_lists_mappings_and_numbers(own_ray: None, begin: Callable[..., TuneResult]) -> None:
    space = (
        "clip_grad_norm choice [{max_norm: 1}, {max_norm: 5}]\nlearning_rate loguniform -5,-3\nd_conv quniform 2,4,1\n"
    )
    result = begin("ray", space=space, algo="bayes", max_evals=2, epochs=1)
    more = begin("ray", space=space, algo="bayes", max_evals=3, epochs=1)
    assert more.trials[:2] == result.trials and len(more.trials) == 3
    assert all(type(each.values["d_conv"]) is int for each in more.trials)
    assert all(each.values["clip_grad_norm"]["max_norm"] in (1, 5) for each in more.trials)


def test_a_stopped_winner_is_tested_by_its_best_epoch(
    begin: Callable[..., TuneResult], monkeypatch: pytest.MonkeyPatch, trained: list[int]
) -> None:
    def stop(epochs: int, score: float) -> None:
        if epochs == 2:
            raise SystemExit  # as Ray ends a trial

    train_trial = sweeps.train_trial

    def stopped(sweep: Any, samples: Any) -> Outcome:
        with pytest.raises(SystemExit):
            train_trial(sweep, samples, stop)
        return sweeps.mark_stopped(sweep, sweep.space.values(samples))

    monkeypatch.setattr("recbole_sigma.experiment.by_hyperopt.train_trial", stopped)
    result = begin(space="learning_rate choice [0.02]")
    assert (result.best.status, result.best.epochs, trained) == ("stopped", 2, [0, 1])
    assert result.winner.valid == result.best.valid and result.winner.best_epoch == result.best.best_epoch
    shorter = quick_start.run("Mamba4Rec", "tiny", [result.winner.folder / "config.yaml"])
    assert shorter.test == result.winner.test


def test_a_killed_sweep_of_ray_goes_on(begin: Callable[..., TuneResult], tmp_path: Path) -> None:
    """SIGKILL to the process that leads: trials of its own Ray end with it, and the same command goes on."""
    settings = ["--tool=ray", "--jobs=2", "--asha=False", "--epochs=40", "--stopping_step=100", "--max_evals=3"]
    line = [sys.executable, "-W", "ignore", "-m", "recbole_sigma.cli", *command(tmp_path)]
    line = [each for each in line if not each.startswith("--epochs")] + settings
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(len(file.read_text().splitlines()) > 3 for file in tmp_path.glob("saved/*/*/*/metrics.csv")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = {file.parent for file in tmp_path.glob("saved/*/*/*/metrics.csv")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1]).parents[1]
    results = [json.loads(file.read_text()) for file in folder.glob("*/*/result.json")]
    assert len(results) == 3 and begun <= {file.parent for file in folder.glob("*/*/result.json")}
    assert any(each["resumed_after_epochs"] for each in results)
    assert all(each["epochs"] == 40 for each in results) and sum("test" in each for each in results) == 1


def test_a_trial_leaves_test_alone_until_it_is_resumed_without_being_one(
    begin: Callable[..., TuneResult], tmp_path: Path, evaluated: list[tuple[str, Path]]
) -> None:
    told: list[float] = []
    settings = {**TINY, "data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved")}
    trial = {"callbacks": [SimpleNamespace(on_epoch_end=lambda row: told.append(row["ndcg@10"]))], "test": False}
    result = run("Mamba4Rec", "tiny", settings=settings, **trial)
    assert len(told) == 3 and max(told) == result.valid["ndcg@10"] and result.test == {}
    assert resume(result.folder, **trial) == result and len(told) == 3 and "test" not in dict(evaluated)
    tested = resume(result.folder)
    assert tested.valid == result.valid and tested.test and resume(result.folder) == tested
    assert [part for part, _ in evaluated].count("test") == 1
