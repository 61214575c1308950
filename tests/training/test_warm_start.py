"""Training that starts from another run's weights: rows by item id, new items new, and nothing silently different."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from recbole_sigma import cli, resume, run
from recbole_sigma.config.config import Config
from recbole_sigma.errors import Interrupted, UserError
from recbole_sigma.experiment.store import run_key
from recbole_sigma.runs.files import read_json
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.training.checkpoint import Checkpoint
from tests.helpers.models import refused
from tests.helpers.runs import ON_CPU, stopping

SIZES: dict[str, dict[str, Any]] = {
    "Mamba4Rec": {"hidden_size": 8, "d_state": 2, "head": "history"},
    "SASRec": {"hidden_size": 8, "inner_size": 8},
    "BERT4Rec": {"hidden_size": 8, "inner_size": 8, "mask_ratio": 0.5},
}


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """`train(model, "a b c", ...)` -> the run directory; five users with these items, one after the other."""

    def make(model: str, items: str, **settings: Any) -> Path:
        folder = tmp_path / "tiny"
        folder.mkdir(exist_ok=True)
        rows = [f"u{user}\t{item}\t{time}" for user in range(5) for time, item in enumerate(items.split())]
        text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows])
        (folder / "tiny.inter").write_text(text + "\n", encoding="utf-8")
        fixed = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "state": "ERROR", "epochs": 1}
        return run(model, "tiny", settings={**ON_CPU, **fixed, "MAX_ITEM_LIST_LENGTH": 4, **settings}).folder

    return make


@pytest.mark.parametrize("model", [*SIZES])
def test_rows_follow_their_item_and_new_items_start_as_the_model_makes_them(
    model: str, train: Callable[..., Path]
) -> None:
    items, stands_still = "x b a y c d z", {"learning_rate": 1e-30}
    old = train(model, "a b c d e", **SIZES[model])
    new = train(model, items, **stands_still, init_from=str(old))  # sizes are those of `old`
    fresh = train(model, items, **stands_still, **SIZES[model])
    before, now = (read_json(each / "items.json", list) for each in (old, new))
    weights, started, made = (RunFolder(each).load_weights() for each in (old, new, fresh))
    assert before != now[: len(before)]  # other numbers
    for name, saved in weights.items():
        expected = saved
        if saved.shape != started[name].shape:  # an item's row, and BERT4Rec's mask behind them
            known = [saved[before.index(item)] if item in before else made[name][n] for n, item in enumerate(now)]
            expected = torch.stack([*known, *saved[len(before) :]])
        torch.testing.assert_close(started[name], expected, atol=1e-20, rtol=0, msg=name)
    assert weights["item_embedding.weight"].shape != started["item_embedding.weight"].shape


def test_the_cache_key_knows_the_weights_and_not_their_path(train: Callable[..., Path], tmp_path: Path) -> None:
    old = train("Mamba4Rec", "a b c d e", **SIZES["Mamba4Rec"])

    def key(start: Path | None) -> str:
        settings = {"data_path": str(tmp_path), **SIZES["Mamba4Rec"], "init_from": start and str(start)}
        return run_key(Config("Mamba4Rec", "tiny", settings=settings))

    first = key(old)
    moved = old.rename(tmp_path / "moved")
    assert key(moved) == first != key(None)
    other = train("Mamba4Rec", "a b c d e", **SIZES["Mamba4Rec"], seed=1)
    assert key(other) != first


@pytest.mark.parametrize("epochs", [0, 1])
def test_an_interrupted_run_resumes_from_the_same_start(
    epochs: int, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = train("Mamba4Rec", "a b c d e", **SIZES["Mamba4Rec"])
    given = {"init_from": str(old), "epochs": 2}
    expected = train("Mamba4Rec", "x a b c d", **given)
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stopped:
        patch.setattr(Checkpoint, "on_epoch_end", stopping(epochs))
        train("Mamba4Rec", "x a b c d", **given)
    folder = Path(str(stopped.value.folder))
    assert yaml.safe_load((folder / "config.yaml").read_text())["init_from"] == str(old)
    if epochs:  # the weights are in the training state
        old.rename(old.with_name("moved"))
    resume(folder)
    weights = RunFolder(folder).load_weights()
    for name, each in RunFolder(expected).load_weights().items():
        assert torch.equal(weights[name], each), name


def test_what_does_not_fit_is_named(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    old = train("Mamba4Rec", "a b c d e", **SIZES["Mamba4Rec"])
    start = {"init_from": str(old)}
    with refused("init_from", "item_embedding.weight", "(6, 8)", "(6, 16)"):
        train("Mamba4Rec", "a b c d", **start, hidden_size=16)
    with refused("init_from", "history_head"):
        train("Mamba4Rec", "a b c d", **start, head="plain")
    with refused("init_from", "Mamba4Rec", "SASRec"):
        train("SASRec", "a b c d", **start)
    with refused("init_digest", "0" * 16):
        train("Mamba4Rec", "a b c d", **start, init_digest="0" * 16, **SIZES["Mamba4Rec"])
    with refused("init_from", "nowhere"):
        train("Mamba4Rec", "a b c d", init_from="nowhere")
    assert cli.main(["train", "--init_from=nowhere"]) == 2 and "nowhere" in capsys.readouterr().err
    with pytest.raises(UserError, match="init_from"):
        resume(old, {"init_from": "other"})


def test_the_age_of_the_model_is_recorded_for_a_split_by_time(train: Callable[..., Path]) -> None:
    folder = train("Mamba4Rec", "a b c d e f", **SIZES["Mamba4Rec"], eval_args={"split": {"time": [3, 4]}})
    with np.load(folder / "ranks-test.npz") as file:
        ages = dict(zip(file["target"].tolist(), file["target_age"].tolist(), strict=True))
    assert ages == {"e": 1 / 86_400, "f": 2 / 86_400}
    with np.load(train("Mamba4Rec", "a b c d", **SIZES["Mamba4Rec"]) / "ranks-test.npz") as file:
        assert "target_age" not in file
