"""Whole runs of GRU4Rec, BERT4Rec, SASRec, FEARec against RecBole's own data set, loaders, trainer and evaluator.

ml-100k without its longer histories, `time_order: recbole`, the same seed, one thread. Every batch's loss is equal to
the last bit. Metrics are equal to RecBole's 4 decimals.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.model import sequential_recommender
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_sigma.config.config import Config
from recbole_sigma.quick_start import run
from recbole_sigma.registry import find_model
from tests.helpers.runs import ON_CPU
from tests.ops.operations import threads

# RecBole sorts tensors with NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SHARED = {
    **ON_CPU, "time_order": "recbole", "user_inter_num_interval": "[0,24]", "MAX_ITEM_LIST_LENGTH": 10,
    "train_batch_size": 500, "hidden_size": 16,
    # RecBole ranks the items of .item that nobody has, too; we read that file only where a model needs it
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "GRU4Rec": {"epochs": 3},
    "BERT4Rec": {"epochs": 2, "inner_size": 16},
    "SASRec": {"epochs": 3, "inner_size": 16},
    "FEARec": {"epochs": 2, "inner_size": 16},
}
BY_LENGTH = ("SASRec", "GRU4Rec", "BERT4Rec")


class Result(NamedTuple):
    """Loss of each training batch, and the metrics of the best epoch."""

    losses: list[float]
    valid: dict[str, float]
    test: dict[str, float]


@pytest.fixture(autouse=True)
def _in_an_empty_folder_on_one_thread(tmp_path: Path, monkeypatch: Any) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # RecBole writes logs and checkpoints
    with threads(1):
        yield


@contextmanager
def recorded_losses(kind: type) -> Iterator[list[float]]:
    """Every value that `calculate_loss` of a model class returns."""
    original = kind.calculate_loss
    losses: list[float] = []

    def calculate_loss(self: Any, interaction: Any) -> torch.Tensor:
        loss = original(self, interaction)
        losses.append(loss.item())
        return loss

    with patch.object(kind, "calculate_loss", calculate_loss):
        yield losses


def our_run(name: str, **settings: Any) -> Result:
    with recorded_losses(find_model(name)) as losses:
        done = run(name, "ml-100k", settings={**SHARED, **settings})
    valid, test = ({key: round(value, 4) for key, value in split.items()} for split in (done.valid, done.test))
    return Result(losses, valid, test)


def recboles_run(name: str, **settings: Any) -> Result:
    """RecBole's `run_recbole` step by step (importing it needs ray). The pickle that is read was written here."""
    config = Config(getattr(sequential_recommender, name), "ml-100k", settings={**SHARED, **settings})
    init_seed(config["seed"], config["reproducibility"])
    train, valid, test = data_preparation(config, SequentialDataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, train.dataset)
    trainer = Trainer(config, model)
    with recorded_losses(config.model_class) as losses:
        _, best = trainer.fit(train, valid, verbose=False, show_progress=False)
    model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    return Result(losses, dict(best), dict(trainer.evaluate(test, load_best_model=False)))


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_metrics_of_a_run_are_recboles(name: str):
    """Where it draws the numbers for dropout as RecBole does."""
    as_there = {"by_length": False} if name in BY_LENGTH else {"fourier": True}
    ours = our_run(name, **MODELS[name], **as_there)
    recboles = recboles_run(name, **MODELS[name])
    assert ours.losses == recboles.losses
    assert ours.valid == recboles.valid and ours.test == recboles.test
    assert len(ours.losses) >= 3 * MODELS[name]["epochs"] and ours.valid["hit@10"] > 0


def test_early_stopping_is_recboles():
    """RecBole compares scores of 4 decimals, we compare unrounded ones: no epochs are equal by rounding here."""
    given = {"epochs": 40, "stopping_step": 2, "learning_rate": 0.02}
    ours, recboles = our_run("GRU4Rec", **given, by_length=False), recboles_run("GRU4Rec", **given)
    assert ours == recboles
    batches = len(our_run("GRU4Rec", epochs=1).losses)
    assert 0 < 4 * batches <= len(ours.losses) < 40 * batches


@pytest.mark.parametrize("name", BY_LENGTH)
def test_by_length_trains_as_recbole_does_with_dropout_off(name: str):
    """The same sums in another order: losses agree to float32's rounding as it grows over the steps."""
    dropout = ["dropout_prob"] if name == "GRU4Rec" else ["hidden_dropout_prob", "attn_dropout_prob"]
    given = {**MODELS[name], **dict.fromkeys(dropout, 0.0)}
    ours, recboles = our_run(name, **given, by_length=True), recboles_run(name, **given)
    assert ours.losses == pytest.approx(recboles.losses, rel=1e-5)
    assert ours.valid == pytest.approx(recboles.valid, abs=0.01)
    assert ours.test == pytest.approx(recboles.test, abs=0.01)
