"""Cross-entropy over all items without keeping the (B, V) scores."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KEPT_SCORES = 2**28  # largest number of scores that is kept for the backward pass: 1 GB in float32
BLOCK_SCORES = 2**20  # scores in memory at a time, 4 MB in float32: about the size of a core's cache


class _BlockwiseLoss(torch.autograd.Function):
    """Loss and both gradients from one computation of the scores, one block of rows after the other."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float, needs_gradient: bool
    ) -> Tensor:
        n_rows = len(hidden)
        losses = hidden.new_empty(n_rows)
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        grad_weight = torch.zeros_like(weight) if needs_gradient else None
        for rows in torch.arange(n_rows).split(max(BLOCK_SCORES // len(weight), 1)):
            block = slice(int(rows[0]), int(rows[-1]) + 1)
            own = target[block, None]
            scores = hidden[block] @ weight.T
            highest = scores.amax(1, keepdim=True)
            target_score = scores.gather(1, own)
            total = scores.sub_(highest).exp_().sum(1, keepdim=True)
            losses[block] = (total.log() + highest - target_score)[:, 0]
            if grad_hidden is not None and grad_weight is not None:
                # d loss / d scores = softmax - one-hot; dividing the small factors by `total` saves a pass over V
                grad_weight.addmm_(scores.T, hidden[block] / total)
                grad_hidden[block] = (scores @ weight) / total
        if smoothing:  # a part of the target's weight goes to all items: their mean score is one product
            own, mean = weight[target], weight.mean(0)
            losses += smoothing * ((own - mean) * hidden).sum(1)
        if grad_hidden is not None and grad_weight is not None:
            grad_hidden -= weight[target]
            grad_weight.index_add_(0, target, hidden, alpha=smoothing - 1)
            if smoothing:
                grad_hidden += smoothing * (own - mean)
                grad_weight -= smoothing / len(weight) * hidden.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss / len(grad_hidden)
        return grad_hidden * scale, grad_weight * scale, None, None, None


def _recomputed_loss(hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """torch's loss; more than KEPT_SCORES scores are computed by blocks, and once more in the backward pass."""
    if len(hidden) * len(weight) <= KEPT_SCORES:
        return F.cross_entropy(hidden @ weight.T, target, label_smoothing=smoothing)

    def block_loss(rows: Tensor, own: Tensor) -> Tensor:
        return F.cross_entropy(rows @ weight.T, own, reduction="sum", label_smoothing=smoothing)

    n_rows = max(KEPT_SCORES // len(weight), 1)
    blocks = zip(hidden.split(n_rows), target.split(n_rows), strict=True)
    return torch.stack([checkpoint(block_loss, *each, use_reentrant=False) for each in blocks]).sum() / len(hidden)


def softmax_loss(hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean of -log softmax(hidden weight^T)[target]: (B, D), (V, D), (B,) -> ().

    With `smoothing` the target counts 1 - smoothing, and all V items together smoothing, as torch's `label_smoothing`.
    """
    if hidden.is_cuda or torch.is_autocast_enabled(hidden.device.type):
        return _recomputed_loss(hidden, weight, target, smoothing)
    return _BlockwiseLoss.apply(hidden, weight, target, smoothing, torch.is_grad_enabled())
