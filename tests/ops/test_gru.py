"""The gated recurrent unit: its values and gradients."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops.gru import gru, gru_torch

NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh")


def arguments(rows, length, inputs, hidden, dtype=torch.float64, bias=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    gates = 3 * hidden
    shapes = [(rows, length, inputs), (gates, inputs), (gates, hidden), (gates,), (gates,)][: 5 if bias else 3]
    scales = 1, inputs**-0.5, hidden**-0.5, 0.5, 0.5
    return [
        (scale * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype)
        for scale, shape in zip(scales, shapes, strict=False)
    ]


def states_and_gradients(function, tensors, **options):
    """The states and, for a fixed random gradient of theirs, the gradient of each tensor."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    states = function(*leaves, **options)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states.backward(weights.float().to(states.dtype))
    return {"states": states.detach(), **{name: leaf.grad for name, leaf in zip(NAMES, leaves, strict=False)}}


def torch_module(x, weight_ih, weight_hh, *biases):
    module = torch.nn.GRU(x.shape[2], weight_hh.shape[1], bias=bool(biases), batch_first=True, dtype=x.dtype)
    names = [f"{name}_l0" for name in NAMES[1 : 3 + len(biases)]]
    given_parameters = dict(zip(names, (weight_ih, weight_hh, *biases), strict=True))
    return torch.func.functional_call(module, given_parameters, (x,))[0]


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


def assert_all_close(got, expected, bound=1e-12):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name] - value).norm() <= bound * value.norm(), name


@pytest.mark.parametrize("shape", [(5, 7, 3, 6), (1, 1, 1, 1), (9, 20, 64, 64), (6, 3, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_states_and_gradients_equal_those_of_torch(shape, bias):
    tensors = arguments(*shape, bias=bias)
    assert_all_close(states_and_gradients(gru, tensors), states_and_gradients(torch_module, tensors))


@pytest.mark.parametrize("only", NAMES)
def test_one_bias_alone_and_one_gradient_alone_are_enough(only):
    tensors = arguments(3, 4, 5, 6)
    expected = states_and_gradients(torch_module, tensors)[only]
    for name, tensor in zip(NAMES, tensors, strict=True):
        tensor.requires_grad_(name == only)
    states = gru(*tensors)
    states.backward(torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float())
    for name, tensor in zip(NAMES, tensors, strict=True):
        assert (tensor.grad is not None) == (name == only)
        if name == only:
            torch.testing.assert_close(tensor.grad, expected)
    without = [
        None if name in NAMES[3:] and name != only else t.detach() for name, t in zip(NAMES, tensors, strict=True)
    ]
    torch.testing.assert_close(gru(*without), recurrence(*without))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=11),
    beyond=st.integers(0, 3),
    inputs=st.integers(1, 9),
    hidden=st.integers(1, 21),
    seed=st.integers(0, 99),
)
def test_states_equal_the_equations_for_any_shape_and_lengths(lengths, beyond, inputs, hidden, seed):
    tensors = arguments(len(lengths), max(lengths) + beyond, inputs, hidden, seed=seed)
    ends = torch.tensor(lengths)
    torch.testing.assert_close(gru(*tensors, lengths=ends), recurrence(*tensors, lengths=ends))


@pytest.mark.parametrize("ends", [None, [3, 0, 2, 5, 1, 5]])
def test_gradients_equal_finite_differences(ends):
    tensors = [tensor.requires_grad_() for tensor in arguments(6, 5, 2, 3)]
    lengths = None if ends is None else torch.tensor(ends)
    assert torch.autograd.gradcheck(lambda *given: gru(*given, lengths=lengths), tensors)


@pytest.mark.parametrize("shape", [(64, 10, 64, 64), (7, 200, 32, 48), (50, 3, 16, 33), (2, 1, 5, 3)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_float32_equals_float64(shape, scale):
    tensors = arguments(*shape, dtype=torch.float32)
    tensors[0] *= scale
    if scale < 1:  # small states: what is small must be accurate relative to its own size
        tensors[3:] = [bias * scale for bias in tensors[3:]]
    got = states_and_gradients(gru, tensors)
    exact = states_and_gradients(gru, [tensor.double() for tensor in tensors])
    assert all(value.dtype == torch.float32 for value in got.values())
    assert_all_close({"states": got.pop("states")}, {"states": exact.pop("states")}, 1e-6)
    assert_all_close(got, exact, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_depends_neither_on_padding_nor_on_the_batch(dtype):
    lengths = torch.tensor([4, 9, 0, 1, 9, 6, 3], dtype=torch.int32)
    tensors = arguments(7, 9, 8, 16, dtype=dtype)
    together = states_and_gradients(gru, tensors, lengths=lengths)
    other_padding = tensors[0].clone()
    for row, end in enumerate(lengths.tolist()):
        assert not together["states"][row, end:].any()
        assert not together["x"][row, end:].any()
        other_padding[row, end:] = 1e3
        from_x = torch.nn.functional.linear(tensors[0], tensors[1], tensors[3])  # BLAS may round it by the batch's size
        alone = gru(from_x[row : row + 1, :end], torch.eye(48, dtype=dtype), tensors[2], None, tensors[4])
        torch.testing.assert_close(together["states"][row, :end], alone[0], rtol=0, atol=0)
    assert_all_close(states_and_gradients(gru, [other_padding, *tensors[1:]], lengths=lengths), together, 0)


def test_gradients_with_lengths_are_those_of_each_row_alone():
    lengths = [4, 9, 0, 1, 9, 6, 3]
    tensors = arguments(7, 9, 8, 16)
    together = states_and_gradients(gru, tensors, lengths=torch.tensor(lengths))

    def row_by_row(x, *parameters):
        states = [torch_module(x[row : row + 1, :end], *parameters) for row, end in enumerate(lengths) if end]
        padded = torch.nn.utils.rnn.pad_sequence([state[0] for state in states], batch_first=True)
        return torch.cat([padded[:2], torch.zeros(1, 9, 16, dtype=x.dtype), padded[2:]])

    assert_all_close(together, states_and_gradients(row_by_row, tensors))


@pytest.mark.parametrize(("rows", "length"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_in_gives_nothing_out_and_zero_gradients(rows, length):
    got = states_and_gradients(gru, arguments(rows, length, 5, 6))
    assert got["states"].shape == (rows, length, 6)
    assert got["x"].shape == (rows, length, 5)
    assert not any(got[name].any() for name in NAMES[1:])


def test_rows_of_length_zero_only():
    got = states_and_gradients(gru, arguments(3, 4, 5, 6), lengths=torch.zeros(3, dtype=torch.int64))
    assert not any(value.any() for value in got.values())


def test_slices_and_expanded_gradients_are_read_as_they_lie():
    x, *parameters = arguments(4, 12, 6, 5)
    sliced = x[::2, 1::3, 1:].requires_grad_()
    parameters[0] = parameters[0][:, 1:]
    states = gru(sliced, *parameters)
    expected = torch_module(sliced, *parameters)
    torch.testing.assert_close(states, expected)
    gradients = [torch.autograd.grad(y.sum(), sliced)[0] for y in (states, expected)]  # sum's gradient is expanded
    torch.testing.assert_close(*gradients)


def test_without_gradients_the_states_are_the_same():
    tensors = arguments(5, 6, 7, 8, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with_gradients = gru(*leaves)
    with torch.no_grad():
        without = gru(*leaves)
    assert not without.requires_grad
    assert torch.equal(with_gradients, without)


def test_the_backward_pass_can_be_repeated():
    tensors = [tensor.requires_grad_() for tensor in arguments(5, 6, 7, 8)]
    total = gru(*tensors).square().sum()
    once = torch.autograd.grad(total, tensors, retain_graph=True)
    assert all(map(torch.equal, once, torch.autograd.grad(total, tensors)))


def test_results_are_the_same_bits_for_any_number_of_threads():
    # the recurrence alone: how torch's own products round is not ours to promise
    from recbole_sigma.ops.cpu.gru import recurrence_cpu

    gates_x, _, weight_hh, _, bias_hh = arguments(203, 30, 192, 64, dtype=torch.float32)
    lengths = 1 + torch.arange(203) * 7 % 30

    def run():
        leaves = [tensor.clone().requires_grad_() for tensor in (gates_x, bias_hh)]
        states = recurrence_cpu(leaves[0], weight_hh, leaves[1], lengths)
        states.square().sum().backward()
        return states.detach(), *(leaf.grad for leaf in leaves)

    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


def test_not_a_number_is_handed_on_from_its_step_and_to_its_row_only():
    tensors = arguments(6, 5, 3, 4, dtype=torch.float32)
    tensors[0][2, 3] = torch.nan
    bad = gru(*tensors).isnan()
    assert bad[2, 3:].all()
    bad[2, 3:] = False
    assert not bad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_given_back_in_its_own_type(dtype):
    tensors = arguments(3, 4, 5, 6, dtype=dtype)
    states = gru(*tensors)
    assert states.dtype == dtype
    torch.testing.assert_close(states.double(), recurrence(*tensors), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False])
def test_torchs_kernels_as_used_on_cuda_give_the_same(bias):
    tensors = arguments(4, 6, 5, 7, bias=bias)
    lengths = torch.tensor([6, 0, 3, 5])

    def by_torch(x, weight_ih, weight_hh, bias_ih=None, bias_hh=None):
        return gru_torch(x, weight_ih, weight_hh, bias_ih, bias_hh, lengths)

    assert_all_close(states_and_gradients(by_torch, tensors), states_and_gradients(gru, tensors, lengths=lengths))
    empty = [tensors[0][:, :0], *tensors[1:3], None, None, None]
    assert gru_torch(*empty).shape == (4, 0, 7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    tensors = arguments(6, 9, 16, 32, dtype=torch.float32)
    lengths = torch.tensor([9, 0, 3, 5, 1, 9])
    expected = states_and_gradients(gru, tensors, lengths=lengths)
    leaves = [tensor.cuda().requires_grad_() for tensor in tensors]
    states = gru(*leaves, lengths=lengths.cuda())
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    states.backward(weights.cuda())
    got = {"states": states.detach().cpu(), **{n: leaf.grad.cpu() for n, leaf in zip(NAMES, leaves, strict=True)}}
    assert_all_close(got, expected, 1e-3)  # cuDNN may use TF32


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(3, 5)}, ValueError, r"x must be \(B, L, I\).*not \(3, 5\)"),
        ({"weight_hh": torch.zeros(18)}, ValueError, r"weight_hh \(3D, D\)"),
        ({"weight_hh": torch.zeros(12, 6)}, ValueError, r"weight_hh must have shape \(18, 6\), not \(12, 6\)"),
        ({"weight_ih": torch.zeros(18, 4)}, ValueError, r"weight_ih must have shape \(18, 5\), not \(18, 4\)"),
        ({"bias_ih": torch.zeros(6)}, ValueError, r"bias_ih must have shape \(18,\)"),
        ({"bias_hh": torch.zeros(18, 1)}, ValueError, r"bias_hh must have shape \(18,\)"),
        ({"bias_hh": torch.zeros(18, dtype=torch.int64)}, TypeError, "bias_hh must be a floating-point tensor"),
        ({"weight_ih": torch.zeros(18, 5, device="meta")}, ValueError, "weight_ih is on meta"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, r"lengths must have shape \(3,\)"),
        ({"lengths": torch.tensor([1, 2, 5])}, ValueError, r"lengths must lie in 0 .. 4"),
        ({"lengths": torch.tensor([1.0, 2.0, 3.0])}, TypeError, "lengths must be integers"),
    ],
)
def test_what_does_not_fit_is_named(changed, error, message):
    fitting = dict(zip(NAMES, arguments(3, 4, 5, 6, dtype=torch.float32), strict=True))
    with pytest.raises(error, match=message):
        gru(**{**fitting, **changed})


def test_other_devices_are_refused():
    tensors = [tensor.to("meta") for tensor in arguments(3, 4, 5, 6)]
    with pytest.raises(ValueError, match="gru runs on cpu and cuda, not on meta"):
        gru(*tensors)


def test_importing_it_does_not_import_numba():
    code = "import sys, recbole_sigma.ops.gru; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
