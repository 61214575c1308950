"""benchmarks/length.py at sizes that take seconds."""

import csv
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "length.py"
SMALL = ("--items", "30", "--tokens", "40", "--steps", "1", "--threads", "1")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`race(option, ...)` -> exit status of the script's `main`, called here: only what it measures is a process."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("length")

    def call(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        return script.main()

    return call


def measure_one(*options: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, str(SCRIPT), "--one", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# RecMamba and SASRec without a mode are in the tests below.
@pytest.mark.parametrize("model", ["SIGMA", "LinRec", "RecMamba:sequence", "Mamba4Rec:sequence"])
def test_one_model_alone_gives_seconds_and_memory(model: str) -> None:
    got = measure_one(model, "12", *SMALL)
    assert 0 < got["seconds"] < math.inf
    assert 0 <= got["memory_mb"] < math.inf
    assert got["steps"] == 1


def test_attention_takes_the_memory_of_its_copies() -> None:
    rows, heads, length = 1, 2, 2000
    # one thread: at short lengths what every thread's workspace takes would be a third of the figure
    one_step = ("--items", "30", "--tokens", str(rows * length), "--steps", "1", "--threads", "1")
    got = measure_one("SASRec", str(length), *one_step)
    copy_mb = rows * heads * length * length * 4 / 1e6
    # weights, their dropout's factors and what is left of them, in each of two layers; some more on the way back
    assert 6 * copy_mb < got["memory_mb"] < 24 * copy_mb


def test_a_small_race_gives_table_csv_and_plot(
    race: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figures, plot = tmp_path / "length.csv", tmp_path / "length.png"
    options = ("--models", "RecMamba,SASRec", "--lengths", "5,20", "--rounds", "1", *SMALL)
    assert race(*options, "--csv", str(figures), "--plot", str(plot)) == 0
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row[1:4]] for row in table[2:]] == [
        ["5", "8", "RecMamba"],
        ["5", "8", "SASRec"],
        ["20", "2", "RecMamba"],
        ["20", "2", "SASRec"],
    ]
    with figures.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["length"] for row in rows] == ["5", "5", "20", "20"]
    assert all(float(row["seconds"]) > 0 and not row["failure"] for row in rows)
    assert plot.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--lengths", "5", "--limit", "0.1"), "> 0.1 s"),
        pytest.param(
            ("--lengths", "3000", "--tokens", "3000", "--memory", "0.1"),
            "out of memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only"),
        ),
    ],
)
def test_a_model_over_a_limit_is_shown_so(
    options: tuple[str, ...], shown: str, race: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert race("--models", "SASRec", *SMALL, *options) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--models", "SASREC"), "unknown model 'SASREC'"),
        (("--lengths", "50,x"), "lengths must be whole numbers"),
        (("--rounds", "0"), "rounds must be larger than 0"),
        (("--csv", "nowhere/length.csv"), "there is no folder nowhere"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(
    options: tuple[str, str], reason: str, race: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        race(*options)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
