"""The selective scan on CPU: its values and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops import selective_scan, selective_scan_reference
from recbole_sigma.ops.cpu import scan as cpu_scan


def arguments(rows, length, channels, states, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    wide = (rows, length, channels)
    return {
        "u": normal(*wide),
        "delta": normal(*wide) - 2,
        "A": -torch.exp(normal(channels, states)),
        "B": normal(rows, length, states),
        "C": normal(rows, length, states),
        "D": normal(channels),
        "z": normal(*wide),
        "delta_bias": normal(channels),
    }


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


def outputs_and_gradients(function, tensors, weights, **options):
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    y = function(**leaves, **options)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def weights_for(tensors):
    return torch.randn(tensors["u"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_float32_equals_float64(tensors, bound=1e-6, **options):
    weights = weights_for(tensors).float()
    got = outputs_and_gradients(selective_scan, tensors, weights, **options)
    exact = outputs_and_gradients(
        selective_scan_reference, {k: x.double() for k, x in tensors.items()}, weights, **options
    )
    for name, expected in exact.items():
        assert got[name].dtype == torch.float32
        assert (got[name] - expected).norm() <= bound * expected.norm(), name


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
    assert_float32_equals_float64(
        tensors, bound=5e-6, delta_softplus=False
    )  # growing states magnify the rounding of each step


def test_steps_of_any_size_are_exact():
    tensors = arguments(3, 20, 24, 8)
    tensors["delta"] = torch.linspace(-40, 40, 3 * 20 * 24).reshape(3, 20, 24)
    assert_float32_equals_float64(tensors)


@st.composite
def cases(draw):
    length = draw(st.one_of(st.integers(0, 6), st.sampled_from([63, 64, 65, 129])))
    rows = draw(st.integers(0, 3))
    tensors = arguments(
        rows, length, draw(st.integers(1, 5)), draw(st.integers(1, 8)), torch.float64, draw(st.integers(0, 99))
    )
    for name in ("D", "z", "delta_bias"):
        if draw(st.booleans()):
            del tensors[name]
    options = {"delta_softplus": draw(st.booleans())}
    if not options["delta_softplus"]:
        make_steps_positive(tensors)
    if draw(st.booleans()):
        options["lengths"] = torch.tensor(
            draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows)), dtype=torch.long
        )
    return tensors, options


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_shape_and_option_gives_what_the_definition_says(case):
    tensors, options = case
    expected = recurrence(**tensors, **options)
    torch.testing.assert_close(selective_scan_reference(**tensors, **options), expected, rtol=1e-9, atol=1e-9)
    got = outputs_and_gradients(selective_scan, tensors, weights_for(tensors), **options)
    torch.testing.assert_close(got["y"], expected, rtol=1e-9, atol=1e-9)
    exact = outputs_and_gradients(selective_scan_reference, tensors, weights_for(tensors), **options)
    for name, gradient in exact.items():
        if gradient is None:  # nothing was computed from it
            gradient = torch.zeros_like(tensors[name])
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("shape", [(2, 5, 3, 2), (1, 66, 1, 1)])
@pytest.mark.parametrize("smooth", [True, False])
def test_gradients_pass_gradcheck(shape, smooth):
    named = arguments(*shape, torch.float64)
    if not smooth:
        make_steps_positive(named)
    tensors = [x.requires_grad_() for x in named.values()]
    lengths = torch.tensor([shape[1], 3][: shape[0]])
    assert torch.autograd.gradcheck(lambda *given: selective_scan(*given, smooth, lengths), tensors)


def test_gradients_go_only_where_they_are_wanted():
    tensors = arguments(2, 5, 4, 3)
    tensors["u"].requires_grad_()
    selective_scan(**tensors).sum().backward()
    assert tensors["u"].grad is not None
    assert all(x.grad is None for name, x in tensors.items() if name != "u")


def test_slices_of_wider_projections_are_read_in_place():
    tensors = arguments(3, 6, 16, 8)
    expected = outputs_and_gradients(selective_scan, tensors, weights_for(tensors))
    _, z = torch.cat([tensors["u"], tensors["z"]], -1).chunk(2, -1)
    _, B, C = torch.cat([tensors["u"], tensors["B"], tensors["C"]], -1).split([16, 8, 8], -1)
    assert not z.is_contiguous() and not B.is_contiguous()
    got = selective_scan(**{**tensors, "z": z, "B": B, "C": C})
    assert torch.equal(got, expected["y"])


def test_any_memory_layout_is_right():
    tensors = arguments(3, 6, 16, 8)
    expected = selective_scan(**tensors)
    strided = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in tensors.items()}
    assert torch.equal(selective_scan(**strided), expected)
    leaf = tensors["u"].requires_grad_()
    selective_scan(**tensors).sum().backward()  # the gradient that comes in is one number, expanded
    got, leaf.grad = leaf.grad, None
    (selective_scan(**tensors) * torch.ones(3, 6, 16)).sum().backward()
    assert torch.equal(got, leaf.grad)


def test_a_row_depends_neither_on_its_neighbours_nor_on_the_padding():
    tensors = arguments(40, 30, 64, 32)
    lengths = torch.arange(40) % 31
    together = selective_scan(**tensors, lengths=lengths)
    per_row = ("u", "delta", "B", "C", "z")
    for row in (0, 7, 30, 39):
        end = int(lengths[row])
        alone = selective_scan(
            **{name: x[row : row + 1, :end] if name in per_row else x for name, x in tensors.items()}
        )
        assert torch.equal(together[row, :end], alone[0])
        assert not together[row, end:].any()


def test_what_stands_in_the_padding_is_never_read():
    lengths = torch.tensor([4, 0, 9])
    tensors = arguments(3, 9, 8, 8)
    spoilt = {name: x.clone() for name, x in tensors.items()}
    for name in ("u", "delta", "B", "C", "z"):
        for row, end in enumerate(lengths):
            tensors[name][row, end:] = 0
            spoilt[name][row, end:] = float("nan")
    weights = weights_for(tensors)
    for function in (selective_scan, selective_scan_reference):
        clean = outputs_and_gradients(function, tensors, weights, lengths=lengths)
        got = outputs_and_gradients(function, spoilt, weights, lengths=lengths)
        for name, expected in clean.items():
            torch.testing.assert_close(got[name], expected)


def test_nan_and_infinity_are_not_swallowed():
    for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"):
        tensors = arguments(1, 4, 8, 8)
        tensors[name].view(-1)[0] = float("nan")
        assert selective_scan(**tensors).isnan().any(), name
    tensors = arguments(1, 4, 8, 8)
    tensors["A"] = torch.full((8, 8), 300.0)
    assert not selective_scan(**tensors).isfinite().all()


@pytest.mark.parametrize("shape", [(40, 50, 64, 32), (1, 5000, 128, 8)])
def test_results_repeat_bit_for_bit_whatever_the_number_of_threads(shape):
    tensors = arguments(*shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(selective_scan, tensors, weights_for(tensors)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result[name], results[0][name]) for result in results for name in result)


def test_a_row_of_ten_thousand_steps_keeps_one_state_in_64():
    tensors = {name: x.requires_grad_() for name, x in arguments(1, 10_000, 4, 8).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        y = selective_scan(**tensors)
    assert sum(kept) <= sum(x.numel() for x in tensors.values()) + 4 * 8 * (10_000 // 64)
    expected = outputs_and_gradients(
        selective_scan_reference, {k: x.double() for k, x in tensors.items()}, weights_for(tensors)
    )
    (y * weights_for(tensors)).sum().backward()
    for name, x in tensors.items():
        assert (x.grad - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode, None])
def test_inference_keeps_no_states(how, monkeypatch):
    kept = []
    kernel = cpu_scan.scan_forward
    monkeypatch.setattr(cpu_scan, "scan_forward", lambda *given: (kept.append(given[16].size), kernel(*given)))
    tensors = {name: x.requires_grad_(how is not None) for name, x in arguments(2, 130, 8, 8).items()}
    with how() if how else torch.enable_grad():
        y = selective_scan(**tensors)
    assert not y.requires_grad
    assert kept and not any(kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = arguments(2, 9, 8, 8)
    half = {name: x.to(dtype) if name in ("u", "delta", "B", "C", "z") else x for name, x in tensors.items()}
    y = selective_scan(**half)
    assert y.dtype == dtype
    assert torch.equal(y, selective_scan(**{name: x.float() for name, x in half.items()}).to(dtype))


def test_the_threads_floating_point_mode_is_left_as_it_was():
    smallest = 2.0**-1022
    selective_scan(**arguments(2, 3, 4, 2))
    assert smallest / 2 > 0
