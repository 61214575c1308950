"""Experiments as data, and their runs: each trained once, whatever happens on the way."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_sigma import cli
from recbole_sigma.errors import UserError
from recbole_sigma.experiment import pool as local
from recbole_sigma.experiment.pool import run_missing
from recbole_sigma.experiment.spec import (
    Experiment,
    comparison,
    names,
    read_experiment,
    seeds_of,
    with_changes,
)
from recbole_sigma.experiment.store import Slot, key_of, slot_of
from recbole_sigma.experiment.timing import HEADERS, efficiency, ratios

TINY = {"MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 8, "epochs": 2, "use_gpu": False}
SPEED = {"threads": 1, "show_progress": False}


@pytest.fixture
def tiny(write_inter: Callable[..., Path], tmp_path: Path) -> Callable[..., Experiment]:
    """`tiny(models, seeds, setting=value, ...)` -> a comparison on six users."""
    write_inter([(f"u{user}", f"i{(user + step) % 6}", step) for user in range(6) for step in range(6)])

    def make(models: list[str], seeds: list[int], **settings: Any) -> Experiment:
        return comparison(models, ["tiny"], seeds, {**TINY, "data_path": str(tmp_path), **settings})

    return make


def slots_of(experiment: Experiment, folder: Path) -> list[Slot]:
    return [slot_of(planned, folder) for planned in experiment.runs()]


@pytest.mark.parametrize("name", names())
def test_every_experiment_that_comes_along_has_arms_that_can_be_run(name: str):
    experiment = read_experiment(name)
    planned = list(experiment.runs())
    assert len(planned) == len(experiment.arms) >= 3
    keys = [key_of(each) for each in planned]
    assert len(set(keys)) == len(keys)  # no two arms are the same run


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("titel: x\n", "x.yaml:1: unknown 'titel' in an experiment; did you mean 'title'?"),
        ("title: x\n", "x.yaml:1: an experiment has arms, 'label: {model: NAME, setting: value}' each"),
        ("title: x\narms: [SIGMA]\n", "x.yaml:2: arms must be a mapping, got ['SIGMA']"),
        ("arms:\n  a: SIGMA\n", "x.yaml:1: arm 'a' must be {model: NAME, setting: value, ...}, got 'SIGMA'"),
        ("arms: {}\n", "x: arms: none is given"),
        ("arms: {a: {model: SIGMA}}\nseeds: 0\n", "seeds must be how many (5), or a list of different ones"),
        ("arms: {a: {model: SIGMA}}\ndatasets: ml-100k\n", "x.yaml:2: datasets must be a list of names"),
        ("arms: {a: {model: SIGMA}}\ndatasets: [d, d]\n", "x: datasets: 'd' is given twice"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_experiment(str(tmp_path / "x.yaml"))
    assert says in str(error.value)


def test_an_unknown_experiment_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown experiment 'ablatoin'; did you mean 'ablation'\?"):
        read_experiment("ablatoin")


def test_a_setting_that_an_arm_cannot_have_is_refused_before_the_first_run(tiny: Callable[..., Experiment]):
    with pytest.raises(UserError, match=r"arm 'SIGMA': unknown setting 'learning_rat'; did you mean"):
        list(tiny(["SIGMA"], [1], learning_rat=1).runs())


@pytest.mark.parametrize(("given", "seeds"), [(3, (2020, 2021, 2022)), ([7, 1], (7, 1)), (1, (2020,))])
def test_seeds_are_counted_or_listed(given: Any, seeds: tuple[int, ...]):
    assert seeds_of(given) == seeds


@pytest.mark.parametrize("given", [0, -1, True, [], [1, 1], ["1"], "5", None, [1.5], {}])
def test_what_is_no_seeds_is_refused(given: Any):
    with pytest.raises(UserError, match="seeds must be how many"):
        seeds_of(given)


def test_changes_are_for_all_arms():
    changed = with_changes(read_experiment("ablation"), ["a", "b"], 2, {"epochs": 3})
    assert (changed.datasets, changed.seeds, changed.settings) == (("a", "b"), (2020, 2021), {"epochs": 3})


def test_what_determines_a_run_decides_where_it_is(tiny: Callable[..., Experiment], tmp_path: Path):
    def key(**settings: Any) -> str:
        (planned,) = tiny(["Mamba4Rec"], [1], **settings).runs()
        return key_of(planned)

    first = key()
    assert key(threads=2, show_progress=False, checkpoint_dir="elsewhere", eval_batch_size=7) == first
    others = [key(learning_rate=0.01), key(epochs=3), key(stopping_step=3), key(d_conv=3)]
    (planned,) = tiny(["Mamba4Rec"], [2]).runs()
    (tmp_path / "tiny" / "tiny.inter").open("a").write("u9\ti1\t3\n")
    others += [key_of(planned), key()]
    assert len({first, *others}) == 1 + len(others)


def test_every_run_is_trained_once(tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slots = slots_of(tiny(["GRU4Rec", "Mamba4Rec"], [1]), tmp_path / "runs")
    assert run_missing(slots, 2, SPEED) == []
    done = [slot.complete() for slot in slots]
    assert all(done)

    wider = slots_of(tiny(["Mamba4Rec", "GRU4Rec"], [1]), tmp_path / "runs")
    monkeypatch.setattr(local.subprocess, "Popen", None)
    assert run_missing(wider, 1, SPEED) == []
    assert [slot.complete() for slot in wider] == done[::-1]


def test_a_run_that_fails_is_told_with_its_reason_and_takes_no_other_with_it(
    tiny: Callable[..., Experiment], tmp_path: Path
):
    experiment = tiny(["Mamba4Rec", "GRU4Rec"], [1], learning_rate=1e9)
    slots = slots_of(experiment, tmp_path / "runs")
    (failure,) = run_missing(slots, 1, SPEED)
    assert failure.slot is slots[0] and "try a lower learning_rate" in failure.reason
    assert slots[1].complete()


def test_a_killed_run_is_told_and_gone_on_with_the_next_time(tiny: Callable[..., Experiment], tmp_path: Path):
    slots = slots_of(tiny(["GRU4Rec"], [1], epochs=300, stopping_step=300), tmp_path / "runs")
    pids: list[int] = []
    start = local.subprocess.Popen

    def noted(*args: Any, **more: Any) -> Any:
        process = start(*args, **more)
        pids.append(process.pid)
        return process

    def kill() -> None:
        while slots[0].ended() is None or not (slots[0].ended() / "state.pt").exists():
            time.sleep(0.05)
        os.kill(pids[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local.subprocess, "Popen", noted)
        killer = threading.Thread(target=kill)
        killer.start()
        (failure,) = run_missing(slots, 1, SPEED)
        killer.join()
    assert failure.reason == f"ended by SIGKILL; see {slots[0].log}"
    folder = slots[0].ended()
    assert run_missing(slots, 1, SPEED) == []
    assert slots[0].complete() == folder


def test_an_experiment_tells_each_run_that_ended_and_the_time_left(
    tiny: Callable[..., Experiment], tmp_path: Path, capsys: Any
):
    run_missing(slots_of(tiny(["GRU4Rec", "SASRec"], [1]), tmp_path / "runs"), 1, SPEED)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("1 of 2 runs; GRU4Rec, tiny, seed 1: done; about 00:") and first.endswith(" left")
    assert last == "2 of 2 runs; SASRec, tiny, seed 1: done"


def test_costs_are_measured_of_every_arm(tiny: Callable[..., Experiment]):
    (measured,) = efficiency(tiny(["Mamba4Rec", "GRU4Rec"], [1], threads=1), rounds=2)
    costs = measured.costs
    assert [cost.label for cost in costs] == ["Mamba4Rec", "GRU4Rec"]
    for cost, row in zip(costs, ratios(costs), strict=True):
        assert len(cost.train) == len(cost.inference) == 2 and min(cost.train + cost.inference) > 0
        assert cost.n_parameters > 0 and len(row) == len(HEADERS)
    assert ratios(costs)[0][2].endswith("(1.00)") and "threads" in measured.machine[0]


def compare(*arguments: str) -> int:
    return cli.main(["compare", "--checkpoint_dir=runs", "--threads=1", *arguments])


@pytest.fixture
def six_users(write_inter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for six users' data, in an empty working directory."""
    write_inter([(f"u{user}", f"i{(user + step) % 6}", step) for user in range(6) for step in range(6)])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return [f"--data_path={tmp_path}", *(f"--{key}={value}" for key, value in TINY.items())]


@pytest.mark.parametrize("engine", [["--engine=local", "--jobs=2"], ["--engine=ray", "--jobs=2"]], ids=["local", "ray"])
def test_compare_trains_what_is_missing_and_reports_all(six_users: list[str], capsys: Any, engine: list[str]):
    if "ray" in engine[0]:
        pytest.importorskip("ray")
    assert compare("--models=GRU4Rec,Mamba4Rec", "--datasets=tiny", "--seeds=2", *engine, *six_users) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "runs/compare.html" and max(map(len, lines)) <= 100
    assert [line.split()[:2] for line in lines if line.startswith(("GRU4Rec", "Mamba4Rec"))] == [
        ["GRU4Rec", "2"],
        ["Mamba4Rec", "2"],
    ]
    results = sorted(Path("runs").glob("*/*/result.json"))
    assert len(results) == 4 and all(Path("runs", f"compare.{form}").stat().st_size for form in ("md", "csv", "tex"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local.subprocess, "Popen", None)
        assert compare("--models=Mamba4Rec", "--datasets=tiny", "--seeds=[2021]", "--out=one", *six_users) == 0
    assert sorted(Path("runs").glob("*/*/result.json")) == results and Path("one.html").exists()


def test_a_run_that_another_experiment_trains_is_waited_for_and_not_trained_twice(six_users: list[str], capsys: Any):
    """Of two experiments the first is killed: its run's process keeps the place until it ends."""
    six_users = [each for each in six_users if "epochs" not in each]
    asked = ["--models=GRU4Rec", "--datasets=tiny", "--stopping_step=300", "--epochs=60", "--threads=1", *six_users]
    asked += ["--checkpoint_dir=runs"]
    other = subprocess.Popen([sys.executable, "-m", "recbole_sigma.cli", "compare", *asked])
    while not list(Path("runs").glob("*/[!.]*/config.yaml")):
        assert other.poll() is None
        time.sleep(0.02)
    other.kill()
    other.wait()
    assert cli.main(["compare", *asked]) == 0
    (folder,) = (file.parent for file in Path("runs").glob("*/*/config.yaml"))
    assert (folder / "result.json").exists()
    log = (folder.parent / "log.txt").read_text()
    assert log.count("epoch  59") == 1 and log.count("folder ") == 1  # by one process


def test_an_arm_that_fails_stands_in_the_table_with_its_reason(six_users: list[str], capsys: Any):
    six_users = [each for each in six_users if "epochs" not in each]
    assert (
        compare("--models=GRU4Rec,Mamba4Rec", "--datasets=tiny", "--learning_rate=1e9", "--epochs=1", *six_users) == 2
    )
    assert "try a lower learning_rate" in Path("runs/compare.md").read_text()
    said = capsys.readouterr()
    assert any(line.startswith("Mamba4Rec") for line in said.out.splitlines())
    assert said.err.splitlines()[-1].startswith("recbole-sigma: error: 1 of 2 runs have no result, as the report says")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare"], "--models: name at least one, as in --models=SIGMA,Mamba4Rec"),
        (["compare", "--models=SIGMA,SIGMA"], "compare: arms: 'SIGMA' is given twice"),
        (["compare", "--models=Sigm"], "arm 'Sigm': unknown model 'Sigm'; did you mean 'SIGMA'?"),
        (["compare", "--models=SIGMA", "--jobs=0"], "--jobs must be a whole number, at least 1, got 0"),
        (["compare", "--models=SIGMA", "--engine=spark"], "--engine must be one of local, ray, got 'spark'"),
        (["compare", "--models=SIGMA", "--seeds=x"], "seeds must be how many (5), or a list of different ones"),
        (["compare", "--models=SIGMA", "--datasets=nowhere"], "arm 'SIGMA': unknown data set 'nowhere'"),
        (["experiment", "ablatoin"], "unknown experiment 'ablatoin'; did you mean 'ablation'?"),
        (["experiment", "depth", "--num_layer=2"], "arm 'SIGMA, 1 layer': unknown setting 'num_layer'; did you mean"),
        (["experiment", "case-study"], "--user: case-study shows one user, as in --user=196; no other experiment does"),
        (["experiment", "groups", "--user=1"], "--user: case-study shows one user"),
        (["experiment", "efficiency", "--rounds=few"], "--rounds must be a whole number, at least 1, got 'few'"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], says: str
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("recbole-sigma: error: ") and says in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out=/dev/null/page"], "--out: /dev/null: cannot be written: File exists"),
        (["--user=nobody"], "case study: tiny has no user 'nobody' on test"),
    ],
)
def test_a_report_that_cannot_be_is_told_before_anything_is_trained(
    six_users: list[str], capsys: Any, arguments: list[str], says: str
):
    Path("case-study.yaml").write_text("arms: {GRU4Rec: {model: GRU4Rec}}\n")
    options = ["--dataset=tiny", "--checkpoint_dir=runs", *six_users]
    options += [] if "--user=nobody" in arguments else ["--user=u1"]
    assert cli.main(["experiment", "case-study.yaml", *options, *arguments]) == 2
    assert says in capsys.readouterr().err and not list(Path().glob("runs/*/*"))


def test_a_case_study_shows_one_users_history_and_lists(six_users: list[str], capsys: Any):
    inter = next(Path("..").glob("*/tiny.inter"))
    inter.write_text(inter.read_text().replace("u3\t", "0\t"))  # a name that is false in Python
    file = Path("case-study.yaml")
    file.write_text("arms: {GRU4Rec: {model: GRU4Rec}}\n")
    options = ["--dataset=tiny", "--user=0", "--out=case", "--checkpoint_dir=runs", *six_users]
    assert cli.main(["experiment", str(file), *options]) == 0
    page = Path("case.md").read_text()
    assert "user 0" in page.lower() and "i2" in page


def test_the_experiment_of_costs_writes_its_table(six_users: list[str], capsys: Any):
    six_users = [each for each in six_users if "hidden_size" not in each]
    first = next(Path("..").glob("*/tiny.inter"))
    (first.parent.parent / "other").mkdir()
    (first.parent.parent / "other" / "other.inter").write_bytes(first.read_bytes())
    options = ["--dataset=tiny,other", "--rounds=2", "--out=costs", *six_users]
    assert cli.main(["experiment", "efficiency", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "costs.md"
    page = Path("costs.md").read_text()
    assert page.count("| SIGMA ") == 2 and "## other" in page
    assert page.count(f"SHA-256 {hashlib.sha256(first.read_bytes()).hexdigest()}") == 2
