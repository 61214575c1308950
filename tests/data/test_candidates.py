"""Sampled evaluation: which items a target is ranked among, beside RecBole's own sampler and trainer."""

from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import create_samplers
from recbole.model.sequential_recommender.gru4rec import GRU4Rec
from recbole.trainer import Trainer

from recbole_sigma.data import preparation
from recbole_sigma.data.loaders import SampledItems
from recbole_sigma.data.preparation import load, sampled_items
from recbole_sigma.training.trainer import SequenceTrainer
from tests.helpers.models import refused

ITEMS = ["a"] * 12 + ["b"] * 6 + ["c"] * 3 + list("defgh")
ROWS = [(f"u{n % 30}", ITEMS[n * 7 % len(ITEMS)], n) for n in range(300)]


@pytest.mark.parametrize("mode", ["uni100", "pop100"])
def test_items_are_drawn_as_often_as_by_recboles_sampler(write_inter, read_tiny, mode):
    write_inter(ROWS)
    dataset = read_tiny(GRU4Rec, eval_args={"mode": mode})
    recboles = SequentialDataset(dataset.config)
    sampler = create_samplers(dataset.config, recboles, recboles.build())[2]
    sampled = sampled_items(dataset.config, dataset, "test")
    assert sampled is not None
    n, np_state = dataset.item_num, np.random.get_state()
    for target in (1, n - 1):
        targets = np.full(400, target)
        ours = sampled.draw(np.arange(400), targets)
        theirs = sampler.sample_by_user_ids(np.arange(400), targets, 100).numpy()
        assert ours.shape == (400, 100) and not (ours == target).any() and ours.min() >= 1
        shares = [np.bincount(drawn.ravel(), minlength=n) / 40_000 for drawn in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).max() < 0.015
    np.random.set_state(np_state)


def test_candidates_depend_on_seed_split_and_row_but_not_on_batches():
    weights = np.array([0, *[1] * 50])
    rows, targets = np.arange(3000), np.arange(3000) % 50 + 1
    whole = SampledItems(weights, 7, (3, 0)).draw(rows, targets)
    some = np.array([2999, 5, 1024, 1023])
    assert np.array_equal(SampledItems(weights, 7, (3, 0)).draw(some, targets[some]), whole[some])
    for other in ((4, 0), (3, 1)):
        assert not np.array_equal(SampledItems(weights, 7, other).draw(rows, targets), whole)


def test_items_without_weight_are_not_drawn():
    drawn = SampledItems(np.array([0, 3, 0, 1, 0]), 50, (0, 0)).draw(np.array([0, 1, 2]), np.array([1, 3, 2]))
    assert [set(row) for row in drawn.tolist()] == [{3}, {1}, {1, 3}]


def test_sampled_metrics_are_those_that_recboles_trainer_gets_from_the_same_candidates(write_inter, read_tiny):
    write_inter(ROWS)
    given: dict[str, Any] = {"metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP"], "topk": [1, 3]}
    dataset = read_tiny(GRU4Rec, **given, valid_metric="MRR@3", eval_args={"mode": "uni3"})
    config = dataset.config
    config["metric_decimal_place"] = 15  # of RecBole's trainer
    data = load(config)
    torch.manual_seed(0)
    model = GRU4Rec(config, data.train.dataset)
    trainer = SequenceTrainer(config, model)
    ours = trainer.metrics(trainer.ranks(data.test, "test"), data.test)

    recbole = Trainer(config, model.eval())
    recbole.tot_item_num = dataset.item_num
    for interaction, candidates, row, target in data.test:
        n = len(target)
        items = torch.cat([target, candidates.T.reshape(-1)])  # as RecBole's loader: positives, then negatives
        asked = interaction.repeat(1 + candidates.shape[1])
        asked["item_id"] = items
        with torch.no_grad():
            batch = recbole._neg_sample_batch_eval(
                (asked, torch.arange(n).repeat(1 + candidates.shape[1]), row, target)
            )
        recbole.eval_collector.eval_batch_collect(batch[1], *batch[:1], *batch[2:])
    theirs = recbole.evaluator.evaluate(recbole.eval_collector.get_data_struct())
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-12)


def test_each_split_may_have_a_mode_of_its_own(write_inter, read_tiny):
    write_inter(ROWS)
    data = load(read_tiny(eval_args={"mode": {"valid": "pop5", "test": "full"}}).config)
    assert next(iter(data.valid))[1].shape == (30, 5) and next(iter(data.test))[1] is None


def test_one_item_leaves_nothing_to_draw(write_inter, read_tiny):
    write_inter([("u", "a", n) for n in range(4)])
    with refused("eval_args", "uni100", "mode: full"):
        load(read_tiny(eval_args={"mode": "uni100"}).config)


@pytest.mark.parametrize(
    ("mode", "warned"), [("full", False), ("uni20", True), ({"valid": "full", "test": "pop9"}, True)]
)
def test_sampling_is_said_to_be_unreliable(write_inter, read_tiny, monkeypatch, mode, warned):
    said: list[str] = []
    monkeypatch.setattr(preparation.logger, "warning", lambda text, *values: said.append(text % values))
    write_inter(ROWS)
    load(read_tiny(eval_args={"mode": mode}).config)
    assert len(said) == warned and all("do not rank models reliably" in line for line in said)
