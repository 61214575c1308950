"""Whole layers against the papers' equations, composed from the slow parts."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recbole_sigma.layers.mixing import MIXINGS, mixing_of
from recbole_sigma.model.echo import ECHOLayer
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


def each(layer: Any, x: np.ndarray) -> np.ndarray:
    return np.array([linear(layer, row) for row in x])


def paper_gate(layer: SIGMALayer, x: np.ndarray) -> np.ndarray:
    d = each(layer.gate.outer, slow_conv(layer.gate.conv, each(layer.gate.inner, x)))
    return silu(d) + sigmoid(d)


def released_factors(layer: SIGMALayer, x: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gate = layer.gate
    d, d_flipped = x + each(gate.forward_inner, x), flipped + each(gate.flipped_inner, flipped)
    forward = each(gate.silu_outer, silu(d)) + each(gate.sigmoid_outer, sigmoid(d))
    return 1 + forward, 1 + each(gate.silu_outer, silu(d_flipped)) + each(gate.sigmoid_outer, sigmoid(forward))


def slow_sigma(layer: SIGMALayer, x: np.ndarray) -> np.ndarray:
    """Equations (1) to (12) for one row without padding, (L, D) -> (L, D)."""
    split = max(len(x) - layer.flip.r, 0)
    flipped = np.concatenate([x[:split][::-1], x[split:]])
    state, flipped_state = slow_mamba(layer.mamba, x), slow_mamba(layer.flipped_mamba or layer.mamba, flipped)
    read = x if layer.fe_gru.conv is None else slow_conv(layer.fe_gru.conv, x)
    short_term = slow_gru(layer.fe_gru.gru, read)
    shares = layer.mixing.shares.tolist()
    if layer.released:
        gate, flipped_gate = released_factors(layer, x, flipped)
        mixed = shares[0] * gate * state + shares[1] * flipped_gate * flipped_state + shares[2] * short_term
    else:
        both = paper_gate(layer, x) * state + paper_gate(layer, flipped) * flipped_state
        mixed = shares[0] * both + shares[1] * short_term
    out = each(layer.projection, mixed) + (x if layer.stacked else 0)
    out = slow_norm(out) if layer.released else out
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_mamba4rec(layer: Mamba4RecLayer, x: np.ndarray) -> np.ndarray:
    out = slow_norm(slow_mamba(layer.mamba, x) + (x if layer.residual else 0))
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


def slow_echo(layer: ECHOLayer, x: np.ndarray) -> np.ndarray:
    x = slow_filter(layer.filter, x)
    forward = slow_norm(slow_mamba(layer.mamba.forward_mamba, x) + x)
    backward = slow_norm(slow_mamba(layer.mamba.backward_mamba, x[::-1])[::-1] + x)
    x = forward + backward
    unit = layer.gated_unit
    return slow_norm(each(unit.outer, each(unit.value, x) * sigmoid(each(unit.gate, x))) + x)


def slow_linrec(layer: LinRecLayer, x: np.ndarray) -> np.ndarray:
    out = slow_norm(slow_linear_attention(layer.attention, x) + x)
    return np.array([slow_feed_forward(layer.feed_forward, row) for row in out])


@pytest.mark.parametrize(
    ("name", "slow", "settings"),
    [
        ("SIGMA", slow_sigma, {"form": "paper", "fe_conv": "conv"}),
        ("SIGMA", slow_sigma, {"form": "paper", "share_mamba": False, "num_layers": 2}),
        ("SIGMA", slow_sigma, {"form": "released", "gate_dropout": 0.0, "fe_conv": "conv"}),
        ("SIGMA", slow_sigma, {"form": "released", "gate_dropout": 0.0, "fe_conv": "none", "num_layers": 2}),
        ("Mamba4Rec", slow_mamba4rec, {}),
        ("Mamba4Rec", slow_mamba4rec, {"num_layers": 2}),
        ("ECHO", slow_echo, {}),
        ("ECHO", slow_echo, {"MAX_ITEM_LIST_LENGTH": 13}),
        ("LinRec", slow_linrec, {}),
        ("LinRec", slow_linrec, {"n_heads": 4}),
        ("RecMamba", slow_mamba, {}),
    ],
)
def test_a_layer_is_its_papers_equations(
    sample_config: Callable[..., Any], name: str, slow: Callable[..., Any], settings: dict[str, Any]
):
    model = build(sample_config, name, **({"r": 2} if name == "SIGMA" else {}), **settings).double()
    with torch.no_grad():  # larger than at initialisation, so that every branch counts
        for parameter in model.layers[0].parameters():
            if parameter.dim() > 1:
                parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(len(LENGTHS), max(LENGTHS), 16, dtype=torch.float64)
    found = model.layers[0](x, torch.tensor(LENGTHS)).detach().numpy()
    for row, length in enumerate(LENGTHS):
        expected = slow(model.layers[0], x[row, :length].numpy())
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("RecMamba", lambda items, positions: items * math.sqrt(16) + positions),
        ("LinRec", lambda items, positions: np.array([slow_norm(each) for each in items + positions])),
    ],
)
def test_positions_are_counted_from_the_oldest_item(
    sample_config: Callable[..., Any], name: str, slow: Callable[..., Any]
):
    model = build(sample_config, name).double()
    items, _ = histories([9], width=9)
    table, positions = (each.weight.detach().numpy() for each in (model.item_embedding, model.position_embedding))
    expected = slow(table[items[0].numpy()], positions[:9])
    np.testing.assert_allclose(model.embed(items)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", MIXINGS)
@pytest.mark.parametrize("n_branches", [1, 2, 3])
def test_mixing_is_a_sum_of_the_branches_by_shares_of_its_kind(kind: str, n_branches: int):
    torch.manual_seed(0)
    width = 5
    layer = mixing_of(kind, [0.8, 0.1, 0.1][:n_branches], width).double()
    branches = [torch.randn(4, 3, width, dtype=torch.float64) for _ in range(n_branches)]
    mixed = layer(branches)
    for row, position in itertools.product(range(4), range(3)):
        own = [branch[row, position] for branch in branches]
        if kind == "weighted":
            shares = [torch.full((width,), share) for share in layer.shares.tolist()]
        elif kind == "gated":
            logits = (layer.gate.weight @ torch.cat(own) + layer.gate.bias).split(width)
            shares = [each.exp() / sum(other.exp() for other in logits) for each in logits]
        else:
            scores = [(layer.query.weight @ torch.tanh(layer.key.weight @ each + layer.key.bias)).exp() for each in own]
            shares = [each / sum(scores) for each in scores]
        expected = sum(share * each for share, each in zip(shares, own, strict=True))
        torch.testing.assert_close(mixed[row, position], expected)
