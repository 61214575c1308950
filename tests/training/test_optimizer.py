"""Schedules, weight decay, label smoothing and the moving average of weights, against slow versions."""

import csv
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_sigma import resume, run
from recbole_sigma.config.config import Config
from recbole_sigma.errors import Interrupted
from recbole_sigma.registry import find_model
from recbole_sigma.runs.folder import RunFolder
from recbole_sigma.training.checkpoint import Checkpoint
from recbole_sigma.training.optimizer import Schedule, WeightAverage, make_optimizer
from tests.helpers.models import SMALL, Items, batch, build, histories, refused
from tests.helpers.runs import TINY, stopping


def metrics_of(folder: Path) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(row["loss"], row["ndcg@10"]) for row in csv.DictReader(file)]


def schedule(**settings: Any) -> Schedule:
    defaults = {"learning_rate": 0.1, "epochs": 10, "schedule": "constant", "warmup_epochs": 0}
    return Schedule({**defaults, **settings})


def test_the_rate_rises_over_the_warm_up_and_then_stays_or_falls_as_a_cosine_to_zero():
    assert schedule().constant and not schedule(warmup_epochs=0.5).constant and not schedule(schedule="cosine").constant
    warm = schedule(warmup_epochs=1.5)
    assert [warm.rate_at(0, batch, 4) for batch in range(4)] == pytest.approx([0.1 * n / 6 for n in (1, 2, 3, 4)])
    assert [warm.rate_at(1, batch, 4) for batch in range(4)] == pytest.approx([0.1 * 5 / 6, 0.1, 0.1, 0.1])
    cosine = schedule(schedule="cosine", warmup_epochs=2)
    rates = [cosine.rate_at(epoch, batch, 5) for epoch in range(10) for batch in range(5)]
    expected = [min((n + 1) / 10, 0.5 + 0.5 * math.cos(math.pi * max(n - 10, 0) / 40)) * 0.1 for n in range(50)]
    assert rates == pytest.approx(expected)
    assert cosine.rate_at(9, 7, 5) == pytest.approx(0), "one pass draws more batches than its mean epoch has"


def test_adamw_decays_matrices_only(sample_config: Any):
    model = build(sample_config, "SIGMA", form="paper", share_mamba=False)
    with torch.no_grad():
        for each in model.parameters():
            each.normal_()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    config = sample_config("SIGMA", **SMALL, learner="adamw", weight_decay=0.1, learning_rate=0.5)
    optimizer = make_optimizer(config, model)
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {name for name, each in before.items() if each.dim() > 1 and "A_log" not in name}
    weight = "item_embedding.weight"
    torch.testing.assert_close(model.get_parameter(weight), before[weight] * (1 - 0.5 * 0.1))


def test_the_average_is_even_at_first_and_exponential_then():
    model = torch.nn.Linear(2, 2)
    average, decay, slow = WeightAverage(model, 0.75), 0.75, 0.0
    for step in range(1, 9):
        with torch.no_grad():
            model.weight.normal_()
        average.update()
        own = model.weight.detach().clone()
        keep = min(decay, 1 - 1 / step)
        slow = keep * slow + (1 - keep) * own
        with average.applied():
            torch.testing.assert_close(model.weight.detach(), slow)
        assert torch.equal(model.weight, own)


def test_the_average_is_evaluated_and_saved_and_training_continues_from_the_weights_themselves(tmp_path: Any):
    def trained(**settings: Any) -> Any:
        return run("GRU4Rec", "ml-100k", settings={**TINY, "epochs": 2, "checkpoint_dir": str(tmp_path), **settings})

    raw, averaged, scheduled = trained(), trained(weight_average=0.5), trained(schedule="cosine")
    of_raw, of_averaged, of_scheduled = (RunFolder(each.folder).load_state() for each in (raw, averaged, scheduled))
    name = "item_embedding.weight"
    assert not torch.equal(of_raw["model"][name], of_scheduled["model"][name])
    assert torch.equal(of_raw["model"][name], of_averaged["model"][name])
    assert not torch.equal(of_raw["best"]["weights"][name], of_averaged["best"]["weights"][name])
    assert torch.equal(RunFolder(averaged.folder).load_weights()[name], of_averaged["best"]["weights"][name])
    assert raw.valid != averaged.valid
    assert resume(averaged.folder).valid == averaged.valid


def test_a_model_without_parameters_has_no_average(tmp_path: Any):
    settings = {**TINY, "checkpoint_dir": str(tmp_path), "weight_average": 0.9, "warmup_epochs": 0.5}
    del settings["hidden_size"]
    assert run("Pop", "ml-100k", settings=settings).valid


def test_settings_that_cannot_work_are_refused():
    for model in ("FEARec", "Pop", "NARM"):
        with refused("label_smoothing", model, "0.1"):
            Config(model, "ml-100k", settings={"label_smoothing": 0.1})
        with refused("cosine_temperature", model, "0.1"):
            Config(model, "ml-100k", settings={"cosine_temperature": 0.1})
    with refused("label_smoothing", "SASRec", "0.1"):
        Config("SASRec", "ml-100k", settings={"label_smoothing": 0.1, "by_length": False})
    with refused("label_smoothing", "BPR", "0.1"):
        Config("SIGMA", "ml-100k", settings={"label_smoothing": 0.1, "loss_type": "BPR"})
    with refused("warmup_epochs", "less than epochs, 3", "3"):
        Config("SIGMA", "ml-100k", settings={"warmup_epochs": 3, "epochs": 3})
    for name, value in (("weight_average", 1.0), ("schedule", "step"), ("label_smoothing", 1), ("warmup_epochs", -1)):
        with refused(name, str(value)):
            Config("SIGMA", "ml-100k", settings={name: value})


@pytest.mark.parametrize("name", ["SIGMA", "LinRec", "SASRec", "GRU4Rec"])
@pytest.mark.parametrize("train_mode", ["prefix", "sequence"])
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_the_loss_is_torchs_with_label_smoothing(sample_config: Any, name: str, train_mode: str, temperature: Any):
    if (name, train_mode) == ("LinRec", "sequence"):
        return  # no causal model
    settings = {"MAX_ITEM_LIST_LENGTH": 12, "hidden_size": 16, "label_smoothing": 0.3, "train_mode": train_mode}
    settings["cosine_temperature"] = temperature
    model = find_model(name)(sample_config(name, **settings), Items()).eval()
    items, lengths = histories([3, 7, 1], width=7)
    rows = batch(items, lengths)
    scores = model.full_sort_predict(rows)
    if train_mode == "sequence":  # only the last position of each history has a target
        flat = items[items > 0]
        targets = torch.zeros_like(flat)
        targets[lengths.cumsum(0) - 1] = rows["item_id"]
        flat_rows = {"item_id_list": flat, "item_length": lengths, "item_id": targets}
        loss = model.calculate_loss(flat_rows)
    else:
        loss = model.calculate_loss(rows)
    torch.testing.assert_close(loss, cross_entropy(scores, rows["item_id"], label_smoothing=0.3))
    torch.testing.assert_close(model.predict(rows), scores[torch.arange(3), rows["item_id"]])
    representation, table = model.forward(items, lengths), model.item_embedding.weight
    if temperature is None:
        expected = representation @ table.T
    else:
        expected = torch.nn.functional.cosine_similarity(representation[:, None], table, dim=-1) / temperature
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)


def test_a_cosine_is_not_trained_beyond_its_end_and_keeps_its_length_when_cut_short(tmp_path: Any):
    settings = {**TINY, "epochs": 4, "schedule": "cosine", "checkpoint_dir": str(tmp_path)}
    with pytest.raises(Interrupted) as caught, patch.object(Checkpoint, "on_epoch_end", stopping(1)):
        run("GRU4Rec", "ml-100k", settings=settings)
    folder = str(caught.value)
    with refused("epochs", "at most 4", "schedule"):
        resume(folder, {"epochs": 5})
    resume(folder, {"epochs": 2})
    complete = run("GRU4Rec", "ml-100k", settings=settings).folder
    shorter, longer = (metrics_of(Path(each)) for each in (folder, complete))
    assert shorter == longer[:2]
