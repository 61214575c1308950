"""Whatever is given, read or loaded, none of it runs as code."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from recbole_sigma import cli
from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import Ranks
from recbole_sigma.quick_start import run
from tests.helpers.runs import TINY, Malicious


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that only executed code would make; the working directory is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "canary"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["train", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("recbole-sigma: error: ")
    return lines[-1]


CODE = "__import__('pathlib').Path({!r}).touch()"
TAGS = [
    "!!python/object/apply:pathlib.Path.touch [{}]",
    "!!python/object/new:pathlib.PosixPath [{}]",
    "!!python/name:os.system",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_with_python_tags_is_refused(canary: Path, capsys: Any, tag: str):
    Path("settings.yaml").write_text(f"epochs: 1\nlearning_rate: {tag.format(canary)}\n")
    assert "settings.yaml:2: settings are plain values: no tag" in error_of(capsys, "--config_files=settings.yaml")
    assert "--learning_rate: settings are plain values: no tag" in error_of(
        capsys, f"--learning_rate={tag.format(canary)}"
    )
    assert not canary.exists()


@pytest.mark.parametrize("key", ["epochs", "learning_rate", "hidden_act", "topk", "eval_args", "model", "dataset", "r"])
def test_a_setting_that_holds_code_is_text(canary: Path, capsys: Any, key: str):
    assert key in error_of(capsys, f"--{key}={CODE.format(str(canary))}")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../here", "/etc", "a/b", "..", ".", "a\\b/../.."])
def test_a_data_set_that_leaves_the_folder_is_refused(canary: Path, capsys: Any, name: str):
    assert "dataset must be" in error_of(capsys, f"--dataset={name}")
    assert not list(canary.parent.glob("*/*"))


@pytest.mark.parametrize("key", ["pre_model_path", "dataset_save_path", "dataloaders_save_path"])
def test_recboles_pickles_are_refused_by_the_setting_that_names_them(canary: Path, capsys: Any, key: str):
    Path("file.pth").write_bytes(pickle.dumps(Malicious(canary)))
    model = "S3Rec" if key == "pre_model_path" else "SASRec"
    message = error_of(capsys, f"--model={model}", f"--{key}=file.pth")
    assert f"{key}: " in message and "pickles" in message
    assert not canary.exists()


@pytest.mark.parametrize("how", ["pickle", "object array"])
def test_a_pickle_among_ranks_is_refused(canary: Path, how: str):
    if how == "pickle":
        Path("ranks.npz").write_bytes(pickle.dumps(Malicious(canary)))
    else:
        np.savez(
            "ranks.npz", **dict.fromkeys(("user", "target", "history_length", "rank"), np.array([Malicious(canary)]))
        )
    with pytest.raises(UserError, match=r"ranks\.npz: not a file of ranks"):
        Ranks.load("ranks.npz")
    assert not canary.exists()


def test_what_a_run_writes_holds_nothing_but_plain_values(canary: Path, write_inter: Callable[..., Path]):
    rows = [(f"u{user}", f"i{(user + step) % 6}", step) for user in range(4) for step in range(6)]
    file = write_inter(rows)
    settings = {key: value for key, value in TINY.items() if key != "user_inter_num_interval"}
    done = run("Mamba4Rec", "tiny", settings={**settings, "epochs": 1, "data_path": str(file.parents[1])})
    content = (done.folder / "config.yaml").read_text()
    assert yaml.safe_load(content)["model"] == "Mamba4Rec" and "!!" not in content
