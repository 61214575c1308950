"""Dropout: as torch's, with cheaper draws on the CPU."""

import pytest
import torch

from recbole_sigma.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_elements_are_dropped_independently_with_probability_p_and_the_mean_stays(p: float):
    torch.manual_seed(0)
    n = 1_000_001  # not a multiple of the draws of an int64
    dropped = Dropout(p)(torch.ones(n)) == 0
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs(dropped.double().mean().item() - p) < 5 * deviation
    for distance in (1, 2, 3, 4, 8):  # draws of the same int64, and of neighbours
        both = (dropped[distance:] & dropped[:-distance]).double().mean().item()
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5
    kept = Dropout(p)(torch.ones(4, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 1 / (1 - p)), rtol=2e-4, atol=0)


def test_the_gradient_passes_where_the_element_did_and_the_generator_decides():
    given = torch.randn(5, 7, requires_grad=True)
    torch.manual_seed(1)
    out = Dropout(0.5)(given)
    (gradient,) = torch.autograd.grad(out.sum(), given)
    torch.testing.assert_close(gradient * given, out)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(given), out)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_or_everything_is_dropped(p: float):
    assert torch.equal(Dropout(p)(torch.ones(9)), torch.full((9,), 1.0 - p))
    assert torch.equal(Dropout(0.5).eval()(torch.ones(9)), torch.ones(9))
