"""The command line as a user meets it: exit statuses, lines of error, how arguments are read."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recbole_sigma import __version__, cli, quick_start
from recbole_sigma.commands import options
from recbole_sigma.config.config import Config
from recbole_sigma.config.early import check_early
from recbole_sigma.config.values import Given
from recbole_sigma.errors import Interrupted
from recbole_sigma.registry import model_names
from tests.helpers.runs import environment

ROOT = Path(__file__).parents[2]
Failing = Callable[[BaseException], int]  # the fixture `failing`
Refused = Callable[..., str]  # the fixture `refused`
Calls = list[dict[str, Any]]  # the fixture `runs`
COMMANDS = ("train", "models", "compare", "experiment", "tune", "report", "env")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What `train` hands to `run`, which trains nothing here."""
    calls: Calls = []

    def run(model: str, dataset: str, config_files: Any = (), settings: Any = None) -> SimpleNamespace:
        calls.append({"model": model, "dataset": dataset, "config_files": config_files, "settings": settings})
        valid = {"hit@10": 0.0986, "ndcg@10": 0.0597, "mrr@10": 0.0478}
        test = {"hit@10": 0.0761, "ndcg@10": 0.0452, "mrr@10": 0.0358}
        return SimpleNamespace(folder=Path("saved/SIGMA-ml-100k"), valid=valid, test=test, best_epoch=3)

    monkeypatch.setattr(quick_start, "run", run)
    return calls


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Failing:
    """`failing(error)` -> the exit status of a `train` in an empty directory that raises it."""

    def main(error: BaseException) -> int:
        def run(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(quick_start, "run", run)
        return cli.main(["train"])

    return main


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd=ROOT, check=False, env=environment()
    )


# --- arguments


def test_train_alone_is_sigma_on_ml_100k_and_prints_a_table_and_the_run_directory(runs: Calls, capsys: Any) -> None:
    assert cli.main(["train"]) == 0
    assert runs == [{"model": "SIGMA", "dataset": "ml-100k", "config_files": [], "settings": {}}]
    rows = ["valid test", "HR@10 0.0986 0.0761", "NDCG@10 0.0597 0.0452", "MRR@10 0.0478 0.0358", "saved/SIGMA-ml-100k"]
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == rows


@pytest.mark.parametrize("sign", ["=", " "])
def test_every_other_argument_is_a_setting(sign: str, runs: Calls) -> None:
    line = "--model=GRU4Rec|--dataset=ml-100k|--epochs=3|--topk=[5,10]|--use_gpu=False|--gpu_id=-1|--LABEL_FIELD=a b"
    assert cli.main(["train", *line.replace("=", "|" if sign == " " else "=").split("|")]) == 0
    given = {"epochs": 3, "topk": [5, 10], "use_gpu": False, "gpu_id": -1, "LABEL_FIELD": "a b"}
    assert runs == [{"model": "GRU4Rec", "dataset": "ml-100k", "config_files": [], "settings": given}]


def test_a_setting_before_a_positional_argument_or_a_flag_keeps_its_own_value() -> None:
    parser = options.command_parser("recbole-sigma report RUN ...\n\nRuns side by side.")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--out")
    args, settings = options.parse(parser, ["--epochs", "1", "saved", "--groups", "more", "--out", "x.md"])
    assert (args.runs, args.groups, args.out, settings) == (["saved", "more"], True, "x.md", {"epochs": 1})


@pytest.mark.parametrize("separator", [",", " ", ", "])
def test_config_files_come_in_one_argument_and_may_name_the_model(
    separator: str, runs: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dataset/a").mkdir(parents=True)
    Path("dataset/b").mkdir()
    Path("a.yaml").write_text("model: SASRec\ndataset: a\n")
    Path("b.yaml").write_text("dataset: b\n")
    assert cli.main(["train", f"--config_files=a.yaml{separator}b.yaml"]) == 0
    assert (runs[0]["model"], runs[0]["dataset"], runs[0]["config_files"]) == ("SASRec", "b", ["a.yaml", "b.yaml"])
    assert cli.main(["train", "--model=GRU4Rec", "--config_files=a.yaml"]) == 0  # the command line wins over files
    assert runs[1]["model"] == "GRU4Rec"


def test_a_class_that_only_a_file_names_is_not_imported_until_the_command_line_names_it(
    runs: Calls, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("harmful.py").write_text("Model = open('touched', 'w')")
    Path("a.yaml").write_text("epochs: 1\nmodel: harmful:Model\n")
    refused("train", "--config_files=a.yaml", names=["a.yaml:2", "--model=harmful:Model"])
    assert not Path("touched").exists()
    assert cli.main(["train", "--config_files=a.yaml", "--model=harmful:Model"]) == 0
    assert runs[0]["model"] == "harmful:Model"


def test_help_and_version(capsys: Any) -> None:
    for args in ([], ["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)):
        assert cli.main(args) == 0
        shown = capsys.readouterr()
        assert shown.err == "" and shown.out.startswith("usage: recbole-sigma ")
        assert all(name in shown.out for name in COMMANDS) or args not in ([], ["--help"])
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-sigma {__version__}\n"


# --- mistakes


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["train", "learning_rate=1"], ["'learning_rate=1'", "--name=value"]),
        (["train", "--epochs", "--seed=1"], ["--epochs=value"]),
        (["train", "--model=3"], ["model", "'3'"]),
        (["train", "--model="], ["--model"]),
        (["train", "--config_files=none.yaml"], ["'none.yaml'"]),
        (["train", "--config_files=/dev/zero"], ["/dev/zero", "262144"]),
        (["train", "--resume=x", "--config_files=a.yaml"], ["--config_files", "config.yaml"]),
        (["train", "--learnin_rate=1"], ["'learnin_rate'", "'learning_rate'"]),
        (["train", "--wandb_project=\udcff"], [r"--wandb_project=\udcff", "UTF-8"]),
        (["env", "--jsn"], ["--jsn"]),
        (["trane"], ["'trane'", "'train'", *COMMANDS]),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(args: list[str], named: list[str], runs: Calls, refused: Refused) -> None:
    refused(*args, names=named)
    assert runs == []


def test_no_setting_that_config_knows_is_refused_early() -> None:
    for name in ["SIGMA", "FEARec", *model_names()[11::5]]:
        known = Config(name, "", need_data=False).settings()
        check_early(name, "ml-100k", {key: Given(value) for key, value in known.items()})


MISTAKES = """
    train --epochs
    train --learnin_rate=1
    train --epochs=0
    train --model=SIGMAA
    train --dataset=no-such
    train --resume=no-such
    compare --models=SIGMA,SASRek
    compare --models=SIGMA --jobs=0
    experiment ablaton
    experiment ablation --epochs=0
    tune --tool=optuna
    tune --epocs=1
    tune --resume=no-such
    report no-such
    models SIGMAA
    models --items=0
    env --jsn
"""


def test_a_mistake_in_the_arguments_is_reported_before_torch_recbole_and_what_tunes_are_imported() -> None:
    commands = [line.split() for line in MISTAKES.strip().splitlines()]
    statuses = f"{{cli.main(args) for args in {commands}}}"
    slow = {"torch", "recbole", "ray", "hyperopt"}
    code = f"import sys, recbole_sigma.cli as cli; print({statuses}, {slow} & {{*sys.modules}})"
    assert command("-c", code).stdout.split() == ["{2}", "set()"]


@pytest.mark.parametrize(
    ("argument", "named"),
    [("--model=SIGMMA", ["'SIGMMA'", "'SIGMA'"]), ("--dataset=ml100k", ["dataset/ml100k", "'ml-100k'"])],
)
def test_the_script_in_a_checkout_reports_a_mistake_in_one_line(argument: str, named: list[str]) -> None:
    done = command(str(ROOT / "run_recbole_sigma.py"), argument)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert all(each in done.stderr for each in named)


# --- what else ends a command


@pytest.mark.parametrize("run_directory", ["", "saved/SIGMA-ml-100k", "missing"])
def test_a_bug_is_one_line_and_a_file_with_the_traceback(
    run_directory: str, failing: Failing, tmp_path: Path, capsys: Any
) -> None:
    error = ZeroDivisionError("one\ntwo")
    (tmp_path / "saved" / "SIGMA-ml-100k").mkdir(parents=True)
    if run_directory:
        error.run_directory = Path(run_directory)  # type: ignore[attr-defined]
    assert failing(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("recbole-sigma: error: ") and said.count("\n") == 1 and "ZeroDivisionError: one two" in said
    files = list(tmp_path.rglob("*.txt"))
    if run_directory == "missing":  # nowhere to write: the line says where it happened
        assert files == [] and re.search(r"test_cli.py:\d+|test_cli.py, line \d+", said)
        return
    (file,) = files
    assert file.parent == tmp_path / run_directory and str(Path(run_directory) / file.name) in said
    assert "Traceback" in file.read_text() and "ZeroDivisionError: one\ntwo" in file.read_text()


@pytest.mark.parametrize(
    ("error", "status", "named"),
    [
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (Interrupted("saved/x"), 130, ["interrupted", "--resume=saved/x"]),
        (MemoryError("no room"), 2, ["memory", "no room", "train_batch_size"]),
    ],
)
def test_interrupts_and_memory_that_runs_out_have_a_line_and_a_status(
    error: BaseException, status: int, named: list[str], failing: Failing, tmp_path: Path, capsys: Any
) -> None:
    assert failing(error) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(each in said for each in named) and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs pipes of the POSIX kind")
def test_a_reader_that_goes_away_is_no_error() -> None:
    code = """
import sys
from types import SimpleNamespace
from recbole_sigma import cli, quick_start
result = SimpleNamespace(folder="x", valid={f"hit@{k}": 0.0 for k in range(9999)}, best_epoch=1)
result.test = result.valid
quick_start.run = lambda *args, **kwargs: result
sys.exit(cli.main(["train"]))
"""
    read, write = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=ROOT) as process:
        os.close(write)
        os.close(read)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (141, b"")
