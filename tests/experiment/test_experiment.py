"""Experiments as data, and their runs: each is trained once, whatever interrupts it."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import recbole_sigma
from recbole_sigma import cli
from recbole_sigma.config.config import Config
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment import pool
from recbole_sigma.experiment.pool import ensure, run_all
from recbole_sigma.experiment.spec import Arm, comparison, names, read_experiment, seeds_of
from recbole_sigma.experiment.store import complete_run, furthest_run, prepare, run_key

TINY = {"MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 8, "epochs": 2, "use_gpu": False}
QUIET = {"threads": 1, "show_progress": False}

Refused = Callable[..., str]  # the fixture `refused`
Tiny = Callable[..., list[tuple[Arm, Config]]]  # the fixture `tiny`
SixUsers = Callable[..., list[str]]  # the fixture `six_users`


@pytest.fixture
def tiny(write_inter: Callable[..., Path], tmp_path: Path) -> Tiny:
    """`tiny(models, seeds, setting=value, ...)` -> the runs of a comparison on six users."""
    write_inter([(f"u{user}", f"i{(user + step) % 6}", step) for user in range(6) for step in range(6)])

    def make(models: list[str], seeds: list[int], **settings: Any) -> list[tuple[Arm, Config]]:
        settings = {**TINY, **QUIET, "data_path": str(tmp_path), **settings}
        return list(comparison(models, ["tiny"], seeds, settings).runs())

    return make


@pytest.fixture
def six_users(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SixUsers:
    """`six_users(setting=value, ...)` -> options for six users' data, in an empty working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    fixed = {**TINY, "data_path": tmp_path, "checkpoint_dir": "runs", "threads": 1}
    return lambda **settings: [f"--{key}={value}" for key, value in (fixed | settings).items()]


def once_training(directory: Path, act: Callable[[], None]) -> threading.Thread:
    """Call `act` as soon as the run in `directory` has completed an epoch."""

    def wait() -> None:
        while not list(directory.glob("[!.]*/state.pt")):
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("name", names())
def test_every_experiment_that_comes_along_has_arms_that_can_be_run(name: str):
    planned = list(read_experiment(name).runs())
    assert len(planned) == len(read_experiment(name).arms) >= 3
    assert len({run_key(config) for _, config in planned}) == len(planned)  # no two arms are the same run


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("titel: x\n", ["x.yaml:1", "'titel'", "'title'"]),
        ("title: x\n", ["x.yaml:1", "arms", "model: NAME"]),
        ("title: x\narms: [SIGMA]\n", ["x.yaml:2", "arms", "a mapping", "['SIGMA']"]),
        ("arms:\n  a: SIGMA\n", ["x.yaml:1", "arms", "'a'", "model: NAME", "'SIGMA'"]),
        ("arms: {a: {model: SIGMA}}\nseeds: 0\n", ["x.yaml:2", "seeds", "how many", "0"]),
        ("arms: {a: {model: SIGMA}}\ndatasets: [d, {a: 1}]\n", ["x.yaml:2", "datasets", "list of names"]),
        ("arms: {a: {model: SIGMA}}\ndatasets: [d, d]\n", ["x: datasets", "'d'", "twice"]),
        ("arms: {a: {model: SIGMA}}\nsettings: 1\n", ["x.yaml:2", "settings", "a mapping", "1"]),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, text: str, says: list[str]):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_experiment(str(tmp_path / "x.yaml"))
    assert all(part in str(error.value) for part in says)


def test_seeds_are_counted_or_listed():
    assert (seeds_of(3), seeds_of([7, 1]), seeds_of(1)) == ([2020, 2021, 2022], [7, 1], [2020])
    for wrong in (0, -1, True, [], [1, 1], ["1"], "5", None, [1.5], [True, 2], {}):
        with pytest.raises(UserError, match="seeds must be how many"):
            seeds_of(wrong)


def test_changes_are_for_all_arms():
    changed = read_experiment("ablation", ["ml-100k"], [7], {"epochs": 3})
    assert (changed.datasets, changed.seeds, changed.settings) == (["ml-100k"], [7], {"epochs": 3})
    with pytest.raises(UserError, match="--mixing: every arm of mixing"):
        read_experiment("mixing", settings={"mixing": "gated"})


def test_the_key_is_that_of_what_determines_a_run(tiny: Tiny, tmp_path: Path):
    def key(**settings: Any) -> str:
        return run_key(tiny(["Mamba4Rec"], [settings.pop("seed", 1)], **settings)[0][1])

    ((_, config),) = tiny(["Mamba4Rec"], [1])
    machine = ("data_path", "checkpoint_dir", "show_progress", "state", "threads", "use_gpu", "gpu_id", "download")
    machine += ("eval_batch_size", "memory_map_above", "init_from", "distill_from")
    determines = {  # runs of earlier versions of this code are found under this hash
        "settings": {k: v for k, v in config.settings().items() if k not in machine},
        "data": hashlib.sha256((tmp_path / "tiny" / "tiny.inter").read_bytes()).hexdigest(),
        "version": recbole_sigma.__version__,
        "processes": 1,
    }
    first = key()
    assert first == hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:16]
    assert key(threads=2, show_progress=True, checkpoint_dir="elsewhere", eval_batch_size=7) == first
    others = [key(learning_rate=0.01), key(epochs=3), key(stopping_step=3), key(d_conv=3), key(nproc=2), key(seed=2)]
    (tmp_path / "tiny" / "tiny.inter").open("a").write("u9\ti1\t3\n")
    assert len({first, *others, key()}) == 2 + len(others)


def test_a_trial_is_tested_once_its_test_is_asked_for(tiny: Tiny, tmp_path: Path):
    ((_, config),) = tiny(["GRU4Rec"], [1])
    directory = prepare(config, {}, tmp_path / "runs")
    assert directory == tmp_path / "runs" / run_key(config) and complete_run(directory) is None
    scores: list[float] = []
    callback = SimpleNamespace(on_epoch_end=lambda row: scores.append(row["ndcg@10"]))
    trial = ensure(directory, [callback], test=False)
    assert len(scores) == 2 and max(scores) == trial.valid["ndcg@10"] and not trial.test
    assert complete_run(directory) == trial.folder and complete_run(directory, tested=True) is None
    prepare(config, {"eval_batch_size": 3}, tmp_path / "runs")
    result = ensure(directory)
    assert (result.folder, result.valid) == (trial.folder, trial.valid) and not trial.test and result.test
    assert "eval_batch_size: 3" in (result.folder / "config.yaml").read_text()
    assert ensure(directory) == ensure(directory, test=False) == result


def test_a_run_is_trained_once_though_two_arms_share_it_and_blanks_are_in_its_path(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    planned = [*tiny(["GRU4Rec", "Mamba4Rec"], [1]), *tiny(["GRU4Rec"], [1], threads=2)]
    first, second, again = run_all(planned, tmp_path / "my runs", jobs=2)
    assert first.folder == again.folder != second.folder and first.complete and second.complete
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("1 of 2 runs; ") and ", tiny, seed 1: done; about 0" in lines[0]
    assert lines[1].startswith("2 of 2 runs; ") and lines[1].endswith(", tiny, seed 1: done")

    monkeypatch.setattr(pool.subprocess, "Popen", None)  # nothing is left to start
    later = run_all(planned, tmp_path / "my runs", jobs=1)
    assert [run.folder for run in later] == [run.folder for run in (first, second, again)]

    command = shlex.split(first.result["command"])
    assert command[:2] == ["recbole-sigma", "train"] and cli.main(command[1:]) == 0
    repeated = Path(capsys.readouterr().out.splitlines()[-1])
    assert repeated.parent == first.folder.parent and repeated != first.folder
    assert json.loads((repeated / "result.json").read_text())["test"] == first.result["test"]


def test_a_killed_run_is_reported_and_resumed_the_next_time(tiny: Tiny, tmp_path: Path):
    planned = tiny(["GRU4Rec"], [1], epochs=300, stopping_step=300)
    directory = tmp_path / "runs" / run_key(planned[0][1])
    children: list[Any] = []
    start = subprocess.Popen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.subprocess, "Popen", lambda *a, **k: children.append(start(*a, **k)) or children[-1])
        killer = once_training(directory, lambda: children[0].kill())
        (killed,) = run_all(planned, tmp_path / "runs", 1)
        killer.join()
    assert "SIGKILL" in killed.problem and str(directory / "log.txt") in killed.problem
    assert killed.folder == furthest_run(directory)
    (resumed,) = run_all(planned, tmp_path / "runs", 1)
    assert resumed.folder == killed.folder and resumed.complete and resumed.result["epochs"] == 300


def test_ctrl_c_stops_every_child_and_names_the_same_command(tiny: Tiny, tmp_path: Path):
    planned = tiny(["GRU4Rec"], [1, 2, 3], epochs=10_000, stopping_step=10_000)
    directory = tmp_path / "runs" / run_key(planned[0][1])
    stopped = threading.Event()

    def press_ctrl_c() -> None:
        while not stopped.wait(5):  # again, should one be lost
            os.kill(os.getpid(), signal.SIGINT)

    interrupter = once_training(directory, press_ctrl_c)
    with pytest.raises(Interrupted) as error:
        run_all(planned, tmp_path / "runs", jobs=2)
    stopped.set()
    interrupter.join()
    assert error.value.how == "the same command"
    logs = [log.read_text() for log in (tmp_path / "runs").glob("*/log.txt")]
    assert 1 <= len(logs) <= 2 and all("interrupted" in log for log in logs)
    assert furthest_run(directory)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_compare_trains_what_is_missing_and_reports_all(six_users: SixUsers, capsys: Any, engine: str):
    if engine == "ray":
        pytest.importorskip("ray")
    options = ["compare", "--datasets=tiny", "--jobs=2", f"--engine={engine}", *six_users()]
    assert cli.main([*options, "--models=GRU4Rec,Mamba4Rec", "--seeds=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "runs/compare.html" and max(map(len, lines)) <= 80
    rows = [line.split()[:2] for line in lines if line.startswith(("GRU4Rec", "Mamba4Rec"))]
    assert rows == 2 * [["GRU4Rec", "2"], ["Mamba4Rec", "2"]], "with deviations, a table for each split"
    results = sorted(Path("runs").glob("*/*/result.json"))
    assert len(results) == 4 and all(Path("runs", f"compare.{form}").stat().st_size for form in ("md", "csv", "tex"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.subprocess, "Popen", None)
        assert cli.main([*options, "--models=Mamba4Rec", "--seeds=[2021]", "--out=one"]) == 0
    assert sorted(Path("runs").glob("*/*/result.json")) == results and Path("one.html").exists()


def test_a_run_that_another_experiment_trains_is_waited_for_and_not_trained_twice(six_users: SixUsers, capsys: Any):
    """Of two experiments the first is killed; the child that it leaves behind keeps the lock until it ends."""
    asked = ["compare", "--models=GRU4Rec", "--datasets=tiny", *six_users(epochs=60, stopping_step=300)]
    other = subprocess.Popen([sys.executable, "-m", "recbole_sigma.cli", *asked])
    while not list(Path("runs").glob("*/[!.]*/config.yaml")):
        assert other.poll() is None
        time.sleep(0.02)
    other.kill()
    other.wait()
    assert cli.main(asked) == 0
    (folder,) = (file.parent for file in Path("runs").glob("*/*/config.yaml"))
    assert (folder / "result.json").exists()
    log = (folder.parent / "log.txt").read_text()
    assert log.count("epoch  59") == 1 and log.count("GRU4Rec on tiny: ") == 1  # trained by one process


def test_an_arm_that_fails_is_in_the_table_with_its_reason(six_users: SixUsers, capsys: Any):
    options = ["--models=GRU4Rec,Mamba4Rec", "--datasets=tiny", *six_users(learning_rate=1e9, epochs=1)]
    assert cli.main(["compare", *options]) == 2
    (complete,) = Path("runs").glob("*/*/result.json")
    assert json.loads(complete.read_text())["model"] == "GRU4Rec"
    assert "learning_rate" in Path("runs/compare.md").read_text().partition("Made by")[0]
    output = capsys.readouterr()
    assert any(line.startswith("Mamba4Rec") for line in output.out.splitlines())
    assert output.err.splitlines()[-1].startswith("recbole-sigma: error: 1 of 2 runs have no result")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare"], ["--model", "--model=SIGMA,Mamba4Rec"]),
        (["compare", "--models=SIGMA,SIGMA"], ["compare: arms", "'SIGMA'", "twice"]),
        (["compare", "--models=Sigm"], ["arm 'Sigm'", "'SIGMA'"]),
        (["compare", "--models=SIGMA", "--seed=7"], ["seed:", "--seeds=[2021]"]),
        (["experiment", "groups", "--seed=7"], ["seed:", "--seeds=[2021]"]),
        (["compare", "--models=SIGMA", "--config_files=a.yaml"], ["config_files:", "--epochs=5"]),
        (["compare", "--models=SIGMA", "--jobs=0"], ["--jobs", "whole number", "got 0"]),
        (["compare", "--models=SIGMA", "--engine=spark"], ["--engine", "local, ray", "'spark'"]),
        (["compare", "--models=SIGMA", "--seeds=x"], ["seeds", "(5)", "'x'"]),
        (["compare", "--models=SIGMA", "--datasets=nowhere"], ["arm 'SIGMA'", "'nowhere'"]),
        (["experiment", "ablatoin"], ["'ablatoin'", "'ablation'"]),
        (["experiment", "depth", "--num_layer=2"], ["arm 'SIGMA, 1 layer'", "'num_layer'", "'num_layers'"]),
        (["experiment", "case-study"], ["--user", "--user=196"]),
        (["experiment", "groups", "--user=1"], ["--user", "case-study"]),
        (["experiment", "efficiency", "--rounds=few"], ["--rounds", "whole number", "'few'"]),
        (["experiment", "efficiency", "--out=/dev/null/page"], ["--out", "/dev/null"]),
        (["experiment", "groups", "--rounds=2"], ["--rounds", "groups", "efficiency"]),
        (["experiment", "efficiency", "--jobs=2"], ["--jobs", "efficiency", "trains nothing"]),
        (["ensure"], ["directory"]),
        (["ensure", "nowhere"], ["nowhere/settings.yaml"]),
        (["ensure", "one", "two"], ["two"]),
    ],
)
def test_mistakes_are_reported_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused, arguments: list[str], says: list[str]
):
    monkeypatch.chdir(tmp_path)
    refused(*arguments, names=says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--user=u1", "--out=/dev/null/page"], ["--out", "/dev/null"]), (["--user=nobody"], ["tiny", "'nobody'"])],
)
def test_a_report_that_cannot_be_is_refused_before_anything_is_trained(
    six_users: SixUsers, refused: Refused, arguments: list[str], says: list[str]
):
    Path("case-study.yaml").write_text("measures: lists\narms: {GRU4Rec: {model: GRU4Rec}}\n")
    refused("experiment", "case-study.yaml", "--dataset=tiny", *six_users(), *arguments, names=says)
    assert not list(Path().glob("runs/*/*"))


def test_costs_that_cannot_be_measured_are_refused(six_users: SixUsers, refused: Refused):
    Path("cost.yaml").write_text("measures: cost\narms: {Pop: {model: Pop}}\n")
    refused("experiment", "cost.yaml", "--dataset=tiny", "--data_path=..", names=["Pop", "not trained by steps"])
    split = "--eval_args={split: {LS: valid_only}}"
    refused("experiment", "efficiency", "--dataset=tiny", *six_users(), split, names=["eval_args", "test users"])


def test_a_case_study_shows_one_users_history_and_lists(six_users: SixUsers, capsys: Any):
    inter = next(Path("..").glob("*/tiny.inter"))
    inter.write_text(inter.read_text().replace("u3\t", "0\t"))  # a name that is false in Python
    Path("case-study.yaml").write_text("measures: lists\narms: {GRU4Rec: {model: GRU4Rec}}\n")
    options = ["--dataset=tiny", "--user=0", "--out=case", *six_users()]
    assert cli.main(["experiment", "case-study.yaml", *options]) == 0
    page = Path("case.md").read_text()
    assert "user 0" in page.lower() and "i2" in page


def test_the_costs_of_every_arm_are_measured_on_every_data_set(six_users: SixUsers, capsys: Any):
    first = next(Path("..").glob("*/tiny.inter"))
    (first.parent.parent / "other").mkdir()
    (first.parent.parent / "other" / "other.inter").write_bytes(first.read_bytes())
    options = ["--dataset=tiny,other", "--rounds=2", "--out=costs", *six_users(hidden_size=64)]
    assert cli.main(["experiment", "efficiency", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "costs.md"
    page = Path("costs.md").read_text()
    assert page.count(f"SHA-256 {hashlib.sha256(first.read_bytes()).hexdigest()}") == 2 and "1 threads" in page
    table = page.partition("## tiny")[2].partition("## other")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("|")][2:]
    assert [row[0] for row in rows] == [arm.label for arm in read_experiment("efficiency").arms]
    assert all(int(row[1]) > 0 and float(row[3].split(" ")[0]) > 0 for row in rows)
    assert rows[0][2].endswith("(1.00)") and any(not row[3].endswith("(1.00)") for row in rows)
