"""A convolution along the history that mixes channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.padding import Rows


class SequenceConv(nn.Conv1d):
    """Conv1d of odd width along the history, output as long as the input (`same` padding); padding counts as zeros.

    One matrix product over neighbouring positions: on short histories faster than torch's kernels for (B, D, L).
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__(hidden_size, hidden_size, width, padding=width // 2)

    def forward(self, hidden: Tensor, rows: Rows, ahead: int = 0) -> Tensor:  # type: ignore[override]
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)

        `ahead`: how many items come after each position, for `rows` of prefixes; 0 at their ends.
        """
        width = self.kernel_size[0]
        if rows.wanted in ("flat", "prefixes"):
            taps = width if rows.wanted == "flat" else width // 2 + 1 + ahead
            neighbours = torch.cat([rows.earlier(hidden, width // 2 - k) for k in range(taps)], dim=-1)
            return F.linear(neighbours, self.weight[:, :, :taps].permute(0, 2, 1).flatten(1), self.bias)
        length = hidden.shape[1]
        padded = F.pad(rows.zero_padding(hidden), (0, 0, width // 2, width // 2))
        neighbours = torch.cat([rows.output(padded[:, k : k + length]) for k in range(width)], dim=-1)
        return F.linear(neighbours, self.weight.permute(0, 2, 1).flatten(1), self.bias)
