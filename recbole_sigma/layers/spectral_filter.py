"""ECHO's learnable filter in the frequency domain (arXiv 2406.02638, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.padding import Rows
from recbole_sigma.ops.traced import exporting


class SpectralFilter(nn.Module):
    """irfft(W * rfft(H)) along the history, dropout, residual, LayerNorm.

    The transform always has length `slots`, with zeros after the last item: padding does not change a row's result.
    """

    def __init__(self, hidden_size: int, slots: int, dropout: float) -> None:
        super().__init__()
        self.slots = slots
        self.weight = nn.Parameter(torch.randn(slots // 2 + 1, hidden_size, 2) * 0.02)  # real and imaginary part
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), L at most `slots`; always all positions"""
        padded = F.pad(rows.zero_padding(hidden), (0, 0, 0, self.slots - hidden.shape[1]))
        spectrum = torch.fft.rfft(padded, dim=1, norm="ortho")
        filtered = torch.fft.irfft(spectrum * torch.view_as_complex(self.weight), n=self.slots, dim=1, norm="ortho")
        if exporting():  # which would record a slice for fewer positions than `slots` only
            filtered = filtered.index_select(1, torch.arange(hidden.shape[1], device=hidden.device))
        return self.norm(self.dropout(filtered[:, : hidden.shape[1]]) + hidden)
