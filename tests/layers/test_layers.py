"""Layers against the papers' equations, written out slowly in tests/helpers/slow.py, in float64."""

import itertools
import math
from collections.abc import Callable
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
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.echo import ECHOLayer
from recbole_sigma.model.emarec import EMARecLayer
from recbole_sigma.model.linrec import LinRecLayer
from recbole_sigma.model.mamba4rec import Mamba4RecLayer
from recbole_sigma.model.sigma import SIGMALayer
from tests.helpers.models import build, histories
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


def slow_sigma(layer: SIGMALayer, x: np.ndarray) -> np.ndarray:
    """Equations (1) to (12) for one row without padding, (L, D) -> (L, D)."""
    split = max(len(x) - layer.flip.r, 0)
    flipped = np.concatenate([x[:split][::-1], x[split:]])
    state, flipped_state = slow_mamba(layer.mamba, x), slow_mamba(layer.flipped_mamba or layer.mamba, flipped)
    features = x if layer.fe_gru.conv is None else slow_conv(layer.fe_gru.conv, x)
    short_term = slow_gru(layer.fe_gru.gru, features + x if layer.fe_gru.residual else features)
    weights = layer.mixing.shares.tolist()
    if layer.released:
        gate, flipped_gate = released_factors(layer, x, flipped)
        mixed = weights[0] * gate * state + weights[1] * flipped_gate * flipped_state + weights[2] * short_term
    else:
        both = paper_gate(layer, x) * state + paper_gate(layer, flipped) * flipped_state
        mixed = weights[0] * both + weights[1] * short_term
    out = each_row(layer.projection, mixed) + (x if layer.stacked else 0)
    out = slow_norm(out) if layer.released else out
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_mamba4rec(layer: Mamba4RecLayer, x: np.ndarray) -> np.ndarray:
    out = slow_norm(slow_mamba(layer.mamba, x) + (x if layer.residual else 0))
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_emarec(layer: EMARecLayer, x: np.ndarray) -> np.ndarray:
    averages, own = layer.averages, x
    decay, mix = sigmoid(averages.decay.detach().numpy()), averages.mix.detach().numpy()
    state, outputs = np.zeros_like(decay), []
    for value in each_row(averages.value, x):
        state = decay * state + (1 - decay) * value[:, None]
        outputs.append(linear(averages.out, (mix * state).sum(1)))
    out = slow_norm(np.array(outputs) + own)
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_echo(layer: ECHOLayer, x: np.ndarray) -> np.ndarray:
    x = slow_filter(layer.filter, x)
    forward = slow_norm(slow_mamba(layer.mamba.forward_mamba, x) + x)
    backward = slow_norm(slow_mamba(layer.mamba.backward_mamba, x[::-1])[::-1] + x)
    x = forward + backward
    unit = layer.gated_unit
    return slow_norm(each_row(unit.outer, each_row(unit.value, x) * sigmoid(each_row(unit.gate, x))) + x)


def slow_linrec(layer: LinRecLayer, x: np.ndarray) -> np.ndarray:
    out = slow_norm(slow_linear_attention(layer.attention, x) + x)
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


@pytest.mark.parametrize(
    ("name", "slow", "settings"),
    [
        ("SIGMA", slow_sigma, {"form": "paper", "fe_conv": "conv"}),
        ("SIGMA", slow_sigma, {"form": "paper", "fe_conv": "residual", "share_mamba": False, "num_layers": 2}),
        ("SIGMA", slow_sigma, {"form": "released", "fe_conv": "conv"}),
        ("SIGMA", slow_sigma, {"form": "released", "fe_conv": "none", "num_layers": 2}),
        ("SIGMA", slow_sigma, {"form": "released", "fe_conv": "residual"}),
        ("SIGMA", slow_sigma, {"form": "paper", "fe_conv": "none"}),
        ("Mamba4Rec", slow_mamba4rec, {}),
        ("Mamba4Rec", slow_mamba4rec, {"num_layers": 2}),
        ("ECHO", slow_echo, {}),
        ("ECHO", slow_echo, {"MAX_ITEM_LIST_LENGTH": 13}),
        ("LinRec", slow_linrec, {}),
        ("LinRec", slow_linrec, {"n_heads": 4}),
        ("RecMamba", slow_mamba, {}),
        ("EMARec", slow_emarec, {}),
    ],
)
def test_a_layer_is_its_papers_equations(
    sample_config: Any, name: str, slow: Callable[..., Any], settings: dict[str, Any]
):
    model = build(sample_config, name, **({"r": 2} if name == "SIGMA" else {}), **settings).double()
    with torch.no_grad():  # larger than at initialisation, so that every branch counts
        for key, parameter in model.layers[0].named_parameters():
            if "norm" not in key:
                parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(len(LENGTHS), max(LENGTHS), 16, dtype=torch.float64)
    output = model.layers[0](x, Rows(torch.tensor(LENGTHS))).detach().numpy()
    for row, length in enumerate(LENGTHS):
        expected = slow(model.layers[0], x[row, :length].numpy())
        np.testing.assert_allclose(output[row, :length], expected, rtol=1e-7, atol=1e-9)
        assert name != "RecMamba" or not output[row, length:].any()  # a Mamba block alone


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("RecMamba", lambda items, positions: items * math.sqrt(16) + positions),
        ("LinRec", lambda items, positions: np.array([slow_norm(each) for each in items + positions])),
    ],
)
def test_positions_are_counted_from_the_oldest_item(sample_config: Any, name: str, slow: Callable[..., Any]):
    model = build(sample_config, name).double()
    items, _ = histories([9], width=9)
    table, positions = (each.weight.detach().numpy() for each in (model.item_embedding, model.position_embedding))
    expected = slow(table[items[0].numpy()], positions[:9])
    np.testing.assert_allclose(model.embed(items)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", MIXINGS)
@pytest.mark.parametrize("n_branches", [1, 2, 3])
def test_mixing_is_a_sum_of_the_branches_with_weights_of_its_kind(kind: str, n_branches: int):
    torch.manual_seed(0)
    width = 5
    layer = make_mixing(kind, [0.8, 0.1, 0.1][:n_branches], width).double()
    branches = [torch.randn(4, 3, width, dtype=torch.float64) for _ in range(n_branches)]
    mixed = layer(branches)
    for row, position in itertools.product(range(4), range(3)):
        own = [branch[row, position] for branch in branches]
        if kind == "weighted":
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
