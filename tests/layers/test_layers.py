"""Each equation against a slow version written here, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.fe_gru import FeatureExtractGRU
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.flip import PartialFlip
from recbole_sigma.layers.gate import DenseSelectiveGate, ReleasedGates
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.ops.softmax import _recomputed_loss, softmax_loss
from tests.helpers.slow import linear, sigmoid, silu, slow_conv, slow_feed_forward, slow_gru, slow_mamba

LENGTHS = torch.tensor([7, 1, 4, 2])
WIDTH, D = 7, 6


@pytest.fixture(autouse=True)
def doubles():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows() -> Tensor:
    return torch.randn(len(LENGTHS), WIDTH, D)


def assert_rows_equal(found: Tensor, slow) -> None:
    """`slow(row, number)` gives (length, D) for one row without its padding."""
    for number, length in enumerate(LENGTHS.tolist()):
        np.testing.assert_allclose(found[number, :length].detach().numpy(), slow(number, length), rtol=1e-9, atol=1e-11)


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


def test_sequence_conv_is_conv1d_over_real_items_between_zeros():
    layer, x = SequenceConv(D, 3), rows()
    assert_rows_equal(layer(x, LENGTHS), lambda row, length: slow_conv(layer, x[row, :length].numpy()))


def test_dense_selective_gate_is_equations_3_to_5():
    layer, x = DenseSelectiveGate(D, 3), rows()

    def slow(row: int, length: int) -> np.ndarray:
        inner = np.array([linear(layer.inner, each) for each in x[row, :length].numpy()])
        d = np.array([linear(layer.outer, each) for each in slow_conv(layer.conv, inner)])
        return silu(d) + sigmoid(d)

    (found,) = layer(x, None, LENGTHS)
    assert_rows_equal(found, slow)


def test_released_gates_pass_the_forward_gate_into_the_flipped_one():
    layer, x, flipped = ReleasedGates(D, 0.2).eval(), rows(), rows()

    def slow_gate(row: int, length: int) -> np.ndarray:
        inner = [each + linear(layer.forward_inner, each) for each in x[row, :length].numpy()]
        return np.array([linear(layer.silu_outer, silu(d)) + linear(layer.sigmoid_outer, sigmoid(d)) for d in inner])

    def slow_flipped(row: int, length: int) -> np.ndarray:
        inner = [each + linear(layer.flipped_inner, each) for each in flipped[row, :length].numpy()]
        gates = slow_gate(row, length)
        pairs = zip(inner, gates, strict=True)
        return np.array([linear(layer.silu_outer, silu(d)) + linear(layer.sigmoid_outer, sigmoid(g)) for d, g in pairs])

    forward_gate, flipped_gate = layer(x, flipped, LENGTHS)
    assert_rows_equal(forward_gate, lambda row, length: 1 + slow_gate(row, length))
    assert_rows_equal(flipped_gate, lambda row, length: 1 + slow_flipped(row, length))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("conv", ["conv", "residual", "none"])
def test_fe_gru_is_a_gru_of_the_convolution(conv: str, bias: bool):
    layer, x = FeatureExtractGRU(D, 3, conv, bias), rows()

    def slow(row: int, length: int) -> np.ndarray:
        own = x[row, :length].numpy()
        features = own if conv == "none" else slow_conv(layer.conv, own) + (own if conv == "residual" else 0)
        return slow_gru(layer.gru, features)

    assert_rows_equal(layer(x, LENGTHS), slow)


def test_feed_forward_is_gelu_between_two_products_with_residual_and_norm():
    layer, x = FeedForward(D, 0.2).eval(), torch.randn(D)
    expected = slow_feed_forward(layer, x.numpy())
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9)


def test_mamba_block_is_the_recurrence_one_item_after_the_other():
    block, x = Mamba(D, d_state=5, d_conv=3, expand=2), rows()
    found = block(x, LENGTHS)
    assert_rows_equal(found, lambda row, length: slow_mamba(block, x[row, :length].numpy()))
    for row, length in enumerate(LENGTHS.tolist()):
        assert not found[row, length:].any()


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
    step = nn.functional.softplus(block.dt_proj.bias)
    assert step.min() >= 1e-3 * 0.999 and step.max() <= 1e-1 * 1.001
    assert step.log().std() > 0.8  # spread over the whole range: a uniform's deviation is ln(100) / sqrt(12) = 1.33
    torch.testing.assert_close(-torch.exp(block.A_log)[0], -torch.arange(1.0, 17.0))
    block.init_published()
    assert not block.dt_proj.bias.any()
    assert 0.015 < block.in_proj.weight.std() < 0.025


@pytest.mark.parametrize("n_rows", [1, 5, 300])
def test_softmax_loss_is_cross_entropy_over_all_items(n_rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recbole_sigma.ops.softmax.BLOCK_SCORES", 1000)
    hidden, weight = (torch.randn(n_rows, D) * 3).requires_grad_(), torch.randn(50, D).requires_grad_()
    target = torch.randint(0, 50, (n_rows,))
    expected = nn.functional.cross_entropy(hidden @ weight.T, target)
    found = softmax_loss(hidden, weight, target)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(2 * found, (hidden, weight)),
        torch.autograd.grad(2 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(softmax_loss(hidden, weight, target), expected)
    large = softmax_loss(hidden * 1e4, weight, target)
    torch.testing.assert_close(large, nn.functional.cross_entropy(hidden * 1e4 @ weight.T, target))


@pytest.mark.parametrize("n_rows", [3, 60])
def test_recomputed_softmax_loss_is_the_same(n_rows: int, monkeypatch: pytest.MonkeyPatch):
    """What runs on CUDA and under autocast, here on the CPU: whole, and in blocks of rows."""
    monkeypatch.setattr("recbole_sigma.ops.softmax.KEPT_SCORES", 500)
    hidden, weight = torch.randn(n_rows, D).requires_grad_(), torch.randn(50, D).requires_grad_()
    target = torch.randint(0, 50, (n_rows,))
    losses = nn.functional.cross_entropy(hidden @ weight.T, target), _recomputed_loss(hidden, weight, target)
    gradients = [torch.autograd.grad(loss, (hidden, weight)) for loss in losses]
    torch.testing.assert_close([losses[0], *gradients[0]], [losses[1], *gradients[1]])
