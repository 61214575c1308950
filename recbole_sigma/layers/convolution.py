"""A convolution along the history that mixes channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.padding import last_real, zero_padding


class SequenceConv(nn.Conv1d):
    """Conv1d of odd width along the history, output as long as the input (`same` padding). Sees zeros as padding.

    One matrix product over neighbouring positions: for histories of a few items this is faster than torch's kernels,
    which want (B, D, L).
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__(hidden_size, hidden_size, width, padding=width // 2)

    def forward(self, hidden: Tensor, lengths: Tensor, last: bool = False) -> Tensor:  # type: ignore[override]
        """(B, L, D), (B,) -> (B, L, D), or (B, D) at each row's last item"""
        width = self.kernel_size[0]
        margin = width // 2
        padded = F.pad(zero_padding(hidden, lengths), (0, 0, margin, margin))
        if last:
            neighbours = torch.cat([last_real(padded, lengths + k) for k in range(width)], dim=-1)
        else:
            neighbours = torch.cat([padded[:, k : k + hidden.shape[1]] for k in range(width)], dim=-1)
        return F.linear(neighbours, self.weight.permute(0, 2, 1).flatten(1), self.bias)
