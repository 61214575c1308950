"""The softmax loss without the (B, V) scores: its value and gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_sigma.ops.softmax import _recomputed_loss, softmax_loss


@pytest.mark.parametrize("n_rows", [1, 5, 60, 300])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("loss", [softmax_loss, _recomputed_loss])  # the second one on CUDA and under autocast
def test_softmax_loss_is_cross_entropy_over_all_items(loss, smoothing, n_rows, monkeypatch):
    """With one block of rows, and with several."""
    monkeypatch.setattr("recbole_sigma.ops.softmax.BLOCK_SCORES", 1000)
    monkeypatch.setattr("recbole_sigma.ops.softmax.KEPT_SCORES", 500)
    torch.manual_seed(0)
    hidden = (torch.randn(n_rows, 6, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.randn(50, 6, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 50, (n_rows,))
    expected = cross_entropy(hidden @ weight.T, target, label_smoothing=smoothing)
    got = loss(hidden, weight, target, smoothing)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(2 * each, (hidden, weight)) for each in (got, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(loss(hidden, weight, target, smoothing), expected)
    large = loss(hidden * 1e4, weight, target, smoothing)
    torch.testing.assert_close(large, cross_entropy(hidden * 1e4 @ weight.T, target, label_smoothing=smoothing))
    if n_rows < 10:
        assert torch.autograd.gradcheck(lambda *each: loss(*each, target, smoothing), (hidden, weight))
