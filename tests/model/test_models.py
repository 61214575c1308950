"""What every model of ours promises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_sigma.errors import UserError
from recbole_sigma.layers.padding import last_real
from recbole_sigma.model import sequence
from recbole_sigma.model.chunks import length_chunks
from tests.helpers.models import N_ITEMS, OURS, SWITCHES, batch, build, histories

LENGTHS = [1, 12, 3, 7, 7, 2, 9, 5]
switches = pytest.mark.parametrize(("name", "settings"), SWITCHES, ids=lambda each: str(each))


@switches
def test_scores_do_not_depend_on_padding_or_on_the_batch(sample_config: Callable[..., Any], name: str, settings: Any):
    model = build(sample_config, name, **settings).double()
    items, lengths = histories(LENGTHS, width=12)
    together = model(items, lengths)
    for row, length in enumerate(LENGTHS):
        alone = model(items[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-10)
    wider = torch.cat([items, torch.zeros(len(items), 5, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(wider, lengths), together, rtol=1e-9, atol=1e-10)


@switches
def test_encoding_does_not_read_the_embedding_of_padding(sample_config: Callable[..., Any], name: str, settings: Any):
    model = build(sample_config, name, **settings).double()
    items, lengths = histories(LENGTHS, width=12)
    before = model(items, lengths)
    with torch.no_grad():
        model.item_embedding.weight[0] = 7.0
    torch.testing.assert_close(model(items, lengths), before, rtol=0, atol=0)


@switches
def test_the_last_item_alone_gives_what_all_positions_give_there(
    sample_config: Callable[..., Any], name: str, settings: Any
):
    model = build(sample_config, name, **settings).double()
    items, lengths = histories(LENGTHS, width=12)
    hidden = model.embed(items)
    everywhere = last_real(model.encode(hidden, lengths), lengths)
    torch.testing.assert_close(model.encode_last(hidden, lengths), everywhere, rtol=1e-9, atol=1e-10)


@switches
def test_chunks_give_the_loss_and_gradients_of_the_padded_batch(
    sample_config: Callable[..., Any], name: str, settings: Any
):
    items, lengths = histories(LENGTHS, width=12)
    found = []
    for ratio in (float("inf"), 1.25, 1.0):
        model = build(sample_config, name, **settings).double()
        model.length_ratio = ratio
        loss = model.calculate_loss(batch(items, lengths))
        loss.backward()
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found.append((loss.detach(), gradients))
    padded_loss, padded = found[0]
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, padded_loss, rtol=1e-10, atol=0)
        assert gradients.keys() == padded.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, padded[key], rtol=1e-7, atol=1e-12, msg=lambda text, k=key: f"{k}: {text}"
            )


@pytest.mark.parametrize("name", OURS)
def test_a_batch_too_large_to_keep_gives_the_same_loss_and_gradients(
    sample_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
):
    """Chunks are cut to a number of positions and encoded again in the backward pass, dropout included."""
    found, calls = [], []
    for limit, twice in ((10**6, sequence._twice), (14, sequence._once), (14, sequence._twice)):
        monkeypatch.setattr(sequence, "TOKENS_TOGETHER", limit)
        monkeypatch.setattr(sequence, "_twice", lambda encode, kept=twice: calls.append(encode) or kept(encode))
        model = build(sample_config, name, dropout_prob=0.0 if limit > 14 else 0.2).double().train(limit <= 14)
        torch.manual_seed(3)
        loss = model.calculate_loss(batch(*histories(LENGTHS, width=12)))
        loss.backward()
        found.append({"loss": loss.detach(), **{key: each.grad for key, each in model.named_parameters()}})
    assert len(calls) == 2 * 7  # both times with little room, 7 chunks; never with much
    for key, value in found[2].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-10, atol=1e-14)
    monkeypatch.setattr(sequence, "TOKENS_TOGETHER", 14)
    model = build(sample_config, name).double()
    loss = model.calculate_loss(batch(*histories(LENGTHS, width=12)))
    torch.testing.assert_close(loss.detach(), found[0]["loss"], rtol=1e-10, atol=0)


@switches
def test_every_switch_trains(sample_config: Callable[..., Any], name: str, settings: Any):
    model = build(sample_config, name, **settings).train()
    items, lengths = histories(LENGTHS, width=12)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.calculate_loss(batch(items, lengths))
        loss.backward()
        for key, value in model.named_parameters():
            assert value.grad is not None and torch.isfinite(value.grad).all(), key
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


CHANGES = [
    ({"form": "paper"}, {}),
    ({"flip": "padded"}, {}),
    ({"r": 2}, {}),
    ({"partial_flip": False}, {}),
    ({"share_mamba": False}, {}),
    ({"ds_gate": False}, {}),
    ({"fe_gru": False}, {}),
    ({"fe_conv": "conv"}, {"fe_conv": "none"}),
    ({"fe_conv": "residual"}, {"fe_conv": "conv"}),
    ({"ssm_init": "published"}, {"ssm_init": "mamba"}),
    ({"num_layers": 2}, {}),
]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"d_state": 0}, "d_state must be at least 1, got 0"),
        ({"r": -1}, "r must be at least 0, got -1"),
        ({"form": "peper"}, "form must be one of paper, released, got 'peper'"),
        ({"fe_conv": True}, "fe_conv must be text, got true"),
        ({"gate_dropout": 1}, "gate_dropout must be at least 0 and less than 1, got 1"),
    ],
)
def test_a_switch_that_cannot_be_is_refused(sample_config: Callable[..., Any], settings: Any, line: str):
    with pytest.raises(UserError) as caught:
        sample_config("SIGMA", **settings)
    assert str(caught.value) == line


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize(("changed", "base"), CHANGES, ids=str)
def test_every_switch_changes_the_output(sample_config: Callable[..., Any], form: str, changed: Any, base: Any):
    items, lengths = histories(LENGTHS, width=12)
    settings = {"form": form, **base}
    if changed == {"form": "paper"}:
        settings["form"] = "released"
    usual = build(sample_config, "SIGMA", **settings)(items, lengths)
    other = build(sample_config, "SIGMA", **{**settings, **changed})(items, lengths)
    assert (usual - other).abs().max() > 1e-6


@pytest.mark.parametrize("name", OURS)
def test_a_saved_model_gives_the_same_scores(sample_config: Callable[..., Any], name: str, tmp_path: Any):
    model, other = (build(sample_config, name, seed=seed) for seed in (0, 1))
    items, lengths = histories(LENGTHS, width=12)
    scores = model.full_sort_predict(batch(items, lengths))
    assert not torch.equal(other.full_sort_predict(batch(items, lengths)), scores)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.full_sort_predict(batch(items, lengths)), scores)


@pytest.mark.parametrize("name", OURS)
def test_predict_is_the_score_of_one_item_among_all(sample_config: Callable[..., Any], name: str):
    model = build(sample_config, name)
    rows = batch(*histories(LENGTHS, width=12))
    everything = model.full_sort_predict(rows)
    assert everything.shape == (len(LENGTHS), N_ITEMS)
    own = everything.gather(1, rows["item_id"][:, None])[:, 0]
    torch.testing.assert_close(model.predict(rows), own)


def test_bpr_loss_is_minus_log_sigmoid_of_the_difference(sample_config: Callable[..., Any]):
    model = build(sample_config, "Mamba4Rec", loss_type="BPR").double()
    rows = batch(*histories(LENGTHS, width=12))
    scores = model.full_sort_predict(rows)
    difference = scores.gather(1, rows["item_id"][:, None]) - scores.gather(1, rows["neg_item_id"][:, None])
    expected = -torch.log(torch.sigmoid(difference)).mean()
    torch.testing.assert_close(model.calculate_loss(rows), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OURS)
def test_bce_loss_tells_the_positive_item_from_the_negative(sample_config: Callable[..., Any], name: str):
    model = build(sample_config, name, loss_type="BCE").double()
    rows = batch(*histories(LENGTHS, width=12))
    scores = model.full_sort_predict(rows)
    positive, negative = (torch.sigmoid(scores.gather(1, rows[f][:, None])) for f in ("item_id", "neg_item_id"))
    expected = -torch.log(positive).mean() - torch.log(1 - negative).mean()
    torch.testing.assert_close(model.calculate_loss(rows), expected, rtol=1e-10, atol=0)


def test_chunks_hold_every_row_once_and_similar_lengths_only():
    lengths = torch.tensor([1, 1, 2, 3, 4, 5, 5, 6, 10, 12, 13, 50])
    chunks = length_chunks(lengths, 1.25)
    assert [lengths[rows].tolist() for rows in chunks] == [
        [1, 1], [2], [3], [4, 5, 5], [6], [10, 12], [13], [50],
    ]  # fmt: skip
    assert length_chunks(lengths, float("inf")) == [slice(0, 12)]
