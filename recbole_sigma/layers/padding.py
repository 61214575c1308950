"""Right-padding: which positions are real, and zeros where none is."""

import torch
from torch import Tensor


def is_real(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> (B, L): True at a row's own items, False at its padding."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def zero_padding(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, D), (B,) -> (B, L, D): zeros beyond each row's last item, so that convolutions see nothing there."""
    return hidden.masked_fill(~is_real(lengths, hidden.shape[1])[..., None], 0)


def last_real(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, D), (B,) -> (B, D): each row at its last item. (Indexing; gather would keep `hidden` for its gradient.)"""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
