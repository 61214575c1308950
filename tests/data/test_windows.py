"""`train_mode: sequence`: windows hold every sample once, and give the loss and gradients of the prefixes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.data.loaders import BatchSampler, WindowLoader
from recbole_sigma.data.windows import _cut
from recbole_sigma.errors import UserError
from recbole_sigma.model.mamba4rec import Mamba4Rec
from tests.helpers.models import SMALL_SSM, loss_and_gradients

COMMON = {"hidden_size": 16, "MAX_ITEM_LIST_LENGTH": 40, "train_batch_size": 10_000, "shuffle": False}
SIZES: dict[str, dict[str, Any]] = {
    "SIGMA": {"dropout_prob": 0.0, "gate_dropout": 0.0, "d_state": 4, "d_conv": 4, "r": 2},
    "Mamba4Rec": {"dropout_prob": 0.0, **SMALL_SSM},
    "RecMamba": {"dropout_prob": 0.0, **SMALL_SSM},
    "EMARec": {"dropout_prob": 0.0},
    "SASRec": {"inner_size": 16, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0},
    "GRU4Rec": {"dropout_prob": 0.0},
}
SIGMA_SWITCHES: list[dict[str, Any]] = [
    *({"r": r} for r in (0, 1, 3, 5, 60)), *({"r": r, "d_conv": K} for r in (0, 2) for K in (1, 2, 3)),
    *({"form": "paper", "r": r} for r in (0, 1, 2)), *({"fe_conv": conv} for conv in ("conv", "residual")),
    {"form": "paper", "fe_conv": "residual", "share_mamba": False}, {"share_mamba": False, "r": 5},
    {"partial_flip": False}, {"form": "paper", "partial_flip": False}, {"ds_gate": False}, {"fe_gru": False},
    {"mixing": "attention"}, {"mixing": "gated"}, {"ssm_init": "mamba"}, {"mamba": False}, {"mixing": "fixed"},
    *({"residual": each, "form": form} for each, form in (("layer", "paper"), ("gru", "released"), ("mamba", "paper"))),
    {"flip_ranges": [0, 1, 3]}, {"form": "paper", "flip_ranges": [4, 0], "share_mamba": False},
    {"fe_conv": "conv", "fe_conv_width": 7}, {"fe_conv": "conv", "fe_conv_width": 5, "gru_reset": "before"},
]  # fmt: skip
ONE_PASS = [
    *((name, {}) for name in SIZES), ("Mamba4Rec", {"num_layers": 2}),
    *(("Mamba4Rec", each) for each in ({"positions": "start"}, {"layer_norm": False}, {"selective": False})),
    ("Mamba4Rec", {"feed_forward": False}), ("RecMamba", {"num_layers": 2}),
    *(("SIGMA", each) for each in SIGMA_SWITCHES),
]  # fmt: skip


def users(counts: list[int], seed: int = 0) -> list[tuple[str, str, int]]:
    """Interactions of users with so many items each, of 30 items."""
    random = np.random.default_rng(seed)
    return [(f"u{u}", f"i{random.integers(30)}", t) for u, count in enumerate(counts) for t in range(count)]


@pytest.fixture
def loader(write_inter: Any, read_tiny: Any) -> Callable[..., Any]:
    """`loader(counts, model, setting=value, ...)` -> model, training loader"""

    def make(counts: list[int], name: str = "Mamba4Rec", **changed: Any) -> Any:
        write_inter(users(counts))
        dataset = read_tiny(name, **{**COMMON, **SIZES[name], **changed})
        train, _, _ = data_preparation(dataset.config, dataset)
        torch.manual_seed(0)
        return dataset.config.model_class(dataset.config, train.dataset).double(), train

    return make


def with_negatives(batch: Interaction) -> Interaction:
    """The negative of each positive item is the next item: the same in both modes."""
    positive = batch["item_id"]
    batch.update(Interaction({"neg_item_id": torch.where(positive == 0, 0, positive % 29 + 1)}))
    return batch


@pytest.mark.parametrize(("name", "changed"), ONE_PASS, ids=str)
@pytest.mark.parametrize(("loss_type", "bits"), [("CE", 64), ("BPR", 64), ("BCE", 64), ("CE", 32)])
def test_a_window_gives_the_loss_and_gradients_of_its_prefixes(
    loader: Any, name: str, changed: dict[str, Any], loss_type: str, bits: int
):
    dtype, tolerance = {64: (torch.float64, 1e-10), 32: (torch.float32, 1e-5)}[bits]
    if loss_type == "BCE" and name in ("SASRec", "GRU4Rec"):
        pytest.skip("RecBole's classes have no BCE")
    results = []
    for mode in ("prefix", "sequence"):
        model, train = loader([3, 4, 9, 25, 40, 5, 17], name, train_mode=mode, loss_type=loss_type, **changed)
        (batch,) = train
        results.append(loss_and_gradients(model.to(dtype), with_negatives(batch)))
    expected, found = results
    assert found.keys() == expected.keys()
    largest = {key: float(value.abs().max()) for key, value in expected.items()}
    largest = {key: max(value, 1e-2) for key, value in largest.items()}  # a gradient that is 0 in exact arithmetic
    for key, value in found.items():
        atol = 0 if key == "loss" else tolerance * largest[key]
        torch.testing.assert_close(value, expected[key], rtol=tolerance, atol=atol, msg=key)


@pytest.mark.parametrize("name", ["SIGMA", "Mamba4Rec", "SASRec"])
def test_windows_of_one_target_give_the_loss_of_prefixes_beyond_the_maximum(loader: Any, name: str):
    settings = {"MAX_ITEM_LIST_LENGTH": 8, "window_step": 1}
    results = []
    for mode in ("prefix", "sequence"):
        model, train = loader([3, 4, 9, 25, 40, 5, 17], name, train_mode=mode, **settings)
        (batch,) = train
        results.append(loss_and_gradients(model, batch))
    expected, found = results
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10)


def test_a_few_long_histories_are_read_exactly_and_many_in_windows_which_the_log_says(loader: Any, caplog: Any):
    caplog.set_level("INFO", "recbole_sigma")
    few = loader([10] * 40 + [14], MAX_ITEM_LIST_LENGTH=10, train_mode="sequence")[1]
    assert "longer than" not in caplog.text
    many = loader([10] * 4 + [60, 70], MAX_ITEM_LIST_LENGTH=10, train_mode="sequence")[1]
    assert [each.dataset.inter_feat.step for each in (few, many)] == [1, 5]
    assert "2 histories are longer than MAX_ITEM_LIST_LENGTH 10" in caplog.text and "window_step" in caplog.text


def test_a_window_holds_the_items_of_its_history_and_the_next_of_each(loader: Any):
    _, train = loader([6, 4], train_mode="sequence")
    _, prefixes = loader([6, 4], train_mode="prefix")
    (batch,), (rows,) = train, prefixes
    assert batch["item_length"].tolist() == [3, 1]  # the last two items of a user are for validation and test
    read, target = batch["item_id_list"], batch["item_id"]
    assert len(read) == len(target) == 4  # no padding
    assert read[1:3].tolist() == target[:2].tolist()
    assert sorted(target[target != 0].tolist()) == sorted(rows["item_id"].tolist())


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 20), st.data())
def test_every_sample_is_the_target_of_one_window_with_enough_to_read(n_targets: list[int], max_length: int, data: Any):
    step = data.draw(st.integers(1, max_length))
    ends = np.cumsum([n + 1 for n in n_targets])
    begin = ends - np.array(n_targets) - 1
    starts, firsts, stops = _cut(begin, begin + 1, ends - 1, max_length, step)
    held = np.concatenate([np.arange(first, stop + 1) for first, stop in zip(firsts, stops, strict=True)])
    assert held.tolist() == [t for b, n in zip(begin, n_targets, strict=True) for t in range(b + 1, b + 1 + n)]
    assert (stops - starts).max() <= max_length
    owner = begin[np.searchsorted(begin, starts, side="right") - 1]
    assert (np.minimum(firsts - owner, max_length - step + 1) <= firsts - starts).all()
    assert (owner <= starts).all()


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 50))
def test_a_batch_is_full_when_its_targets_are(sizes: list[int], batch_size: int):
    batches = [each.rows for each in BatchSampler(len(sizes), batch_size, None, np.array(sizes))]
    assert np.concatenate(batches).tolist() == list(range(len(sizes)))
    assert all(len(each) for each in batches)
    for rows in batches[:-1]:
        assert sum(sizes[row] for row in rows[:-1]) < batch_size + max(sizes)


@pytest.mark.parametrize("loss_type", ["BPR", "BCE"])
def test_every_target_has_a_negative_of_its_own(loader: Any, loss_type: str):
    _, train = loader([12, 5, 7], train_mode="sequence", loss_type=loss_type)
    assert isinstance(train, WindowLoader)
    (batch,), (again,) = list(train), list(loader([12, 5, 7], train_mode="sequence", loss_type=loss_type)[1])
    positive, negative = batch["item_id"], batch["neg_item_id"]
    assert torch.equal(negative != 0, positive != 0)
    assert not (negative == positive)[positive != 0].any()
    assert torch.equal(again["neg_item_id"], negative)


@pytest.mark.parametrize("name", ["ECHO", "LinRec", "FEARec", "NARM"])
def test_a_model_that_looks_ahead_is_refused(sample_config: Any, name: str):
    config = sample_config(name, train_mode="sequence")
    with pytest.raises(UserError, match=rf"train_mode.*{name}.*because.*prefix"):
        data_preparation(config, create_dataset(config))


class _OwnLoss(Mamba4Rec):
    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        return super().calculate_loss(interaction)


TWO_NEGATIVES = {"distribution": "uniform", "sample_num": 2}


@pytest.mark.parametrize(
    ("model", "given", "mode"),
    [
        ("SIGMA", {}, "sequence"), ("Mamba4Rec", {"num_layers": 2}, "sequence"), ("SASRec", {}, "sequence"),
        ("GRU4Rec", {"loss_type": "BPR"}, "sequence"), ("RecMamba", {"loss_type": "BCE"}, "sequence"),
        ("SIGMA", {"num_layers": 2}, "prefix"), ("SIGMA", {"flip": "padded"}, "prefix"), ("ECHO", {}, "prefix"),
        ("BERT4Rec", {}, "sequence"), ("NARM", {}, "prefix"), ("SASRec", {"by_length": False}, "prefix"),
        ("RecMamba", {"loss_type": "BPR", "train_neg_sample_args": TWO_NEGATIVES}, "prefix"), (_OwnLoss, {}, "prefix"),
        ("Pop", {}, "prefix"), (_OwnLoss, {"train_mode": "sequence"}, "sequence"),
        ("SIGMA", {"train_mode": "prefix"}, "prefix"),
    ],
)  # fmt: skip
def test_one_pass_is_the_default_where_a_model_can(sample_config: Any, model: Any, given: dict[str, Any], mode: str):
    config = sample_config(model, **given)
    assert config["train_mode"] == config.settings()["train_mode"] == mode
    train, _, _ = data_preparation(config, create_dataset(config))
    assert isinstance(train, WindowLoader) == (mode == "sequence")


def test_an_unknown_mode_is_refused(sample_config: Any):
    with pytest.raises(UserError, match=r"train_mode.*auto, prefix, sequence.*'sequnce'"):
        sample_config("SASRec", train_mode="sequnce")


def test_several_negatives_a_target_are_refused(sample_config: Any):
    many = {"distribution": "uniform", "sample_num": 2}
    config = sample_config("RecMamba", train_mode="sequence", loss_type="BPR", train_neg_sample_args=many)
    with pytest.raises(UserError, match=r"train_neg_sample_args.*sample_num: 1"):
        data_preparation(config, create_dataset(config))
