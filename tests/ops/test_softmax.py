"""The softmax loss without the (B, V) scores: its value and gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_sigma.ops.softmax import _recomputed_loss, softmax_loss


@pytest.mark.parametrize("n_rows", [1, 5, 60, 300])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("loss", [softmax_loss, _recomputed_loss])  # the second one on CUDA and under autocast
def test_softmax_loss_is_cross_entropy_over_all_items(loss, taught, smoothing, n_rows, monkeypatch):
    """With one block of rows, and with several."""
    monkeypatch.setattr("recbole_sigma.ops.softmax.BLOCK_SCORES", 1000)
    monkeypatch.setattr("recbole_sigma.ops.softmax.KEPT_SCORES", 500)
    torch.manual_seed(0)
    hidden = (torch.randn(n_rows, 6, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.randn(50, 6, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 50, (n_rows,))
    teacher = (torch.randn(n_rows, 4).double(), torch.randn(50, 4).double()) if taught else None

    def expected_of(hidden: torch.Tensor) -> torch.Tensor:
        soft = torch.full((n_rows, 50), 1 / 50).double() if teacher is None else (teacher[0] @ teacher[1].T).softmax(1)
        soft = (1 - smoothing) * torch.nn.functional.one_hot(target, 50) + smoothing * soft
        return cross_entropy(hidden @ weight.T, soft)

    expected, got = expected_of(hidden), loss(hidden, weight, target, smoothing, teacher)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(2 * each, (hidden, weight)) for each in (got, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(loss(hidden, weight, target, smoothing, teacher), expected)
    torch.testing.assert_close(loss(hidden * 1e4, weight, target, smoothing, teacher), expected_of(hidden * 1e4))
    if n_rows < 10:
        assert torch.autograd.gradcheck(lambda *each: loss(*each, target, smoothing, teacher), (hidden, weight))
