"""What the tests of the operations share: arguments, gradients, and one table of all three."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_sigma.ops import causal_conv1d, selective_scan
from recbole_sigma.ops.averages import moving_averages
from recbole_sigma.ops.gru import gru

Tensors = dict[str, Tensor]


def drawn(seed: int, dtype: torch.dtype, **shapes: tuple[int, ...]) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def scan_arguments(rows: int, length: int, channels: int, states: int, dtype: Any = torch.float32, seed: int = 0):
    wide, narrow = (rows, length, channels), (rows, length, states)
    tensors = drawn(
        seed, dtype, u=wide, delta=wide, A=(channels, states), B=narrow, C=narrow, D=(channels,), z=wide,
        delta_bias=(channels,),
    )  # fmt: skip
    return {**tensors, "delta": tensors["delta"] - 2, "A": -torch.exp(tensors["A"])}


def conv_arguments(rows: int, length: int, channels: int, width: int, dtype: Any = torch.float32, seed: int = 0):
    return drawn(seed, dtype, x=(rows, length, channels), weight=(channels, width), bias=(channels,))


def gru_arguments(
    rows: int, length: int, inputs: int, hidden: int, dtype: Any = torch.float32, seed: int = 0, bias: bool = True
) -> Tensors:
    gates = 3 * hidden
    shapes = {"x": (rows, length, inputs), "weight_ih": (gates, inputs), "weight_hh": (gates, hidden)}
    scales = {"x": 1, "weight_ih": inputs**-0.5, "weight_hh": hidden**-0.5, "bias_ih": 0.5, "bias_hh": 0.5}
    shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)} if bias else {}
    return {name: (scales[name] * x).to(dtype) for name, x in drawn(seed, torch.float64, **shapes).items()}


def average_arguments(rows: int, length: int, channels: int, states: int, dtype: Any = torch.float32, seed: int = 0):
    of_channels = (channels, states)
    tensors = drawn(seed, dtype, values=(rows, length, channels), log_decay=of_channels, weight=of_channels)
    return {**tensors, "log_decay": torch.nn.functional.logsigmoid(tensors["log_decay"])}


class Operation(NamedTuple):
    """`per_row` are the arguments that have a row's items in them."""

    function: Callable[..., Tensor]
    arguments: Callable[..., Tensors]
    per_row: tuple[str, ...]


OPERATIONS = {
    "selective_scan": Operation(selective_scan, scan_arguments, ("u", "delta", "B", "C", "z")),
    "causal_conv1d": Operation(causal_conv1d, conv_arguments, ("x",)),
    "gru": Operation(gru, gru_arguments, ("x",)),
    "moving_averages": Operation(moving_averages, average_arguments, ("values",)),
}


def outputs_and_gradients(function: Callable[..., Tensor], tensors: Tensors, **options: Any) -> Tensors:
    """The output `y` and, for a fixed random gradient of it, the gradient of each tensor."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    y = function(**leaves, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    y.backward(weights.to(y.dtype))
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def assert_all_close(got: Tensors, expected: Tensors, bound: float) -> None:
    """By their norms; a gradient that is None is zero."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        value = torch.zeros_like(got[name]) if value is None else value
        assert (got[name] - value).norm() <= bound * value.norm(), name


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
