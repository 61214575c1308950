"""The gates of SIGMA (arXiv 2408.11451, section 2.3.2): how much of each direction passes."""

from collections.abc import Sequence
from typing import cast

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

    def forward(self, directions: Sequence[Tensor], rows: Rows) -> list[Tensor]:
        """H, and H^f if there is one, (B, L, D) each -> G of each, (B, L, D), or (B, D) at the last items."""
        gates: dict[int, Tensor] = {}
        for direction in directions:
            if id(direction) not in gates:  # H^f may be H
                d = self.outer(self.conv(self.inner(direction), rows))
                gates[id(direction)] = F.silu(d) + torch.sigmoid(d)
        return [gates[id(direction)] for direction in directions]

    def step(self, directions: Sequence[Array]) -> list[Array]:
        """`forward` at the end, of the last items of each direction: (n, D) each -> (D,) each"""
        rows = Rows(torch.tensor([len(directions[0])]), "last")
        return [gate[0].numpy() for gate in self([torch.from_numpy(each)[None] for each in directions], rows)]


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

    def forward(self, directions: Sequence[Tensor], rows: Rows) -> list[Tensor]:
        """H, and each H^f, (B, L, D) -> [1 + g, 1 + g^f, ...], each (B, L, D), or (B, D) at the last items."""
        hidden, *flipped = map(rows.output, directions)
        inner = hidden + self.forward_inner(hidden)
        gate = self.dropout(self.silu_outer(F.silu(inner)) + self.sigmoid_outer(torch.sigmoid(inner)))
        gates = [1 + gate]
        for each in flipped:
            inner = each + cast(nn.Linear, self.flipped_inner)(each)
            outer = self.silu_outer(F.silu(inner)) + self.sigmoid_outer(torch.sigmoid(gate))
            gates.append(1 + self.dropout(outer))
        return gates

    def step(self, directions: Sequence[Array]) -> list[Array]:
        """`forward` at the end, of the last items of each direction: (n, D) each -> (D,) each"""
        hidden, *flipped = (each[-1] for each in directions)
        if not flipped:
            return [self([torch.from_numpy(hidden)], Rows(torch.ones(1)))[0].numpy()]
        weights = shared_arrays(self, _WEIGHTS, self.silu_outer.weight)
        pairs = [1 + released_gates(hidden, each, weights) for each in flipped]
        return [pairs[0][0], *(pair[1] for pair in pairs)]
