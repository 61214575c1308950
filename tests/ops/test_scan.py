"""The selective scan on CPU: its values and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops import selective_scan, selective_scan_reference
from recbole_sigma.ops.cpu import scan as cpu_scan
from tests.ops.operations import assert_all_close, outputs_and_gradients
from tests.ops.operations import scan_arguments as arguments


def make_steps_positive(tensors):
    """Without softplus; at negative steps the states explode."""
    for name in tensors.keys() & {"delta", "delta_bias"}:
        tensors[name] = tensors[name].abs() / 4


def recurrence(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=True, lengths=None):
    """The definition, number by number, in float64 and without torch."""
    u, delta, A, B, C, D, z, delta_bias = (
        None if x is None else x.double().numpy() for x in (u, delta, A, B, C, D, z, delta_bias)
    )
    y = np.zeros_like(u)
    for b in range(u.shape[0]):
        for e in range(u.shape[2]):
            h = np.zeros(A.shape[1])
            for t in range(u.shape[1] if lengths is None else int(lengths[b])):
                dt = delta[b, t, e] + (0 if delta_bias is None else delta_bias[e])
                if delta_softplus:
                    dt = math.log1p(math.exp(dt))
                h = np.exp(dt * A[e]) * h + dt * B[b, t] * u[b, t, e]
                y[b, t, e] = C[b, t] @ h + (0 if D is None else D[e] * u[b, t, e])
                if z is not None:
                    y[b, t, e] *= z[b, t, e] / (1 + math.exp(-z[b, t, e]))
    return torch.from_numpy(y)


def assert_float32_equals_float64(tensors, bound=1e-6, **options):
    got = outputs_and_gradients(selective_scan, tensors, **options)
    doubles = {name: x.double() for name, x in tensors.items()}
    assert all(x.dtype == torch.float32 for x in got.values())
    assert_all_close(got, outputs_and_gradients(selective_scan_reference, doubles, **options), bound)


@pytest.mark.parametrize("shape", [(5, 7, 40, 8), (3, 70, 33, 5), (2, 200, 64, 32), (1, 3, 1, 1), (64, 20, 128, 32)])
@pytest.mark.parametrize("ragged", [False, True])
def test_float32_outputs_and_gradients_equal_those_of_float64(shape, ragged):
    lengths = torch.tensor([shape[1] - 3 * i % (shape[1] + 1) for i in range(shape[0])]) if ragged else None
    assert_float32_equals_float64(arguments(*shape), lengths=lengths)


def test_decay_rates_and_step_sizes_may_have_either_sign():
    tensors = arguments(4, 12, 16, 8)
    tensors["A"] = tensors["A"] * torch.tensor([0.5, -0.1]).repeat(4)
    assert_float32_equals_float64(tensors)
    tensors["delta"], tensors["delta_bias"] = (tensors["delta"] + 2) / 9, tensors["delta_bias"] / 9
    # growing states magnify the rounding of each step
    assert_float32_equals_float64(tensors, bound=5e-6, delta_softplus=False)


def test_steps_of_any_size_are_exact():
    tensors = arguments(3, 20, 24, 8)
    tensors["delta"] = torch.linspace(-40, 40, 3 * 20 * 24).reshape(3, 20, 24)
    assert_float32_equals_float64(tensors)


@st.composite
def cases(draw):
    length = draw(st.one_of(st.integers(0, 6), st.sampled_from([63, 64, 65, 129])))
    rows = draw(st.integers(0, 3))
    channels, states, seed = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(0, 99))
    tensors = arguments(rows, length, channels, states, torch.float64, seed)
    for name in ("D", "z", "delta_bias"):
        if draw(st.booleans()):
            del tensors[name]
    options = {"delta_softplus": draw(st.booleans())}
    if not options["delta_softplus"]:
        make_steps_positive(tensors)
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
        options["lengths"] = torch.tensor(lengths, dtype=torch.long)
    return tensors, options


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_shape_and_option_gives_what_the_definition_says(case):
    tensors, options = case
    expected = recurrence(**tensors, **options)
    torch.testing.assert_close(selective_scan_reference(**tensors, **options), expected, rtol=1e-9, atol=1e-9)
    got = outputs_and_gradients(selective_scan, tensors, **options)
    torch.testing.assert_close(got["y"], expected, rtol=1e-9, atol=1e-9)
    for name, gradient in outputs_and_gradients(selective_scan_reference, tensors, **options).items():
        gradient = torch.zeros_like(tensors[name]) if gradient is None else gradient  # nothing was computed from it
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("shape", [(2, 5, 3, 2), (1, 66, 1, 1)])
@pytest.mark.parametrize("smooth", [True, False])
def test_gradients_pass_gradcheck(shape, smooth):
    named = arguments(*shape, torch.float64)
    if not smooth:
        make_steps_positive(named)
    tensors = [x.requires_grad_() for x in named.values()]
    lengths = torch.tensor([shape[1], 3][: shape[0]])
    assert torch.autograd.gradcheck(lambda *inputs: selective_scan(*inputs, smooth, lengths), tensors)


def test_nan_and_infinity_are_not_swallowed():
    for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"):
        tensors = arguments(1, 4, 8, 8)
        tensors[name].view(-1)[0] = float("nan")
        assert selective_scan(**tensors).isnan().any(), name
    tensors = arguments(1, 4, 8, 8)
    tensors["A"] = torch.full((8, 8), 300.0)
    assert not selective_scan(**tensors).isfinite().all()


def test_a_row_of_ten_thousand_steps_keeps_one_state_in_64():
    tensors = {name: x.requires_grad_() for name, x in arguments(1, 10_000, 4, 8).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        selective_scan(**tensors)
    assert sum(kept) <= sum(x.numel() for x in tensors.values()) + 4 * 8 * (10_000 // 64)
    assert_float32_equals_float64(tensors)


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode, None])
def test_inference_keeps_no_states(how, monkeypatch):
    kept = []
    kernel = cpu_scan.scan_forward
    monkeypatch.setattr(cpu_scan, "scan_forward", lambda *inputs: (kept.append(inputs[18].size), kernel(*inputs)))
    tensors = {name: x.requires_grad_(how is not None) for name, x in arguments(2, 130, 8, 8).items()}
    with how() if how else torch.enable_grad():
        y = selective_scan(**tensors)
    assert not y.requires_grad
    assert kept and not any(kept)


def test_the_threads_floating_point_mode_is_left_as_it_was():
    smallest = 2.0**-1022
    selective_scan(**arguments(2, 3, 4, 2))
    assert smallest / 2 > 0
