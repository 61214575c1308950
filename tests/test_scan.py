"""The selective scan on CPU against a float64 reference."""

import pytest
import torch

from recbole_sigma.ops import selective_scan, selective_scan_reference


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


def outputs_and_gradients(function, given, weights, **options):
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y = function(**leaves, **options)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.parametrize("shape", [(5, 7, 40, 8), (3, 70, 33, 5), (2, 200, 64, 32), (1, 1, 1, 1)])
def test_float32_outputs_and_gradients_equal_float64s(shape):
    given = arguments(*shape)
    lengths = torch.tensor([shape[1] - i % (shape[1] + 1) for i in range(shape[0])])
    weights = torch.randn(shape[:3], generator=torch.Generator().manual_seed(1))
    got = outputs_and_gradients(selective_scan, given, weights, lengths=lengths)
    exact = outputs_and_gradients(selective_scan_reference, {k: x.double() for k, x in given.items()}, weights, lengths=lengths)
    for name, expected in exact.items():
        assert (got[name] - expected).norm() <= 1e-6 * expected.norm(), name
