"""The gated recurrent unit: its values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops.gru import gru, gru_torch
from tests.ops.operations import assert_all_close, outputs_and_gradients
from tests.ops.operations import gru_arguments as arguments

DOUBLE = torch.float64


def torch_module(x, **parameters):
    has_bias = "bias_ih" in parameters
    module = torch.nn.GRU(x.shape[2], parameters["weight_hh"].shape[1], bias=has_bias, batch_first=True, dtype=x.dtype)
    named = {f"{name}_l0": parameter for name, parameter in parameters.items()}
    return torch.func.functional_call(module, named, (x,))[0]


def recurrence(x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, lengths=None):
    """The equations, step by step, in numpy."""
    x, weight_ih, weight_hh = (tensor.double().numpy() for tensor in (x, weight_ih, weight_hh))
    (rows, length, _), hidden = x.shape, weight_hh.shape[1]
    bias_ih, bias_hh = (np.zeros(3 * hidden) if bias is None else bias.double().numpy() for bias in (bias_ih, bias_hh))
    states = np.zeros((rows, length, hidden))
    for b in range(rows):
        h = np.zeros(hidden)
        for t in range(length if lengths is None else int(lengths[b])):
            from_x = (weight_ih @ x[b, t] + bias_ih).reshape(3, hidden)
            from_h = (weight_hh @ h + bias_hh).reshape(3, hidden)
            r, z = 1 / (1 + np.exp(-(from_x[:2] + from_h[:2])))
            n = np.tanh(from_x[2] + r * from_h[2])
            h = (1 - z) * n + z * h
            states[b, t] = h
    return torch.from_numpy(states)


@pytest.mark.parametrize("shape", [(5, 7, 3, 6), (1, 1, 1, 1), (9, 20, 64, 64), (6, 3, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_states_and_gradients_equal_those_of_torch(shape, bias):
    tensors = arguments(*shape, DOUBLE, bias=bias)
    assert_all_close(outputs_and_gradients(gru, tensors), outputs_and_gradients(torch_module, tensors), 1e-12)


@pytest.mark.parametrize("only", ["bias_ih", "bias_hh"])
def test_one_bias_alone_is_enough(only):
    tensors = {name: x for name, x in arguments(3, 4, 5, 6, DOUBLE).items() if name == only or "bias" not in name}
    torch.testing.assert_close(gru(**tensors), recurrence(**tensors))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=11),
    beyond=st.integers(0, 3),
    inputs=st.integers(1, 9),
    hidden=st.integers(1, 21),
    seed=st.integers(0, 99),
)
def test_states_equal_the_equations_for_any_shape_and_lengths(lengths, beyond, inputs, hidden, seed):
    tensors = arguments(len(lengths), max(lengths) + beyond, inputs, hidden, DOUBLE, seed)
    ends = torch.tensor(lengths)
    torch.testing.assert_close(gru(**tensors, lengths=ends), recurrence(**tensors, lengths=ends))


@pytest.mark.parametrize("ends", [None, [3, 0, 2, 5, 1, 5]])
def test_gradients_equal_finite_differences(ends):
    tensors = [tensor.requires_grad_() for tensor in arguments(6, 5, 2, 3, DOUBLE).values()]
    lengths = None if ends is None else torch.tensor(ends)
    assert torch.autograd.gradcheck(lambda *inputs: gru(*inputs, lengths=lengths), tensors)


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


def test_gradients_with_lengths_are_those_of_each_row_alone():
    lengths = [4, 9, 0, 1, 9, 6, 3]
    tensors = arguments(7, 9, 8, 16, DOUBLE)
    together = outputs_and_gradients(gru, tensors, lengths=torch.tensor(lengths))

    def row_by_row(x, **parameters):
        states = [torch_module(x[row : row + 1, :end], **parameters) for row, end in enumerate(lengths) if end]
        padded = torch.nn.utils.rnn.pad_sequence([state[0] for state in states], batch_first=True)
        return torch.cat([padded[:2], torch.zeros(1, 9, 16, dtype=x.dtype), padded[2:]])

    assert_all_close(together, outputs_and_gradients(row_by_row, tensors), 1e-12)


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
