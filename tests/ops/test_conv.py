"""The fused causal convolution: its values and gradients."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops import causal_conv1d, cuda


def arguments(rows, length, channels, width, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"x": (rows, length, channels), "weight": (channels, width), "bias": (channels,)}
    return {name: torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def by_torch(x, weight, bias, activation="silu", lengths=None):
    """torch's convolution over both sides of the past, cut to the row's own outputs."""
    channels, width = weight.shape
    ends = torch.full((x.shape[0],), x.shape[1]) if lengths is None else lengths
    real = (torch.arange(x.shape[1]) < ends[:, None])[..., None]
    if x.numel() == 0:
        return x + bias.sum() * 0 + weight.sum() * 0
    y = F.conv1d(x.masked_fill(~real, 0).transpose(1, 2), weight[:, None], bias, padding=width - 1, groups=channels)
    y = y[..., : x.shape[1]].transpose(1, 2)
    return (F.silu(y) if activation == "silu" else y).masked_fill(~real, 0)


def outputs_and_gradients(function, tensors, **options):
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    y = function(**leaves, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize("shape", [(5, 9, 40, 4), (64, 50, 128, 4), (1, 3000, 70, 3), (2, 3, 5, 7)])
@pytest.mark.parametrize("activation", ["silu", None])
def test_float32_outputs_and_gradients_equal_those_of_float64(shape, activation):
    tensors = arguments(*shape)
    lengths = torch.arange(shape[0]) % (shape[1] + 1) if shape[0] > 1 else None
    got = outputs_and_gradients(causal_conv1d, tensors, activation=activation, lengths=lengths)
    exact = outputs_and_gradients(
        by_torch, {k: x.double() for k, x in tensors.items()}, activation=activation, lengths=lengths
    )
    for name, expected in exact.items():
        assert got[name].dtype == torch.float32
        assert (got[name] - expected).norm() <= 1e-6 * expected.norm(), name


@st.composite
def cases(draw):
    rows, length = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    tensors = arguments(
        rows, length, draw(st.integers(1, 9)), draw(st.integers(1, 6)), torch.float64, draw(st.integers(0, 99))
    )
    options = {"activation": draw(st.sampled_from(["silu", None]))}
    if draw(st.booleans()):
        options["lengths"] = torch.tensor(
            draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows)), dtype=torch.long
        )
    return tensors, options


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_shape_and_option_gives_torchs_convolution(case):
    tensors, options = case
    expected = outputs_and_gradients(by_torch, tensors, **options)
    for name, value in outputs_and_gradients(causal_conv1d, tensors, **options).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["silu", None])
def test_gradients_pass_gradcheck(activation):
    tensors = [x.requires_grad_() for x in arguments(2, 6, 3, 4, torch.float64).values()]
    lengths = torch.tensor([6, 2])
    assert torch.autograd.gradcheck(lambda *given: causal_conv1d(*given, activation, lengths), tensors)


def test_a_row_depends_neither_on_its_neighbours_nor_on_the_padding():
    tensors = arguments(6, 12, 32, 4)
    lengths = torch.tensor([12, 0, 1, 3, 7, 11])
    spoilt = tensors["x"].clone()
    for row, end in enumerate(lengths):
        spoilt[row, end:] = float("nan")
    together = causal_conv1d(spoilt, tensors["weight"], tensors["bias"], lengths=lengths)
    for row, end in enumerate(lengths):
        alone = causal_conv1d(tensors["x"][row : row + 1, :end], tensors["weight"], tensors["bias"])
        assert torch.equal(together[row, :end], alone[0])
        assert not together[row, end:].any()


def test_slices_of_wider_projections_are_right():
    tensors = arguments(3, 7, 16, 4)
    expected = outputs_and_gradients(causal_conv1d, tensors)
    wide = torch.cat([tensors["x"], tensors["x"] + 1], -1).requires_grad_()
    got = outputs_and_gradients(
        lambda x, weight, bias: causal_conv1d(wide.chunk(2, -1)[0], weight, bias) + 0 * x, tensors
    )
    assert torch.equal(got["y"], expected["y"])
    assert torch.equal(wide.grad[..., :16], expected["x"])
    assert not wide.grad[..., 16:].any()


def test_results_repeat_bit_for_bit_whatever_the_number_of_threads():
    tensors = arguments(50, 60, 96, 4)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(causal_conv1d, tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result[name], results[0][name]) for result in results for name in result)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"activation": "relu"}, ValueError, "activation must be \"silu\" or None, not 'relu'"),
        (
            {"x": torch.zeros(2, 3)},
            ValueError,
            "x must be (B, L, E) and weight (E, K), K at least 1, not (2, 3) and (4, 2)",
        ),
        ({"weight": torch.zeros(5, 2)}, ValueError, "weight must have shape (4, 2), not (5, 2)"),
        (
            {"bias": torch.zeros(4, dtype=torch.int32)},
            TypeError,
            "bias must be a floating-point tensor, not torch.int32",
        ),
        ({"lengths": torch.tensor([1, 4])}, ValueError, "lengths must lie in 0 .. 3, not in 1 .. 4"),
    ],
)
def test_a_wrong_argument_is_named_with_what_would_be_right(change, error, text):
    with pytest.raises(error) as caught:
        causal_conv1d(**{**arguments(2, 3, 4, 2), **change})
    assert str(caught.value) == text


def test_the_path_for_cuda_without_causal_conv1d_is_torchs_convolution(monkeypatch):
    monkeypatch.setattr(cuda, "causal_conv1d_missing", lambda: "it is not installed")
    tensors = arguments(3, 7, 5, 4)
    lengths = torch.tensor([7, 0, 3])
    got = cuda.causal_conv1d_cuda(**tensors, activation="silu", lengths=lengths)
    torch.testing.assert_close(got, causal_conv1d(**tensors, lengths=lengths))


@pytest.mark.parametrize(
    ("channels", "width", "takes"),
    [(16, 4, True), (16, 2, True), (16, 1, False), (16, 5, False), (20, 4, False)],
)
def test_causal_conv1d_gets_what_it_takes_in_its_own_layout_and_torch_the_rest(monkeypatch, channels, width, takes):
    def stand_in(x, weight, bias, activation):
        # what its C++ code checks where channels lie next to each other
        assert x.stride(1) == 1 and x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0
        seen.append(tuple(x.shape))
        return cuda.causal_conv1d_torch(x.transpose(1, 2), weight, bias, activation).transpose(1, 2)

    seen = []
    monkeypatch.setattr(cuda, "causal_conv1d_missing", lambda: None)
    monkeypatch.setattr(cuda, "import_module", lambda name: SimpleNamespace(causal_conv1d_fn=stand_in))
    tensors = arguments(3, 7, channels, width)
    lengths = torch.tensor([7, 0, 3])
    wide = torch.cat([tensors["x"], tensors["x"] + 1], -1)
    got = cuda.causal_conv1d_cuda(**{**tensors, "x": wide.chunk(2, -1)[0]}, activation="silu", lengths=lengths)
    torch.testing.assert_close(got, causal_conv1d(**tensors, lengths=lengths))
    assert seen == [(3, channels, 7)] * takes
    got = cuda.causal_conv1d_cuda(**{**tensors, "x": wide[..., 3 : channels + 3]}, activation=None, lengths=None)
    assert got.shape == tensors["x"].shape and len(seen) == takes  # not aligned: torch's


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_what_the_cpu_gives():
    tensors = arguments(3, 20, 64, 4)
    lengths = torch.tensor([20, 0, 3])
    got = causal_conv1d(**{name: x.cuda() for name, x in tensors.items()}, lengths=lengths.cuda())
    torch.testing.assert_close(got.cpu(), causal_conv1d(**tensors, lengths=lengths), rtol=1e-4, atol=1e-4)
