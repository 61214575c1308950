"""What all our models have in common, and a model of the user's own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model import chunks
from recbole_sigma.model.sequence import SequenceModel
from tests.helpers.models import N_ITEMS, OURS, SMALL, SWITCHES, Items, batch, build, histories, loss_and_gradients

LENGTHS = [1, 12, 3, 7, 7, 2, 9, 5]
ITEMS, OWN = histories(LENGTHS, width=12)
switches = pytest.mark.parametrize(("name", "settings"), SWITCHES, ids=lambda each: str(each))


@switches
def test_scores_depend_neither_on_padding_and_its_embedding_nor_on_the_batch(
    sample_config: Any, name: str, settings: Any
):
    model = build(sample_config, name, **settings).double()
    together = model(ITEMS, OWN)
    for row, length in enumerate(LENGTHS):
        alone = model(ITEMS[row : row + 1, :length], OWN[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model(F.pad(ITEMS, (0, 5)), OWN), together, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        model.item_embedding.weight[0] = 7.0
    assert torch.equal(model(ITEMS, OWN), together)


@switches
def test_the_last_item_alone_gives_what_all_positions_give_there(sample_config: Any, name: str, settings: Any):
    model = build(sample_config, name, **settings).double()
    hidden = model.embed(ITEMS)
    everywhere = Rows(OWN).last(model.encode(hidden, OWN))
    torch.testing.assert_close(model.encode_last(hidden, OWN), everywhere, rtol=1e-9, atol=1e-10)


@switches
def test_chunks_give_the_loss_and_gradients_of_the_padded_batch(sample_config: Any, name: str, settings: Any):
    results = []
    for ratio in (float("inf"), 1.25, 1.0):
        model = build(sample_config, name, **settings).double()
        model.length_ratio = ratio
        results.append(loss_and_gradients(model, batch(ITEMS, OWN)))
    padded, *chunked = results
    for result in chunked:
        torch.testing.assert_close(result["loss"], padded["loss"], rtol=1e-10, atol=0)
        torch.testing.assert_close(result, padded, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_a_batch_too_large_to_keep_gives_the_same_loss_and_gradients(sample_config: Any, monkeypatch: Any, name: str):
    """Chunks are cut to a number of positions and encoded again in the backward pass, dropout included."""
    calls, checkpoint = [], chunks.checkpoint

    def results(limit: int, dropout: float, recompute: bool = True) -> dict[str, Tensor]:
        def encoded(encode: Any, *inputs: Any, use_reentrant: bool) -> Tensor:
            calls.append(encode)
            return checkpoint(encode, *inputs, use_reentrant=use_reentrant) if recompute else encode(*inputs)

        monkeypatch.setattr(chunks, "TOKENS_TOGETHER", limit)
        monkeypatch.setattr(chunks, "checkpoint", encoded)
        model = build(sample_config, name, dropout_prob=dropout).double().train(dropout > 0)
        torch.manual_seed(3)
        return loss_and_gradients(model, batch(ITEMS, OWN))

    close = {"rtol": 1e-10, "atol": 1e-14}
    kept, recomputed = (results(14, 0.2, recompute) for recompute in (False, True))
    torch.testing.assert_close(recomputed, kept, **close)
    assert len(calls) == 2 * 7  # chunks
    large, small = results(10**6, 0.0), results(14, 0.0)
    torch.testing.assert_close(small["loss"], large["loss"], **close)
    assert len(calls) == 3 * 7  # none of the large limit


@switches
def test_every_switch_trains(sample_config: Any, name: str, settings: Any):
    model = build(sample_config, name, **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        results = loss_and_gradients(model, batch(ITEMS, OWN))
        assert results.keys() == {"loss", *dict(model.named_parameters())}
        assert all(each.isfinite().all() for each in results.values())
        optimizer.step()
        losses.append(results["loss"].item())
    assert losses[-1] < 0.7 * losses[0]


CHANGES = [
    ({"form": "paper"}, {}), ({"flip": "padded"}, {}), ({"r": 2}, {}), ({"partial_flip": False}, {}),
    ({"share_mamba": False}, {}), ({"ds_gate": False}, {}), ({"fe_gru": False}, {}), ({"num_layers": 2}, {}),
    ({"fe_conv": "conv"}, {"fe_conv": "none"}), ({"fe_conv": "residual"}, {"fe_conv": "conv"}),
    ({"ssm_init": "published"}, {"ssm_init": "mamba"}),
]  # fmt: skip


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize(("changed", "base"), CHANGES, ids=str)
def test_every_switch_changes_the_output(sample_config: Any, form: str, changed: Any, base: Any):
    settings = {"form": "released" if "form" in changed else form, **base}
    usual = build(sample_config, "SIGMA", **settings)(ITEMS, OWN)
    other = build(sample_config, "SIGMA", **{**settings, **changed})(ITEMS, OWN)
    assert (usual - other).abs().max() > 1e-6


@pytest.mark.parametrize("name", OURS)
def test_a_saved_model_gives_the_same_scores(sample_config: Any, name: str, tmp_path: Any):
    model, other = (build(sample_config, name, seed=seed) for seed in (0, 1))
    rows = batch(ITEMS, OWN)
    scores = model.full_sort_predict(rows)
    assert not torch.equal(other.full_sort_predict(rows), scores)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.full_sort_predict(rows), scores)


@pytest.mark.parametrize("name", OURS)
def test_predict_is_the_score_of_one_item_among_all(sample_config: Any, name: str):
    model = build(sample_config, name)
    rows = batch(ITEMS, OWN)
    everything = model.full_sort_predict(rows)
    assert everything.shape == (len(LENGTHS), N_ITEMS)
    own = everything.gather(1, rows["item_id"][:, None])[:, 0]
    torch.testing.assert_close(model.predict(rows), own)


@pytest.mark.parametrize("loss_type", ["CE", "BPR", "BCE"])
@pytest.mark.parametrize("name", OURS)
def test_losses_are_those_of_the_scores(sample_config: Any, name: str, loss_type: str):
    model = build(sample_config, name, loss_type=loss_type).double()
    rows = batch(ITEMS, OWN)
    scores = model.full_sort_predict(rows)
    positive, negative = (scores.gather(1, rows[field][:, None]) for field in ("item_id", "neg_item_id"))
    expected = {
        "CE": (scores.exp().sum(1, keepdim=True).log() - positive).mean(),
        "BPR": -torch.log(torch.sigmoid(positive - negative)).mean(),
        "BCE": -torch.log(torch.sigmoid(positive)).mean() - torch.log(1 - torch.sigmoid(negative)).mean(),
    }[loss_type]
    torch.testing.assert_close(model.calculate_loss(rows), expected, rtol=1e-6, atol=0)


class Reading(nn.Module):
    """A layer of a user's own, around one of ours, that does not know which positions are wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.mamba = Mamba(16, d_state=4)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        return hidden + self.mamba(hidden, rows)


class OwnLayers(SequenceModel):
    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.layers = nn.ModuleList([Reading(), Reading()])
        self.initialise()


class OwnEncode(OwnLayers):
    """Ours at the end of the layers, and `encode` does more than to call them."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.layers.append(Mamba(16, d_state=4))

    def encode(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return 2 * super().encode(hidden, lengths) + 1


@pytest.mark.parametrize("kind", [OwnLayers, OwnEncode])
def test_a_model_of_ones_own_is_read_at_the_last_item(sample_config: Any, kind: type):
    model = kind(sample_config("Mamba4Rec", **SMALL), Items()).double().eval()
    items, lengths = histories(LENGTHS, width=len(LENGTHS))  # B = L: a wrong shape would broadcast
    lengths = lengths.clamp(max=len(LENGTHS))
    everywhere = model.encode(model.embed(items), lengths)
    expected = torch.stack([row[length - 1] for row, length in zip(everywhere, lengths, strict=True)])
    torch.testing.assert_close(model(items, lengths), expected)
    assert all(each.isfinite().all() for each in loss_and_gradients(model, batch(items, lengths)).values())


def test_chunks_hold_every_row_once_and_similar_lengths_only(monkeypatch: Any):
    lengths = torch.tensor([1, 1, 2, 3, 4, 5, 5, 6, 10, 12, 13, 50])
    assert [lengths[rows].tolist() for rows in chunks.length_chunks(lengths, 1.25)] == [
        [1, 1], [2], [3], [4, 5, 5], [6], [10, 12], [13], [50],
    ]  # fmt: skip
    assert chunks.length_chunks(lengths, float("inf")) == [slice(0, 12)]
    monkeypatch.setattr(chunks, "SPARE", 5)  # positions of padding that a chunk may have all the same
    assert [lengths[rows].tolist() for rows in chunks.length_chunks(lengths, 1.25)] == [
        [1, 1, 2, 3], [4, 5, 5, 6], [10, 12, 13], [50],
    ]  # fmt: skip
