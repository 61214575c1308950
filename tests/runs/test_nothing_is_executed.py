"""Whatever is given, read or loaded, none of it runs as code."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.ranks import Ranks
from tests.helpers.runs import Malicious


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that only executed code would make; the working directory is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "canary"


Refused = Callable[..., str]  # the fixture `refused`
CODE = "__import__('pathlib').Path({!r}).touch()"
TAGS = [
    "!!python/object/apply:pathlib.Path.touch [{}]",
    "!!python/object/new:pathlib.PosixPath [{}]",
    "!!python/name:os.system",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_with_python_tags_is_refused(canary: Path, refused: Refused, tag: str):
    value = tag.format(canary)
    Path("settings.yaml").write_text(f"epochs: 1\nlearning_rate: {value}\n")
    refused("train", "--config_files=settings.yaml", names=["settings.yaml:2", "plain values: no tag"])
    refused("train", f"--learning_rate={value}", names=["--learning_rate", "plain values: no tag"])
    assert not canary.exists()


@pytest.mark.parametrize("key", ["epochs", "learning_rate", "hidden_act", "topk", "eval_args", "model", "dataset", "r"])
def test_a_setting_that_holds_code_is_text(canary: Path, refused: Refused, key: str):
    refused("train", f"--{key}={CODE.format(str(canary))}", names=[key])
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../here", "/etc", "a/b", "..", ".", "a\\b/../.."])
def test_a_data_set_that_leaves_the_folder_is_refused(canary: Path, refused: Refused, name: str):
    refused("train", f"--dataset={name}", names=["dataset must be"])
    assert not list(canary.parent.glob("*/*"))


@pytest.mark.parametrize("key", ["pre_model_path", "dataset_save_path", "dataloaders_save_path"])
def test_recboles_pickles_are_refused_by_the_setting_that_names_them(canary: Path, refused: Refused, key: str):
    Path("file.pth").write_bytes(pickle.dumps(Malicious(canary)))
    model = "S3Rec" if key == "pre_model_path" else "SASRec"
    refused("train", f"--model={model}", f"--{key}=file.pth", names=[f"{key}: ", "pickles"])
    assert not canary.exists()


@pytest.mark.parametrize("how", ["pickle", "object array"])
def test_a_pickle_among_ranks_is_refused(canary: Path, how: str):
    if how == "pickle":
        Path("ranks.npz").write_bytes(pickle.dumps(Malicious(canary)))
    else:
        names = ("user", "target", "history_length", "rank")
        np.savez("ranks.npz", **dict.fromkeys(names, np.array([Malicious(canary)])))
    with pytest.raises(UserError, match=r"ranks\.npz: not a file of ranks"):
        Ranks.load("ranks.npz")
    assert not canary.exists()
