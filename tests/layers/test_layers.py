"""Layers against the papers' equations, written out slowly in tests/helpers/slow.py, in float64."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus

from recbole_sigma.layers.flip import PartialFlip
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.mixing import MIXINGS, make_mixing
from recbole_sigma.model.echo import ECHOLayer
from recbole_sigma.model.emarec import EMARecLayer
from recbole_sigma.model.linrec import LinRecLayer
from recbole_sigma.model.mamba4rec import Mamba4RecLayer
from recbole_sigma.model.sigma import SIGMALayer
from tests.helpers.models import batch, build, histories, refused
from tests.helpers.slow import (
    linear,
    sigmoid,
    silu,
    slow_conv,
    slow_feed_forward,
    slow_filter,
    slow_gru,
    slow_linear_attention,
    slow_mamba,
    slow_norm,
)

LENGTHS = [9, 1, 4, 6]


def each_row(layer: Any, x: np.ndarray) -> np.ndarray:
    return np.array([linear(layer, row) for row in x])


def paper_gate(layer: SIGMALayer, x: np.ndarray) -> np.ndarray:
    d = each_row(layer.gate.outer, slow_conv(layer.gate.conv, each_row(layer.gate.inner, x)))
    return silu(d) + sigmoid(d)


def released_factors(layer: SIGMALayer, x: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gate = layer.gate
    d, d_flipped = x + each_row(gate.forward_inner, x), flipped + each_row(gate.flipped_inner, flipped)
    forward = each_row(gate.silu_outer, silu(d)) + each_row(gate.sigmoid_outer, sigmoid(d))
    return 1 + forward, 1 + each_row(gate.silu_outer, silu(d_flipped)) + each_row(gate.sigmoid_outer, sigmoid(forward))


def slow_sigma(layer: SIGMALayer, x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """Equations (4) to (10), or the released code, for one row without padding, (L, D) -> (L, D)."""
    released, residual = given.get("form") == "released", given.get("residual", "stacked")
    branches, weights = [], layer.mixing.shares.tolist()
    if given.get("mamba", True):
        state, flipped_states = slow_mamba(layer.mamba, x), []
        for r in given.get("flip_ranges") or [given["r"]]:
            split = max(len(x) - r, 0)
            flipped = np.concatenate([x[:split][::-1], x[split:]])
            flipped_state = slow_mamba(layer.flipped_mamba or layer.mamba, flipped)
            gate, flipped_gate = (
                released_factors(layer, x, flipped) if released else (paper_gate(layer, x), paper_gate(layer, flipped))
            )
            flipped_states.append(flipped_gate * flipped_state)
        shares = np.ones((len(x), 1))
        if layer.flip_weights is not None:
            shares = np.exp(each_row(layer.flip_weights, x))
            shares /= shares.sum(1, keepdims=True)
        average = sum(share[:, None] * each for share, each in zip(shares.T, flipped_states, strict=True))
        branches = [gate * state, average] if released else [gate * state + average]
        branches[0] = branches[0] + (x if residual == "mamba" else 0)
    convolved = x if layer.fe_gru.conv is None else slow_conv(layer.fe_gru.conv, x)
    read = convolved + x if given.get("fe_conv") == "residual" else convolved
    short_term = slow_gru(layer.fe_gru.gru, read, reset_before=given.get("gru_reset") == "before")
    branches.append(short_term + (x if residual == "gru" else 0))
    mixed = sum(weight * branch for weight, branch in zip(weights, branches, strict=True))
    around = residual == "layer" or (residual == "stacked" and given.get("num_layers", 1) > 1)
    out = slow_norm(layer.norm, each_row(layer.projection, mixed) + (x if around else 0))
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_mamba4rec(layer: Mamba4RecLayer, x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    out = slow_norm(layer.norm, slow_mamba(layer.mamba, x) + (x if given.get("num_layers", 1) > 1 else 0))
    if not given.get("feed_forward", True):
        return out
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_emarec(layer: EMARecLayer, x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    averages = layer.averages
    decay, mix = sigmoid(averages.decay.detach().numpy()), averages.mix.detach().numpy()
    state, outputs = np.zeros_like(decay), []
    for value in each_row(averages.value, x):
        state = decay * state + (1 - decay) * value[:, None]
        outputs.append(linear(averages.out, (mix * state).sum(1)))
    out = slow_norm(layer.norm, np.array(outputs) + x)
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_echo(layer: ECHOLayer, x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    x, both = slow_filter(layer.filter, x), layer.mamba
    forward = slow_norm(both.forward_norm, slow_mamba(both.forward_mamba, x) + x)
    backward = slow_norm(both.backward_norm, slow_mamba(both.backward_mamba, x[::-1])[::-1] + x)
    x, unit = forward + backward, layer.gated_unit
    gated = each_row(unit.outer, each_row(unit.value, x) * sigmoid(each_row(unit.gate, x)))
    return slow_norm(unit.norm, gated + x)


def slow_linrec(layer: LinRecLayer, x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    out = slow_norm(layer.norm, slow_linear_attention(layer.attention, x) + x)
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_recmamba(layer: Mamba, x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    return slow_mamba(layer, x)


SLOW = {
    "SIGMA": slow_sigma, "Mamba4Rec": slow_mamba4rec, "ECHO": slow_echo, "LinRec": slow_linrec,
    "RecMamba": slow_recmamba, "EMARec": slow_emarec,
}  # fmt: skip
PAPER, RELEASED = {"form": "paper", "fe_conv": "conv"}, {"form": "released", "fe_conv": "conv"}
CASES = [
    ("SIGMA", PAPER), ("SIGMA", {**PAPER, "fe_conv": "residual", "share_mamba": False, "num_layers": 2}),
    ("SIGMA", {**PAPER, "gru_reset": "before"}), ("SIGMA", {**PAPER, "fe_conv": "none"}), ("SIGMA", RELEASED),
    ("SIGMA", {**RELEASED, "fe_conv": "none", "num_layers": 2}), ("SIGMA", {**RELEASED, "fe_conv": "residual"}),
    ("SIGMA", {**RELEASED, "fe_conv_width": 5, "gru_reset": "before"}), ("SIGMA", {**RELEASED, "mamba": False}),
    *(("SIGMA", {**PAPER, "residual": each}) for each in ("layer", "mamba", "gru")),
    *(("SIGMA", {**RELEASED, "residual": each}) for each in ("layer", "mamba", "gru")),
    ("SIGMA", {**PAPER, "fe_conv_width": 1}), ("SIGMA", {**PAPER, "residual": "none", "num_layers": 2}),
    ("SIGMA", {**PAPER, "mamba": False}), ("SIGMA", {**PAPER, "flip_ranges": [0, 2, 5]}),
    ("SIGMA", {**RELEASED, "flip_ranges": [4, 1], "share_mamba": False}),
    ("SIGMA", {**RELEASED, "flip_ranges": [0, 3]}),
    ("SIGMA", {**RELEASED, "mixing": "fixed", "mixing_weights": [0.2, 0.3, 0.5]}), ("SIGMA", {**PAPER, "r": 12}),
    ("Mamba4Rec", {}), ("Mamba4Rec", {"num_layers": 2}), ("Mamba4Rec", {"selective": False}),
    ("Mamba4Rec", {"layer_norm": False}), ("Mamba4Rec", {"feed_forward": False}),
    ("Mamba4Rec", {"positions": "start"}), ("Mamba4Rec", {"positions": "end"}),
    ("ECHO", {}), ("ECHO", {"MAX_ITEM_LIST_LENGTH": 13, "num_layers": 2}), ("ECHO", {"dropout_after_residual": True}),
    ("LinRec", {}), ("LinRec", {"n_heads": 4, "inner_dropout": False}),
    ("RecMamba", {}), ("RecMamba", {"positions": "end", "num_layers": 2}), ("RecMamba", {"positions": "none"}),
    ("EMARec", {}), ("EMARec", {"num_layers": 1, "n_decays": 2}),
]  # fmt: skip


def perturbed(sample_config: Any, name: str, **settings: Any) -> Any:
    """A model in float64 of which every number differs from its initial value, so that each of them counts."""
    model = build(sample_config, name, **settings).double()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.3 * torch.randn_like(tensor)
    return model


def slow_states(model: Any, items: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """All positions of a history after all layers: (L,) -> (L, D)"""
    name = type(model).__name__
    x = model.item_embedding.weight.detach().numpy()[items] * (4.0 if name == "RecMamba" else 1.0)  # sqrt(16)
    start = {"Mamba4Rec": "none", "RecMamba": "start", "LinRec": "start"}.get(name, "none")
    if (positions := settings.get("positions", start)) != "none":
        first = settings.get("MAX_ITEM_LIST_LENGTH", 12) - len(items) if positions == "end" else 0
        x = x + model.position_embedding.weight.detach().numpy()[first : first + len(items)]
    x = slow_norm(model.embedding_norm, x)
    for layer in model.layers:
        x = SLOW[name](layer, x, settings)
    return x


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_scores_are_those_of_the_papers_equations(sample_config: Any, name: str, settings: dict[str, Any]):
    """From item ids to scores, with all parameters perturbed."""
    settings = {"r": 2, **settings} if name == "SIGMA" else settings
    model = perturbed(sample_config, name, **settings)
    items, lengths = histories(LENGTHS, width=max(LENGTHS))
    scores = model.full_sort_predict(batch(items, lengths)).detach().numpy()
    table = model.item_embedding.weight.detach().numpy()
    for row, length in enumerate(LENGTHS):
        expected = table @ slow_states(model, items[row, :length].numpy(), settings)[-1]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_released_code_reads_padding_as_it_reads_items(sample_config: Any, num_layers: int):
    """On lengths 1 to 50: of 50 slots the first 45 are reversed, with padding embeddings among them."""
    settings = {**RELEASED, "r": 5, "MAX_ITEM_LIST_LENGTH": 50, "num_layers": num_layers}
    model = perturbed(sample_config, "SIGMA", **settings, flip="padded", padding="embedding")
    items, lengths = histories(list(range(1, 51)), width=50)
    scores = model.full_sort_predict(batch(items, lengths)).detach().numpy()
    table = model.item_embedding.weight.detach().numpy()
    assert table[0].any()
    for row in range(50):
        expected = table @ slow_states(model, items[row].numpy(), settings)[row]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-8, atol=1e-8)
    short = model.full_sort_predict(batch(items[:9, :9], lengths[:9])).detach().numpy()
    np.testing.assert_allclose(short, scores[:9], rtol=1e-9, atol=1e-10)


def test_dropout_of_echos_unit_and_of_linrecs_feed_forward_is_where_the_setting_says(sample_config: Any):
    def dropped(model: str, **settings: Any) -> list[torch.Tensor]:
        unit = build(sample_config, model, dropout_prob=0.9, **settings).layers[0].train()
        unit = unit.gated_unit if model == "ECHO" else unit.feed_forward
        seen: list[torch.Tensor] = []
        unit.dropout.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        unit(torch.ones(1, 16))
        return seen

    (last,), (first,) = (dropped("ECHO", dropout_after_residual=each) for each in (True, False))
    torch.testing.assert_close(last, first + 1)
    assert [len(dropped("LinRec", inner_dropout=each)) for each in (True, False)] == [2, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mamba": False, "fe_gru": False}, ["mamba", "fe_gru"]),
        ({"residual": "gru", "fe_gru": False}, ["residual", "gru"]),
        ({"residual": "mamba", "mamba": False}, ["residual", "mamba"]),
        ({"padding": "embedding"}, ["padding", "flip: padded"]),
        ({"mixing_weights": [0.5, 0.5]}, ["mixing_weights", "mamba, flipped, gru", "[0.5, 0.5]"]),
        ({"mixing_weights": [1, 0, 0], "mixing": "gated"}, ["mixing_weights", "weighted or fixed", "gated"]),
        ({"fe_conv_width": 4}, ["fe_conv_width", "odd", "4"]),
        ({"mixing_weights": []}, ["mixing_weights", "[0.8, 0.1, 0.1]"]),
        ({"flip_ranges": [0, 2], "partial_flip": False}, ["flip_ranges", "null", "partial_flip"]),
    ],
    ids=str,
)
def test_switches_that_do_not_agree_are_refused(sample_config: Any, settings: dict[str, Any], words: list[str]):
    with refused(*words):
        build(sample_config, "SIGMA", **settings)


@pytest.mark.parametrize("kind", MIXINGS)
@pytest.mark.parametrize("n_branches", [1, 2, 3])
def test_mixing_is_a_sum_of_the_branches_with_weights_of_its_kind(kind: str, n_branches: int):
    torch.manual_seed(0)
    width = 5
    layer = make_mixing(kind, dict(zip("abc"[:n_branches], [0.8, 0.1, 0.1], strict=False)), width).double()
    branches = [torch.randn(4, 3, width, dtype=torch.float64) for _ in range(n_branches)]
    mixed = layer(branches)
    for row, position in itertools.product(range(4), range(3)):
        own = [branch[row, position] for branch in branches]
        if kind in ("weighted", "fixed"):
            assert ("shares" in dict(layer.named_parameters())) == (kind == "weighted")
            weights = [torch.full((width,), weight) for weight in layer.shares.tolist()]
        elif kind == "gated":
            logits = (layer.gate.weight @ torch.cat(own) + layer.gate.bias).split(width)
            weights = [logit.exp() / sum(other.exp() for other in logits) for logit in logits]
        else:
            scores = [(layer.query.weight @ torch.tanh(layer.key.weight @ one + layer.key.bias)).exp() for one in own]
            weights = [score / sum(scores) for score in scores]
        expected = sum(weight * one for weight, one in zip(weights, own, strict=True))
        torch.testing.assert_close(mixed[row, position], expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_partial_flip_reverses_all_real_items_but_the_last_r(lengths: list[int], r: int):
    width = 9
    items = torch.arange(1.0, 1 + len(lengths) * width).view(len(lengths), width, 1)
    flipped = PartialFlip(r)(items, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        own = items[row, :length, 0].tolist()
        kept = min(r, length)
        assert flipped[row, :length, 0].tolist() == own[: length - kept][::-1] + own[length - kept :]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_padded_flip_reverses_slots_as_in_a_row_padded_with_zeros(lengths: list[int], r: int):
    slots = 9
    own = torch.tensor(lengths)
    items = torch.arange(1.0, 1 + len(lengths) * slots).view(len(lengths), slots, 1)
    full = items.masked_fill((torch.arange(slots) >= own[:, None])[..., None], 0)
    expected = torch.cat([full[:, : max(slots - r, 0)].flip(1), full[:, max(slots - r, 0) :]], dim=1)
    width = max(lengths)
    flipped = PartialFlip(r, slots)(items[:, :width], own)
    for row, length in enumerate(lengths):
        assert torch.equal(flipped[row, :length], expected[row, :length])
        assert not flipped[row, length:].any()


def test_mamba_state_dict_has_the_names_and_shapes_of_mamba_ssm():
    shapes = {
        name: tuple(value.shape) for name, value in Mamba(64, d_state=32, d_conv=4, expand=2).state_dict().items()
    }
    assert shapes == {  # mamba_ssm.Mamba(64, d_state=32, d_conv=4, expand=2).state_dict()
        "A_log": (128, 32),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (68, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_mamba_starts_with_steps_between_a_thousandth_and_a_tenth():
    block = Mamba(64)
    step = softplus(block.dt_proj.bias)
    assert step.min() >= 1e-3 * 0.999 and step.max() <= 1e-1 * 1.001
    assert step.log().std() > 0.8  # spread over the whole range: a uniform's deviation is ln(100) / sqrt(12) = 1.33
    torch.testing.assert_close(-torch.exp(block.A_log)[0], -torch.arange(1.0, 17.0))
    block.init_published()
    assert not block.dt_proj.bias.any()
    assert 0.015 < block.in_proj.weight.std() < 0.025
