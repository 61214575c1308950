"""Cross-entropy over all items without keeping the (B, V) scores."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KEPT_SCORES = 2**28  # largest number of scores that is kept for the backward pass: 1 GB in float32
BLOCK_SCORES = 2**19  # scores in memory at a time, 2 MB in float32: about the size of a core's cache
Factors = tuple[Tensor, Tensor]  # scores are their product: representations (B, D) and items (V, D)


class _BlockwiseLoss(torch.autograd.Function):
    """Loss and both gradients from one computation of the scores, one block of rows after the other."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float, teacher: Factors | None,
        needs_gradient: bool,
    ) -> Tensor:  # fmt: skip
        n_rows = len(hidden)
        losses = hidden.new_zeros(n_rows)
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        grad_weight = torch.zeros_like(weight) if needs_gradient else None
        size = max(BLOCK_SCORES // len(weight) // 16, 1) * 16
        memory = hidden.new_empty(min(size, n_rows), len(weight))
        for start in range(0, n_rows, size):
            block = slice(start, min(start + size, n_rows))
            own = target[block, None]
            scores = torch.mm(hidden[block], weight.T, out=memory[: block.stop - start])
            highest = scores.amax(1, keepdim=True)
            target_score = scores.gather(1, own)
            if teacher is not None:  # a part of the target's weight goes to the items as the teacher would
                theirs = (teacher[0][block] @ teacher[1].T).softmax(1)
                losses[block] = smoothing * (target_score[:, 0] - (theirs * scores).sum(1))
            total = scores.sub_(highest).exp_().sum(1, keepdim=True)
            losses[block] += (total.log() + highest - target_score)[:, 0]
            if grad_hidden is None or grad_weight is None:
                continue
            # d loss / d scores = softmax - one-hot; dividing the small factors by `total` saves a pass over V
            if teacher is not None:
                scores.sub_(theirs.mul_(smoothing * total))
            grad_weight.addmm_(scores.T, hidden[block] / total)
            grad_hidden[block] = (scores @ weight) / total
        if smoothing and teacher is None:  # it goes to all items evenly: their mean score is one product
            own, mean = weight[target], weight.mean(0)
            losses += smoothing * ((own - mean) * hidden).sum(1)
        if grad_hidden is not None and grad_weight is not None:
            grad_hidden += (smoothing - 1) * weight[target]
            grad_weight.index_add_(0, target, hidden, alpha=smoothing - 1)
            if smoothing and teacher is None:
                grad_hidden -= smoothing * mean
                grad_weight -= smoothing / len(weight) * hidden.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss / len(grad_hidden)
        return grad_hidden * scale, grad_weight * scale, None, None, None, None


def _recomputed_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float = 0.0, teacher: Factors | None = None
) -> Tensor:
    """torch's loss; more than KEPT_SCORES scores are computed by blocks, and once more in the backward pass."""

    def block_loss(rows: Tensor, own: Tensor, theirs: Tensor | None = None) -> Tensor:
        scores = rows @ weight.T
        if teacher is None or theirs is None:
            return F.cross_entropy(scores, own, reduction="sum", label_smoothing=smoothing)
        soft = F.cross_entropy(scores, (theirs @ teacher[1].T).softmax(1), reduction="sum")
        return (1 - smoothing) * F.cross_entropy(scores, own, reduction="sum") + smoothing * soft

    rows = [hidden, target] if teacher is None else [hidden, target, teacher[0]]
    if len(hidden) * len(weight) <= KEPT_SCORES:
        return block_loss(*rows) / len(hidden)
    blocks = zip(*(each.split(max(KEPT_SCORES // len(weight), 1)) for each in rows), strict=True)
    return torch.stack([checkpoint(block_loss, *each, use_reentrant=False) for each in blocks]).sum() / len(hidden)


def softmax_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float = 0.0, teacher: Factors | None = None
) -> Tensor:
    """Mean of -log softmax(hidden weight^T)[target]: (B, D), (V, D), (B,) -> ().

    With `smoothing` the target counts 1 - smoothing, and all V items together smoothing: evenly, as torch's
    `label_smoothing`, or as the softmax of a teacher's scores, the product of `teacher`, which get no gradient.
    """
    if hidden.is_cuda or torch.is_autocast_enabled(hidden.device.type):
        return _recomputed_loss(hidden, weight, target, smoothing, teacher)
    return _BlockwiseLoss.apply(hidden, weight, target, smoothing, teacher, torch.is_grad_enabled())
