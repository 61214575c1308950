"""The gates of SIGMA (arXiv 2408.11451, section 2.3.2): how much of each direction passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_sigma.layers.convolution import SequenceConv
from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.padding import Rows
from recbole_sigma.ops.step import Array, released_gates, shared_arrays

_LINEARS = ("forward_inner", "flipped_inner", "silu_outer", "sigmoid_outer")
_WEIGHTS = tuple(f"{linear}.{name}" for linear in _LINEARS for name in ("weight", "bias"))


class DenseSelectiveGate(nn.Module):
    """G(H) = SiLU(d) + sigmoid(d) with d = Conv1d(H W + b) W' + b' (eqs. 4-6)."""

    log_mean = True

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.reach = width // 2 + 1  # the last items that the gate at the last one depends on
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.conv = SequenceConv(hidden_size, width)
        self.outer = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, flipped: Tensor | None, rows: Rows) -> list[Tensor]:
        """H, H^f (B, L, D) -> [G(H), G(H^f)], or [G(H)] without H^f, each (B, L, D), or (B, D) at the last items."""
        directions = [hidden] if flipped is None or flipped is hidden else [hidden, flipped]
        gates = []
        for direction in directions:
            d = self.outer(self.conv(self.inner(direction), rows))
            gates.append(F.silu(d) + torch.sigmoid(d))
        return gates * 2 if flipped is hidden else gates  # H^f = H: one tensor twice

    def step(self, hidden: Array, flipped: Array | None) -> list[Array]:
        """`forward` at the end, of the last items of both directions: (n, D), (n, D) -> (D,) each"""
        rows, other = Rows(torch.tensor([len(hidden)]), "last"), None if flipped is None else torch.from_numpy(flipped)
        gates = self(torch.from_numpy(hidden)[None], None if other is None else other[None], rows)
        return [gate[0].numpy() for gate in gates]


class ReleasedGates(nn.Module):
    """The gates of SIGMA's released code: two shared projections; the flipped gate depends on the forward gate.

    g = W_s SiLU(H + W_1 H) + W_g sigmoid(H + W_1 H), g^f = W_s SiLU(H^f + W_2 H^f) + W_g sigmoid(g), each with
    dropout; used as factors 1 + g and 1 + g^f.
    """

    reach = 1
    log_mean = True

    def __init__(self, hidden_size: int, dropout: float, flipped: bool = True) -> None:
        super().__init__()
        self.forward_inner = nn.Linear(hidden_size, hidden_size)
        self.flipped_inner = nn.Linear(hidden_size, hidden_size) if flipped else None
        self.silu_outer = nn.Linear(hidden_size, hidden_size)
        self.sigmoid_outer = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, flipped: Tensor | None, rows: Rows) -> list[Tensor]:
        """H, H^f (B, L, D) -> [1 + g, 1 + g^f], or [1 + g] without H^f, each (B, L, D), or (B, D) at the last items."""
        return self._at(rows.output(hidden), None if flipped is None else rows.output(flipped))

    def step(self, hidden: Array, flipped: Array | None) -> list[Array]:
        """`forward` at the end, of the last items of both directions: (n, D), (n, D) -> (D,) each"""
        if flipped is None or self.flipped_inner is None:
            return [self._at(torch.from_numpy(hidden[-1]), None)[0].numpy()]
        weights = shared_arrays(self, _WEIGHTS, self.silu_outer.weight)
        return [*(1 + released_gates(hidden[-1], flipped[-1], weights))]

    def _at(self, hidden: Tensor, flipped: Tensor | None) -> list[Tensor]:
        """The gates of wanted positions: (..., D), (..., D) -> (..., D) each"""
        inner = hidden + self.forward_inner(hidden)
        gate = self.dropout(self.silu_outer(F.silu(inner)) + self.sigmoid_outer(torch.sigmoid(inner)))
        if flipped is None or self.flipped_inner is None:
            return [1 + gate]
        inner = flipped + self.flipped_inner(flipped)
        flipped_gate = self.dropout(self.silu_outer(F.silu(inner)) + self.sigmoid_outer(torch.sigmoid(gate)))
        return [1 + gate, 1 + flipped_gate]
