"""Mixing SIGMA's branches (section 2.5): the paper's weighted sum, and the two that it leaves for future study."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_sigma.ops.step import Array

MIXINGS = ("weighted", "fixed", "gated", "attention")


class Mixing(nn.Module):
    """Branches, n times (..., D) -> (..., D)."""

    def step(self, branches: list[Array]) -> Array:
        """The next item: n times (D,) -> (D,)"""
        mixed: Array = self([*map(torch.from_numpy, branches)]).numpy()
        return mixed


class WeightedSum(Mixing):
    """Z = a1 X1 + a2 X2 + ..., with trained weights that nothing constrains (8), or fixed ones."""

    shares: Tensor  # the name that checkpoints have

    def __init__(self, weights: Mapping[str, float], trained: bool = True) -> None:
        """Initial weights by the names of the branches."""
        super().__init__()
        self.names = tuple(weights)
        shares = torch.tensor([*weights.values()])
        if trained:
            self.shares = nn.Parameter(shares)
        else:
            self.register_buffer("shares", shares)

    def scalars(self) -> dict[str, float]:
        """The weight of each branch, for TensorBoard."""
        return dict(zip(self.names, self.shares.tolist(), strict=True))

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """n times (..., D) -> (..., D)"""
        return self._sum(self.shares, branches)

    def step(self, branches: list[Array]) -> Array:
        """The next item: n times (D,) -> (D,)"""
        return self._sum(self.shares.tolist(), branches)

    @staticmethod
    def _sum(shares: Any, branches: Any) -> Any:
        first, *others = (weight * branch for weight, branch in zip(shares, branches, strict=True))
        return sum(others, first)


class GatedMixing(Mixing):
    """Weights for each channel of each position: Z = sum_i softmax_i(W [X1; X2; ...] + b) X_i."""

    def __init__(self, n_branches: int, hidden_size: int) -> None:
        super().__init__()
        self.n_branches = n_branches
        self.gate = nn.Linear(n_branches * hidden_size, n_branches * hidden_size)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """n times (..., D) -> (..., D)"""
        weights = self.gate(torch.cat(list(branches), -1)).unflatten(-1, (self.n_branches, -1)).softmax(-2)
        return (weights * torch.stack(list(branches), -2)).sum(-2)


class AttentionMixing(Mixing):
    """Weights for each position: Z = sum_i softmax_i(v . tanh(W X_i + b)) X_i."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(hidden_size, hidden_size)
        self.query = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """n times (..., D) -> (..., D)"""
        stacked = torch.stack(list(branches), -2)
        return (self.query(self.key(stacked).tanh()).softmax(-2) * stacked).sum(-2)


def make_mixing(kind: str, weights: Mapping[str, float], hidden_size: int) -> Mixing:
    """The layer that mixes branches (..., D) as `kind` says, one of MIXINGS; `weights`: those of the weighted sum."""
    if kind in ("weighted", "fixed"):
        return WeightedSum(weights, trained=kind == "weighted")
    return GatedMixing(len(weights), hidden_size) if kind == "gated" else AttentionMixing(hidden_size)
