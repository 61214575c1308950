"""The gates of SIGMA (arXiv 2408.11451, section 2.3.2): how much of each direction passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.padding import last_real


class DenseSelectiveGate(nn.Module):
    """G(H) = SiLU(d) + sigmoid(d) with d = Conv1d(H W + b) W' + b' (eqs. 3-5)."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.conv = SequenceConv(hidden_size, width)
        self.outer = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, flipped: Tensor | None, lengths: Tensor, last: bool = False) -> list[Tensor]:
        """H, H^f (B, L, D) each -> G(H), G(H^f) of the same shape, or (B, D) at the last items.

        Without H^f there is one gate; if H^f is H, the two are one tensor.
        """
        gates = [self._gate(hidden, lengths, last)]
        if flipped is not None:
            gates.append(gates[0] if flipped is hidden else self._gate(flipped, lengths, last))
        return gates

    def _gate(self, hidden: Tensor, lengths: Tensor, last: bool) -> Tensor:
        d = self.outer(self.conv(self.inner(hidden), lengths, last))
        return F.silu(d) + torch.sigmoid(d)


class ReleasedGates(nn.Module):
    """The gates of SIGMA's released code: both directions share two projections; the forward gate enters the other.

    g = W_s SiLU(H + W_1 H) + W_g sigmoid(H + W_1 H), g^f = W_s SiLU(H^f + W_2 H^f) + W_g sigmoid(g), each with
    dropout; used as factors 1 + g and 1 + g^f.
    """

    def __init__(self, hidden_size: int, dropout: float, flipped: bool = True) -> None:
        super().__init__()
        self.forward_inner = nn.Linear(hidden_size, hidden_size)
        self.flipped_inner = nn.Linear(hidden_size, hidden_size) if flipped else None
        self.silu_outer = nn.Linear(hidden_size, hidden_size)
        self.sigmoid_outer = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, flipped: Tensor | None, lengths: Tensor, last: bool = False) -> list[Tensor]:
        """H, H^f (B, L, D) each -> 1 + g, 1 + g^f of the same shape, or (B, D) at the last items.

        Without H^f there is one gate.
        """
        if last:
            hidden = last_real(hidden, lengths)
            flipped = None if flipped is None else last_real(flipped, lengths)
        inner = hidden + self.forward_inner(hidden)
        gate = self.dropout(self.silu_outer(F.silu(inner)) + self.sigmoid_outer(torch.sigmoid(inner)))
        if flipped is None or self.flipped_inner is None:
            return [1 + gate]
        inner = flipped + self.flipped_inner(flipped)
        flipped_gate = self.dropout(self.silu_outer(F.silu(inner)) + self.sigmoid_outer(torch.sigmoid(gate)))
        return [1 + gate, 1 + flipped_gate]
