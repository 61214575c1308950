"""The command line as a user meets it: exit statuses, lines of error, how arguments are read."""

import os
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
from recbole_sigma.registry import model_names

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "run_recbole_sigma.py"
COMMANDS = ("train", "models", "compare", "experiment", "tune", "report", "env")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `train` hands to `run`, which trains nothing here."""
    calls: list[dict[str, Any]] = []

    def run(model: str, dataset: str, config_files: Any = (), settings: Any = None) -> SimpleNamespace:
        calls.append({"model": model, "dataset": dataset, "config_files": config_files, "settings": settings})
        valid = {"hit@10": 0.0986, "ndcg@10": 0.0597, "mrr@10": 0.0478}
        test = {"hit@10": 0.0761, "ndcg@10": 0.0452, "mrr@10": 0.0358}
        return SimpleNamespace(folder=Path("saved/SIGMA-ml-100k"), valid=valid, test=test, best_epoch=3)

    monkeypatch.setattr(quick_start, "run", run)
    return calls


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], int]:
    """`failing(error)` -> the exit status of a `train` in an empty directory that raises it."""

    def main(error: BaseException) -> int:
        def run(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(quick_start, "run", run)
        return cli.main(["train"])

    return main


def command(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd=cwd, check=False, env=environment
    )


# --- arguments


def test_train_without_arguments_is_sigma_on_the_bundled_data(runs: list[dict[str, Any]]) -> None:
    assert cli.main(["train"]) == 0
    assert runs == [{"model": "SIGMA", "dataset": "ml-100k", "config_files": [], "settings": {}}]


@pytest.mark.parametrize("sign", ["=", " "])
def test_every_other_argument_is_a_setting(sign: str, runs: list[dict[str, Any]]) -> None:
    line = "--model=GRU4Rec|--dataset=ml-100k|--epochs=3|--topk=[5,10]|--use_gpu=False|--weight_decay=-1|--wandb_project=a b"
    assert cli.main(["train", *line.replace("=", "|" if sign == " " else "=").split("|")]) == 0
    assert (runs[0]["model"], runs[0]["dataset"]) == ("GRU4Rec", "ml-100k")
    given = {"epochs": 3, "topk": [5, 10], "use_gpu": False, "weight_decay": -1, "wandb_project": "a b"}
    assert runs[0]["settings"] == given


def test_a_setting_before_a_positional_argument_or_a_flag_keeps_its_own_value() -> None:
    parser = options.command_parser("recbole-sigma report RUN ...\n\nRuns side by side.")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--out")
    args, settings = options.parse(parser, ["--epochs", "1", "saved", "--groups", "more", "--out", "x.md"])
    assert (args.runs, args.groups, args.out, settings) == (["saved", "more"], True, "x.md", {"epochs": 1})


@pytest.mark.parametrize("separator", [",", " ", ", "])
def test_config_files_come_in_one_argument_and_may_name_the_model(
    separator: str, runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("harmful.py").write_text("open('touched', 'w')")
    Path("a.yaml").write_text("epochs: 1\nmodel: harmful:Model\n")
    assert cli.main(["train", "--config_files=a.yaml"]) == 2
    said = capsys.readouterr().err
    assert "a.yaml:2" in said and "--model=harmful:Model" in said and not Path("touched").exists()
    assert cli.main(["train", "--config_files=a.yaml", "--model=harmful:Model"]) == 0
    assert runs[0]["model"] == "harmful:Model"


def test_the_result_is_a_table_and_the_run_directory_last(
    runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["train"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["valid", "test"],
        ["HR@10", "0.0986", "0.0761"],
        ["NDCG@10", "0.0597", "0.0452"],
        ["MRR@10", "0.0478", "0.0358"],
        ["saved/SIGMA-ml-100k"],
    ]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)):
        assert cli.main(args) == 0
        shown = capsys.readouterr()
        assert shown.err == "" and shown.out.startswith("usage: recbole-sigma ")
        assert all(name in shown.out for name in COMMANDS) or args[0] != "--help"
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-sigma {__version__}\n"


# --- mistakes


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["train", "learning_rate=1"], ["'learning_rate=1'", "--name=value"]),
        (["train", "--epochs", "--seed=1"], ["--epochs=value"]),
        (["train", "--model=3"], ["--model", "3"]),
        (["train", "--model="], ["--model"]),
        (["train", "--config_files=none.yaml"], ["'none.yaml'"]),
        (["train", "--config_files=/dev/zero"], ["/dev/zero", "65536"]),
        (["train", "--resume=x", "--config_files=a.yaml"], ["--config_files", "config.yaml"]),
        (["train", "--learnin_rate=1"], ["'learnin_rate'", "'learning_rate'"]),
        (["train", "--" + "k" * 10**6 + "=1"], ["kkkkk"]),
        (["train", "--a\nb"], [r"--a\nb"]),
        (["train", "--wandb_project=\udcff"], [r"--wandb_project=\udcff", "UTF-8"]),
        (["env", "--jsn"], ["--jsn"]),
        (["trane"], ["'trane'", "'train'", *COMMANDS]),
        ([], [*COMMANDS]),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(
    args: list[str], named: list[str], runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("recbole-sigma: error: ") and shown.err.count("\n") == 1 and len(shown.err) < 1000
    assert all(each in shown.err for each in named), shown.err
    assert (shown.out, runs) == ("", [])


def test_no_setting_that_config_knows_is_refused_early() -> None:
    for name in ["SIGMA", "FEARec", *model_names()[9::5]]:
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


def test_a_mistake_in_the_arguments_is_reported_before_torch_and_recbole_are_imported() -> None:
    commands = [line.split() for line in MISTAKES.strip().splitlines()]
    statuses = f"{{cli.main(args) for args in {commands}}}"
    code = f"import sys, recbole_sigma.cli as cli; print({statuses}, {{'torch', 'recbole'}} & {{*sys.modules}})"
    assert command("-c", code).stdout.split() == ["{2}", "set()"]
