"""A number is right or there is none: what must not change a metric, and what must end a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recbole_sigma.config.config import Config
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.evaluation.metrics import metrics_of_ranks
from recbole_sigma.registry import find_model
from recbole_sigma.training.trainer import SMALLEST_SCALE, SequenceTrainer
from tests.helpers.models import refused
from tests.helpers.runs import NINE, SIZES, SMALL

TINY = {**SMALL, "MAX_ITEM_LIST_LENGTH": 20, "hidden_size": 16, "epochs": 1}


@pytest.fixture
def trainer() -> Callable[..., tuple[SequenceTrainer, Any]]:
    """`trainer(model, setting=value, ...)` -> a trainer before its first epoch, and the three loaders."""

    def make(model: str = "Mamba4Rec", **settings: Any) -> tuple[SequenceTrainer, Any]:
        config = Config(model, "ml-100k", settings={**TINY, **SIZES.get(model, {}), **settings})
        torch.manual_seed(0)
        loaders = data_preparation(config, create_dataset(config))
        network = find_model(model)(config, loaders[0].dataset)
        return SequenceTrainer(config, network), loaders

    return make


def spread_out(network: torch.nn.Module) -> None:
    """Weights as large as after training: fresh ones give scores that rounding could put in another order."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("model", NINE)
def test_how_evaluation_is_cut_up_changes_no_metric(trainer: Any, model: str, monkeypatch: Any):
    own_chunks = model != "FEARec"
    cases = [{}, {"eval_batch_size": 1}, {"eval_batch_size": 7}, {"eval_batch_size": 4096}, {"threads": 2}]
    cases += [{"length_ratio": 1.0}, {"length_ratio": 1000.0}] if own_chunks else []
    found = []
    for settings in cases:
        made, (_, _, test) = trainer(model, **settings)
        spread_out(made.model)
        torch.set_num_threads(settings.get("threads", 1))
        found.append(made.ranks(test, "test"))
    torch.set_num_threads(1)
    monkeypatch.setattr("recbole_sigma.model.chunks.TOKENS_TOGETHER", 64)
    monkeypatch.setattr("recbole_sigma.model.chunks.SPARE", 0)
    found.append(made.ranks(test, "test"))
    expected = metrics_of_ranks(found[0].rank, [100, 400])
    assert 0 < expected["hit@100"] < 1
    for ranks, settings in zip(found, [*cases, "TOKENS_TOGETHER"], strict=True):
        assert metrics_of_ranks(ranks.rank, [100, 400]) == expected, settings
        np.testing.assert_array_equal(ranks.user, found[0].user)


class Constant(torch.nn.Module):
    """Scores that tell no item from another."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return torch.full((len(interaction), self.n_items), 0.5)


def test_a_scorer_that_knows_nothing_hits_at_chance_level_at_most(trainer: Any):
    made, (_, _, test) = trainer()
    n_items = test.dataset.item_num
    made.model = Constant(n_items)
    ranks = made.ranks(test, "test")
    assert set(ranks.rank) == {n_items / 2}
    assert metrics_of_ranks(ranks.rank, [10]) == {"hit@10": 0.0, "ndcg@10": 0.0, "mrr@10": 0.0}
    assert metrics_of_ranks(ranks.rank, [n_items // 2])["hit@" + str(n_items // 2)] in (0, 1)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_ends_the_run_before_the_step(trainer: Any, wrong: float):
    made, (train, _, _) = trainer()
    name, parameter = next(iter(made.model.named_parameters()))
    parameter.register_hook(lambda grad: torch.full_like(grad, wrong))
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    with refused(name, "NaN or infinite", "epoch 4, batch 0", "learning_rate", "clip_grad_norm={max_norm: 1}"):
        made._train_epoch(train, 4)
    assert all(torch.equal(value, before[key]) for key, value in made.model.state_dict().items())


def test_a_gradient_that_overflows_at_every_scale_ends_the_run(trainer: Any):
    made, (train, _, _) = trainer(enable_scaler=True, train_batch_size=64)
    parameter = next(made.model.parameters())
    parameter.register_hook(lambda grad: torch.full_like(grad, float("inf")))
    with refused("overflows at every scale", "epoch 0, batch ", "try a lower"):
        for _ in range(100):
            made._train_epoch(train, 0)
    assert made.scaler.get_scale() < SMALLEST_SCALE


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.01}])
def test_scaled_losses_are_unscaled_before_gradients_are_clipped(trainer: Any, clip: dict[str, float] | None):
    weights = []
    for enable_scaler in (False, True):
        settings = {"learner": "sgd", "learning_rate": 1.0, "clip_grad_norm": clip, "dropout_prob": 0.0}
        made, (train, _, _) = trainer(enable_scaler=enable_scaler, **settings)
        before = made.model.item_embedding.weight.detach().clone()
        made._train_epoch(train, 0)
        weights.append(made.model.item_embedding.weight.detach() - before)
    assert weights[0].abs().max() > 0
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-6)


def test_full_precision_decides_the_first_best_epoch_wins_and_patience_counts_the_others(
    trainer: Any, monkeypatch: Any
):
    scores = iter([0.20001, 0.20003, 0.20003, 0.20002])  # a fifth epoch would have none
    made, (train, valid, _) = trainer(epochs=9, stopping_step=1)
    monkeypatch.setattr("recbole_sigma.training.trainer.metrics_of_ranks", lambda *_: {"ndcg@10": next(scores)})
    monkeypatch.setattr(made, "_train_epoch", lambda *_: 0.0)
    made.fit(train, valid)
    assert (made.best.epoch, made.best.score, made.best.waited) == (1, 0.20003, 2)
