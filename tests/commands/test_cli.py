"""The command line as a user meets it: exit statuses and the exact lines."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recbole_sigma import __version__, cli, quick_start

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "run_recbole_sigma.py"
COMMANDS = "train, models, compare, experiment, tune, report, env"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `train` hands to `run`, which trains nothing here."""
    seen: list[dict[str, Any]] = []

    def run(model: str, dataset: str, config_files: Any = (), settings: Any = None) -> SimpleNamespace:
        seen.append({"model": model, "dataset": dataset, "config_files": config_files, "settings": settings})
        valid = {"hit@10": 0.0986, "ndcg@10": 0.0597, "mrr@10": 0.0478}
        test = {"hit@10": 0.0761, "ndcg@10": 0.0452, "mrr@10": 0.0358}
        return SimpleNamespace(folder=Path("saved/SIGMA-ml-100k"), valid=valid, test=test, best_epoch=3)

    monkeypatch.setattr(quick_start, "run", run)
    return seen


def command(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd, check=False)


def test_train_without_arguments_is_sigma_on_the_bundled_data(runs: list[dict[str, Any]]) -> None:
    assert cli.main(["train"]) == 0
    assert runs == [{"model": "SIGMA", "dataset": "ml-100k", "config_files": [], "settings": {}}]


def test_every_other_argument_is_a_setting(runs: list[dict[str, Any]]) -> None:
    assert cli.main(["train", "--model=GRU4Rec", "--dataset=d", "--epochs=3", "--topk=[5,10]", "--use_gpu=False"]) == 0
    assert (runs[0]["model"], runs[0]["dataset"]) == ("GRU4Rec", "d")
    assert runs[0]["settings"] == {"epochs": 3, "topk": [5, 10], "use_gpu": False}


@pytest.mark.parametrize("separator", [",", " ", ", "])
def test_config_files_come_in_one_argument_and_may_name_the_model(
    separator: str, runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("model: SASRec\ndataset: a\n")
    Path("b.yaml").write_text("dataset: b\n")
    assert cli.main(["train", f"--config_files=a.yaml{separator}b.yaml"]) == 0
    assert (runs[0]["model"], runs[0]["dataset"], runs[0]["config_files"]) == ("SASRec", "b", ["a.yaml", "b.yaml"])


def test_the_command_line_wins_over_the_files(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: SASRec\n")
    assert cli.main(["train", "--model=GRU4Rec", f"--config_files={tmp_path / 'a.yaml'}"]) == 0
    assert runs[0]["model"] == "GRU4Rec"


def test_the_result_is_a_table_and_the_folder_last(
    runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["train"])
    table = """\
                 valid    test
        -------  -------  ------
        HR@10    0.0986   0.0761
        NDCG@10  0.0597   0.0452
        MRR@10   0.0478   0.0358
        saved/SIGMA-ml-100k
    """
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if "-------" not in line] == [
        line.split() for line in textwrap.dedent(table).splitlines() if "-------" not in line
    ]
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["train", "learning_rate=1"], "cannot read 'learning_rate=1': a setting is written --name=value"),
        (["train", "--epochs"], "--epochs has no value: write --epochs=value"),
        (["train", "--epochs=1", "--epochs=2"], "--epochs is given twice with different values"),
        (["train", "--model=3"], "--model must be a name, got 3"),
        (["train", "--config_files=none.yaml"], "config file 'none.yaml' does not exist"),
        (["trane"], f"argument <command>: invalid choice: 'trane' (choose from {COMMANDS})"),
        ([], "the following arguments are required: <command>"),
    ],
)
def test_a_mistake_ends_with_2_and_one_line(
    args: list[str], line: str, runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    shown = capsys.readouterr()
    assert shown.err.replace("'", "") == f"recbole-sigma: error: {line}\n".replace("'", "")  # quotes differ by Python
    assert (shown.out, runs) == ("", [])


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--learnin_rate=1"], "unknown setting 'learnin_rate'; did you mean 'learning_rate'?"),
        (["--model=SIGMMA"], "unknown model 'SIGMMA'; did you mean 'SIGMA'?"),
        (
            ["--dataset=ml100k"],
            "unknown data set 'ml100k': there is no folder 'dataset/ml100k'; did you mean 'ml-100k'?",
        ),
    ],
)
def test_the_script_in_a_checkout_tells_a_mistake_in_one_line(args: list[str], line: str) -> None:
    done = command(str(SCRIPT), *args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"recbole-sigma: error: {line}\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "recbole-sigma train --model=Mamba4Rec --dataset=amazon-beauty --data_path=data" in out
    assert out.endswith(f"recbole-sigma {__version__}\n")


def test_an_interrupt_ends_with_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quick_start, "run", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "recbole-sigma: interrupted\n"


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
