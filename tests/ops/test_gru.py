"""The gated recurrent unit: its values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops.cuda import padding
from recbole_sigma.ops.gru import gru, gru_torch
from tests.ops.operations import assert_all_close, outputs_and_gradients
from tests.ops.operations import gru_arguments as arguments

DOUBLE = torch.float64


def by_torch(x, lengths=None, **parameters):
    """torch.nn.GRU, with states of zero beyond each row's end."""
    has_bias = "bias_ih" in parameters
    module = torch.nn.GRU(x.shape[2], parameters["weight_hh"].shape[1], bias=has_bias, batch_first=True, dtype=x.dtype)
    named = {f"{name}_l0": parameter for name, parameter in parameters.items()}
    states = torch.func.functional_call(module, named, (x,))[0]
    return states if lengths is None else states.masked_fill(padding(lengths, x), 0)


@pytest.mark.parametrize("shape", [(5, 7, 3, 6), (1, 1, 1, 1), (9, 20, 64, 64), (6, 3, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_states_and_gradients_equal_those_of_torch(shape, bias):
    tensors = arguments(*shape, DOUBLE, bias=bias)
    assert_all_close(outputs_and_gradients(gru, tensors), outputs_and_gradients(by_torch, tensors), 1e-12)


@pytest.mark.parametrize("only", ["bias_ih", "bias_hh"])
def test_one_bias_alone_is_enough(only):
    tensors = arguments(3, 4, 5, 6, DOUBLE)
    alone = {name: x for name, x in tensors.items() if name == only or "bias" not in name}
    zeroed = {name: x if name in alone else torch.zeros_like(x) for name, x in tensors.items()}
    torch.testing.assert_close(gru(**alone), by_torch(**zeroed))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=11).filter(any),
    beyond=st.integers(0, 3),
    inputs=st.integers(1, 9),
    hidden=st.integers(1, 21),
    seed=st.integers(0, 99),
)
def test_states_and_gradients_equal_those_of_torch_for_any_shape_and_lengths(lengths, beyond, inputs, hidden, seed):
    tensors = arguments(len(lengths), max(lengths) + beyond, inputs, hidden, DOUBLE, seed)
    ends = torch.tensor(lengths)
    expected = outputs_and_gradients(by_torch, tensors, lengths=ends)
    assert_all_close(outputs_and_gradients(gru, tensors, lengths=ends), expected, 1e-12)


@pytest.mark.parametrize("shape", [(64, 10, 64, 64), (7, 200, 32, 48), (50, 3, 16, 33), (2, 1, 5, 3)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_float32_equals_float64(shape, scale):
    tensors = arguments(*shape)
    tensors["x"] *= scale
    if scale < 1:  # small states: what is small must be accurate relative to its own size
        tensors |= {name: tensors[name] * scale for name in ("bias_ih", "bias_hh")}
    got = outputs_and_gradients(gru, tensors)
    exact = outputs_and_gradients(gru, {name: tensor.double() for name, tensor in tensors.items()})
    assert all(value.dtype == torch.float32 for value in got.values())
    assert_all_close({"y": got["y"]}, {"y": exact["y"]}, 1e-6)
    assert_all_close(got, exact, 2e-6)


@pytest.mark.parametrize(("rows", "length", "lengths"), [(0, 4, []), (3, 0, [0] * 3), (0, 0, []), (3, 4, [0] * 3)])
def test_without_any_item_states_and_gradients_are_zero(rows, length, lengths):
    got = outputs_and_gradients(gru, arguments(rows, length, 5, 6), lengths=torch.tensor(lengths, dtype=torch.int64))
    assert got["y"].shape == (rows, length, 6) and got["x"].shape == (rows, length, 5)
    assert not any(value.any() for value in got.values())


def test_without_gradients_the_states_are_the_same():
    tensors = {name: x.requires_grad_() for name, x in arguments(5, 6, 7, 8).items()}
    with torch.no_grad():
        without = gru(**tensors)
    assert not without.requires_grad
    assert torch.equal(gru(**tensors), without)


def test_the_backward_pass_can_be_repeated():
    tensors = {name: x.requires_grad_() for name, x in arguments(5, 6, 7, 8).items()}
    total = gru(**tensors).square().sum()
    once, again = (torch.autograd.grad(total, list(tensors.values()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, again))


def test_not_a_number_passes_from_its_step_on_and_to_its_row_only():
    tensors = arguments(6, 5, 3, 4)
    tensors["x"][2, 3] = torch.nan
    bad = gru(**tensors).isnan()
    assert bad[2, 3:].all()
    bad[2, 3:] = False
    assert not bad.any()


@pytest.mark.parametrize("bias", [True, False])
def test_torchs_kernels_as_used_on_cuda_give_the_same(bias):
    tensors = arguments(4, 6, 5, 7, DOUBLE, bias=bias)
    options = {"lengths": torch.tensor([6, 0, 3, 5])} | ({} if bias else {"bias_ih": None, "bias_hh": None})
    expected = outputs_and_gradients(gru, tensors, **options)
    assert_all_close(outputs_and_gradients(gru_torch, tensors, **options), expected, 1e-12)
    empty = {"bias_ih": None, "bias_hh": None, **tensors, "x": tensors["x"][:, :0], "lengths": None}
    assert gru_torch(**empty).shape == (4, 0, 7)
