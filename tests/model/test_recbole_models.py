"""GRU4Rec, BERT4Rec, SASRec, FEARec: RecBole's classes through our data, with less padding where they allow it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from recbole.model.sequential_recommender import FEARec, GRU4Rec, SASRec
from recbole.model.sequential_recommender.bert4rec import BERT4Rec as RecBoleBERT4Rec
from recbole.utils import init_seed
from torch import Tensor

from recbole_sigma import run
from recbole_sigma.data import create_dataset, data_preparation
from recbole_sigma.registry import find_model
from tests.helpers.models import Items, batch, histories, loss_and_gradients, refused

RECBOLES = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}
by_length = pytest.mark.parametrize("name", RECBOLES)
LONGEST = 12
SMALL = {"hidden_size": 16, "MAX_ITEM_LIST_LENGTH": LONGEST}
ALONE = {
    "SASRec": {"inner_size": 16, "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0},
    "GRU4Rec": {"embedding_size": 8, "dropout_prob": 0.0},
}


@pytest.fixture
def both_ways(sample_config: Any) -> Callable[..., list[Any]]:
    """`both_ways(name, setting=value, ...)`: a model by length and its twin on padded batches; float64, no dropout."""

    def make(name: str, **settings: Any) -> list[Any]:
        models = []
        for by_length in (True, False):
            torch.manual_seed(0)
            config = sample_config(name, **{**SMALL, **ALONE[name], "by_length": by_length, **settings})
            models.append(find_model(name)(config, Items()).double())
        return models

    return make


def every_length() -> tuple[Tensor, Tensor]:
    """Rows of 1 to LONGEST items, each length more than once, in no order."""
    lengths = torch.arange(3 * LONGEST) * 7 % LONGEST + 1
    return histories(lengths.tolist(), LONGEST)


def shapes_encoded(model: Any, items: Tensor, lengths: Tensor) -> list[torch.Size]:
    """Of the item sequences that RecBole's `forward` gets."""
    recboles = RECBOLES[type(model).__name__]
    with patch.object(recboles, "forward", autospec=True, side_effect=recboles.forward) as forward:
        model(items, lengths)
    return [call.args[1].shape for call in forward.call_args_list]


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
@by_length
def test_by_length_and_padded_give_the_same_loss_gradients_and_scores(both_ways: Any, name: str, loss_type: str):
    """A GRU reads padding after the last item; causal attention gives it the weight exp(-10000), which is 0. Positions
    count from the first item, and everything else is position by position: equal up to the order of sums."""
    items, lengths = every_length()
    results = []
    for model in both_ways(name, loss_type=loss_type):
        rows = batch(items, lengths)
        scores = model.full_sort_predict(rows).detach(), model.predict(rows).detach()
        results.append([*scores, loss_and_gradients(model, rows)])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
    assert len({tuple(row) for row in results[0][0].tolist()}) > LONGEST  # histories do matter


@by_length
def test_padded_is_recboles_own_class_bit_for_bit_dropout_included(sample_config: Any, name: str):
    """Where the loader cut the histories, too: dropout draws other numbers by length."""
    items, lengths = histories([2, 9, 1, 5, 9], LONGEST)
    config = sample_config(name, **SMALL, by_length=False, loss_type="CE")
    losses = []
    for kind, width in ((RECBOLES[name], LONGEST), (find_model(name), LONGEST), (find_model(name), 9)):
        torch.manual_seed(3)
        losses.append(kind(config, Items()).train().calculate_loss(batch(items[:, :width], lengths)))
    assert losses[0] == losses[1] == losses[2]


@by_length
def test_by_length_encodes_a_third_of_the_padded_positions_at_lengths_as_in_beauty(sample_config: Any, name: str):
    """amazon-beauty: a prefix has 8 items on the mean, half have at most 4, and a batch is padded to 50."""
    generator = torch.Generator().manual_seed(0)
    own = torch.empty(2048).exponential_(1 / 8, generator=generator).ceil().clamp(1, 50).long()
    items, lengths = histories(own.tolist(), 50)
    model = find_model(name)(sample_config(name, **{**SMALL, "MAX_ITEM_LIST_LENGTH": 50}), Items())
    shapes = shapes_encoded(model, items, lengths)
    assert sum(rows for rows, _ in shapes) == len(lengths)
    assert lengths.sum() <= sum(rows * width for rows, width in shapes) < items.numel() / 3


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        *((name, {"by_length": wrong}, ["by_length"]) for name in RECBOLES for wrong in (1, "yes", None, 0.5)),
        ("FEARec", {"by_length": True}, ["by_length"]),  # only of the models that have it
        ("FEARec", {"contrast": "usx"}, ["contrast", "un, su, us, us_x, none", "usx"]),
        ("FEARec", {"fredom_type": "x"}, ["fredom_type", "x"]),
        ("FEARec", {"sim": "cosine"}, ["sim", "dot, cos", "cosine"]),
        ("FEARec", {"tau": 0.0}, ["tau", "0"]),
        ("FEARec", {"global_ratio": 1.5}, ["global_ratio", "0", "1", "1.5"]),
        ("FEARec", {"topk_factor": 0}, ["topk_factor", "1", "0"]),
        ("BERT4Rec", {"mask_ratio": -0.1}, ["mask_ratio", "-0.1"]),
        ("BERT4Rec", {"ft_ratio": 2}, ["ft_ratio", "2"]),
        ("SASRec", {"hidden_act": "softmax"}, ["hidden_act", "gelu, relu", "softmax"]),
        ("SASRec", {"n_heads": 3}, ["n_heads", "hidden_size", "64", "3"]),
        ("BERT4Rec", {"n_heads": 5, "hidden_size": 32}, ["n_heads", "hidden_size", "32", "5"]),
        ("SIGMA", {"d_state": 0}, ["d_state", "1", "0"]),
        ("SIGMA", {"r": -1}, ["r", "0", "-1"]),
        ("SIGMA", {"form": "peper"}, ["form", "paper", "released", "'peper'"]),
        ("SIGMA", {"fe_conv": True}, ["fe_conv", "true"]),
        ("SIGMA", {"gate_dropout": 1}, ["gate_dropout", "1"]),
    ],
)
def test_settings_that_would_be_ignored_or_fail_are_refused(
    sample_config: Any, name: str, settings: dict[str, Any], words: list[str]
):
    with refused(*words):
        sample_config(name, **settings)


FEAREC = {"hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 6, "train_batch_size": 30}
CONTRASTS = ("un", "su", "us", "us_x", "none")


@pytest.fixture
def fearec_on(write_inter: Any, read_tiny: Any) -> Callable[..., tuple[Any, Any]]:
    """`fearec_on(rows, kind, setting=value, ...)`: a FEARec of that class and its training loader."""

    def make(rows: list[tuple[str, str, int]], kind: type | str = "FEARec", **settings: Any) -> tuple[Any, Any]:
        write_inter(rows)
        dataset = read_tiny(kind, **{**FEAREC, **settings})
        train = data_preparation(dataset.config, dataset)[0]
        init_seed(1, True)
        return dataset.config.model_class(dataset.config, train.dataset), train

    return make


def shopping(users: int = 30) -> list[tuple[str, str, int]]:
    """Users of 3 to 9 interactions with 11 items."""
    return [(f"u{user}", f"i{(user * 5 + k * k) % 11}", k) for user in range(users) for k in range(3 + user % 7)]


def test_fearecs_index_of_same_targets_is_recboles(fearec_on: Any):
    ours, theirs = (fearec_on(shopping(), kind)[0].same_item_index for kind in ("FEARec", FEARec))
    assert sorted(ours) == sorted(theirs)
    assert all(ours[item].tolist() == theirs[item].tolist() for item in ours)
    assert max(map(len, ours.values())) > 5


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_fearecs_losses_and_draws_are_recboles(fearec_on: Any, contrast: str, loss_type: str):
    losses = []
    for kind, own in (("FEARec", {"fourier": True}), (FEARec, {})):
        model, train = fearec_on(shopping(), kind, contrast=contrast, fredom_type=contrast, loss_type=loss_type, **own)
        losses.append([model.calculate_loss(rows).item() for rows in train])
    assert losses[0] == losses[1] and len(losses[0]) > 2


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}


FEAREC_SETTINGS = [
    {}, {"n_layers": 3}, {"global_ratio": 0.3, "n_heads": 1}, {"topk_factor": 2, "MAX_ITEM_LIST_LENGTH": 10},
    {"contrast": "us", "hidden_act": "relu"}, {"sim": "cos"}, {"std": False}, {"dual_domain": False},
]  # fmt: skip


@pytest.mark.parametrize("settings", FEAREC_SETTINGS, ids=str)
def test_fearec_without_fourier_transforms_gives_recboles_losses_gradients_and_scores(fearec_on: Any, settings: Any):
    results = []
    for own in ({"fourier": False}, {"fourier": True}):
        model, train = fearec_on(shopping(), **NO_DROPOUT, **own, **settings)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        init_seed(2, True)  # the histories of the contrasts
        rows = next(iter(train))
        results.append([loss_and_gradients(model, rows), model.eval().full_sort_predict(rows).detach()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-6)
    assert len({tuple(row) for row in results[0][1].tolist()}) > 10


def test_each_of_fearecs_contrastive_losses_counts_by_default(fearec_on: Any):
    """RecBole's own defaults name no contrast: there, every value gives the loss of `none`."""
    losses = set()
    for settings in ({}, {"fredom": False}, *({"contrast": contrast} for contrast in CONTRASTS)):
        model, train = fearec_on(shopping(), hidden_dropout_prob=0.1, **settings)
        losses.add(model.calculate_loss(next(iter(train))).item())
    assert len(losses) == 2 + len(CONTRASTS) - 1  # the default is us_x


def test_fearec_trains_where_all_samples_of_a_target_have_one_history(fearec_on: Any):
    """RecBole's class would draw forever until it finds another history."""
    rows = [(f"u{user}", item, k) for user in range(3) for k, item in enumerate(["a", "b", f"c{user}", f"d{user}"])]
    model, train = fearec_on(rows)
    of_b = model.same_item_index[train.dataset.token2id("item_id", "b")]
    assert len(of_b) == 1
    assert torch.isfinite(model.calculate_loss(next(iter(train))))


def test_fearec_trains_a_last_batch_of_one_row(fearec_on: Any):
    model, train = fearec_on(shopping(), train_batch_size=1)
    results = loss_and_gradients(model, next(iter(train)))
    assert torch.isfinite(results["loss"]) and results["item_embedding.weight"].any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MAX_ITEM_LIST_LENGTH": 5}, ["MAX_ITEM_LIST_LENGTH", "even", "4", "5"]),
        ({"n_layers": 1}, ["n_layers", "2", "1"]),
        ({"topk_factor": 9}, ["topk_factor", "6", "9"]),
    ],
)
def test_sizes_on_which_recboles_fearec_fails_are_refused(fearec_on: Any, settings: dict[str, Any], words: list[str]):
    with refused(*words):
        fearec_on(shopping(), **settings)


def masked(index: list[list[int]]) -> Interaction:
    """A batch with masks at `index` (0: none), two a row, as the transform makes it."""
    items = torch.arange(1, 7).repeat(len(index), 1)
    fields = {"Mask_item_id_list": items, "Pos_item_id": items[:, :2].clone(), "Neg_item_id": items[:, 2:4].clone()}
    return Interaction({**fields, "MASK_INDEX": torch.tensor(index)})


def small_bert(config: Any, **settings: Any) -> Any:
    given = {"hidden_size": 8, "inner_size": 8, "MAX_ITEM_LIST_LENGTH": 10, "use_gpu": False, "train_mode": "prefix"}
    given |= settings
    made = config("BERT4Rec", **given)
    construct_transform(made)  # names the fields of masked batches, as the loader does
    return find_model("BERT4Rec")(made, Items()).eval()


def test_bert4recs_loss_of_a_batch_without_masks_is_zero_and_not_nan(sample_config: Any):
    model = small_bert(sample_config)
    assert loss_and_gradients(model, masked([[0, 0], [0, 0]]))["loss"] == 0
    assert model.calculate_loss(masked([[0, 0], [0, 3]])) > 0


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_bert4rec_by_length_and_padded_give_the_same_loss_gradients_and_scores(
    sample_config: Any, loss_type: str, monkeypatch: Any
):
    monkeypatch.setattr(torch, "zeros", partial(torch.zeros, dtype=torch.float64))  # RecBole's index of the masks
    items, lengths = histories((torch.arange(30) * 7 % 10 + 1).tolist(), 10)
    results = []
    for by_length, width in ((True, 10), (False, 10), (True, 9), (False, 9)):
        init_seed(0, True)
        dropout = dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob"), 0.0)
        model = small_bert(sample_config, by_length=by_length, mask_ratio=0.4, loss_type=loss_type, **dropout).double()
        torch.nn.init.normal_(model.output_bias)
        rows = batch(items[:, :width], lengths.clamp(max=width))
        scores = model.full_sort_predict(rows).detach(), model.predict(rows).detach()
        with_masks = construct_transform(sample_config("BERT4Rec", MAX_ITEM_LIST_LENGTH=10, mask_ratio=0.4))(
            Items(), rows
        )
        results.append([*scores, loss_and_gradients(model, with_masks)])
    for found in (results[:2], results[2:]):
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
    assert len({tuple(row) for row in results[0][0].tolist()}) > 10  # histories do matter


def test_a_mask_ratio_without_any_masked_item_is_refused(sample_config: Any):
    with refused("mask_ratio", "MAX_ITEM_LIST_LENGTH", "1", "0.2 times 4"):
        small_bert(sample_config, MAX_ITEM_LIST_LENGTH=4)


def whole_bert(config: Any, **settings: Any) -> Any:
    dropout = dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob"), 0.0)
    return small_bert(config, **{"MAX_ITEM_LIST_LENGTH": 4, "train_mode": "sequence", **dropout, **settings}).double()


@pytest.mark.parametrize(
    ("mask_ratio", "ft_ratio", "expected"),  # items read of each history, and which are masked
    [
        (1.0, 0.0, [(4, [1, 2, 3]), (2, [1]), (5, [3, 4]), (3, [1, 2])]),
        (0.0, 0.0, [(4, [3]), (2, [1]), (5, [4]), (3, [2])]),
        (0.6, 1.0, [(4, [3]), (2, [1]), (4, [3]), (2, [1])]),
        (0.5, 0.5, [(4, [1, 2]), (2, [1]), (4, [3]), (3, [2])]),
    ],
)
def test_bert4rec_masks_targets_of_whole_histories(
    sample_config: Any, monkeypatch: Any, mask_ratio: float, ft_ratio: float, expected: list[tuple[int, list[int]]]
):
    """Against loops over histories, one of which is a later window of a long history: its first targets are others'."""
    model = whole_bert(sample_config, mask_ratio=mask_ratio, ft_ratio=ft_ratio)
    windows = [([3, 7, 5], [7, 5, 9]), ([8], [2]), ([4, 6, 1, 2], [0, 0, 2, 11]), ([9, 8], [8, 1])]
    noise = torch.rand(14 + 4 + 4, generator=torch.Generator().manual_seed(105))
    monkeypatch.setattr(torch, "rand", lambda size: noise[:size])
    rows = Interaction({
        "item_id_list": torch.tensor([item for read, _ in windows for item in read]),
        "item_id": torch.tensor([item for _, targets in windows for item in targets]),
        "item_length": torch.tensor([len(read) for read, _ in windows]),
    })  # fmt: skip
    losses, at, masks = [], 0, []
    for number, (read, targets) in enumerate(windows):
        history, own = [*read, targets[-1]], [p for p, target in enumerate(targets, 1) if target]
        chosen = [p for p in own if noise[at + p] < mask_ratio] or [len(read)]
        at += len(history)
        if noise[14 + number] < ft_ratio:
            chosen = [own[len(own) - 1 - int(noise[18 + number] * len(own))]]
            history = history[: chosen[0] + 1]
        seen = [model.mask_token if p in chosen else item for p, item in enumerate(history)]
        scores = RecBoleBERT4Rec.forward(model, torch.tensor([seen]))[0] @ model.item_embedding.weight[:-1].T
        log_likelihood = torch.log_softmax(scores + model.output_bias, -1)
        losses += [-log_likelihood[p, history[p]] for p in chosen]
        masks.append((len(history), chosen))
    torch.testing.assert_close(model.calculate_loss(rows), torch.stack(losses).mean(), rtol=1e-12, atol=0)
    assert masks == expected


def test_bert4rec_trained_on_whole_histories_reads_all_items_before_the_mask(sample_config: Any):
    model = whole_bert(sample_config)
    items, lengths = histories([1, 4, 2, 3, 4], 4)
    scores = model.full_sort_predict(batch(items, lengths))
    for row, length, found in zip(items.tolist(), lengths.tolist(), scores, strict=True):
        hidden = RecBoleBERT4Rec.forward(model, torch.tensor([[*row[:length], model.mask_token]]))[0, -1]
        expected = model.item_embedding.weight[:-1] @ hidden + model.output_bias
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_bert4rec_needs_its_own_loss_for_whole_histories(sample_config: Any):
    for given in ({"by_length": False}, {"loss_type": "BPR"}):
        assert sample_config("BERT4Rec", **given)["train_mode"] == "prefix"  # by auto
        made = sample_config("BERT4Rec", train_mode="sequence", **given)
        with refused("train_mode", "BERT4Rec", "by_length: true and loss_type: CE", "train_mode: prefix"):
            data_preparation(made, create_dataset(made))


@pytest.mark.parametrize(("longest", "n_items"), [(20, 5), (4, 30)], ids=["every item", "short"])
def test_bert4rec_masks_in_training_only(write_inter: Any, tmp_path: Path, longest: int, n_items: int):
    """RecBole's transform would look for an item outside a history that has every item, and need a mask in each row."""
    write_inter([(f"u{user}", f"i{(user + step) % n_items}", step) for user in range(12) for step in range(9)])
    settings = {"hidden_size": 8, "inner_size": 8, "epochs": 1, "MAX_ITEM_LIST_LENGTH": longest, "use_gpu": False}
    settings |= {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "train_batch_size": 32}
    assert run("BERT4Rec", "tiny", settings=settings).test["hit@10"] > 0
