"""The fused causal convolution: its values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_sigma.ops import causal_conv1d
from tests.ops.operations import assert_all_close, outputs_and_gradients
from tests.ops.operations import conv_arguments as arguments


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


@pytest.mark.parametrize("shape", [(5, 9, 40, 4), (64, 50, 128, 4), (1, 3000, 70, 3), (2, 3, 5, 7)])
@pytest.mark.parametrize("activation", ["silu", None])
def test_float32_outputs_and_gradients_equal_those_of_float64(shape, activation):
    tensors = arguments(*shape)
    lengths = torch.arange(shape[0]) % (shape[1] + 1) if shape[0] > 1 else None
    options = {"activation": activation, "lengths": lengths}
    got = outputs_and_gradients(causal_conv1d, tensors, **options)
    assert all(x.dtype == torch.float32 for x in got.values())
    doubles = {name: x.double() for name, x in tensors.items()}
    assert_all_close(got, outputs_and_gradients(by_torch, doubles, **options), 1e-6)


@st.composite
def cases(draw):
    rows, length = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    channels, width, seed = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(0, 99))
    tensors = arguments(rows, length, channels, width, torch.float64, seed)
    options = {"activation": draw(st.sampled_from(["silu", None]))}
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
        options["lengths"] = torch.tensor(lengths, dtype=torch.long)
    return tensors, options


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_shape_and_option_gives_torchs_convolution(case):
    tensors, options = case
    expected = outputs_and_gradients(by_torch, tensors, **options)
    for name, value in outputs_and_gradients(causal_conv1d, tensors, **options).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
