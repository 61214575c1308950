"""The position-wise feed-forward network that closes a layer."""

import torch
from torch import Tensor, nn

from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.ops.step import Array, feed_forward_step, shared_arrays

_WEIGHTS = ("inner.weight", "inner.bias", "outer.weight", "outer.bias", "norm.weight", "norm.bias")


class FeedForward(nn.Module):
    """GELU(x W3 + b3) W4 + b4, dropout, residual, LayerNorm (SIGMA eq. 10; Mamba4Rec section 3.3).

    `inner_dropout`: dropout after GELU, too. Without `norm` there is no LayerNorm.
    """

    def __init__(self, hidden_size: int, dropout: float, inner_dropout: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, 4 * hidden_size)
        self.outer = nn.Linear(4 * hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.dropout = Dropout(dropout)
        self.inner_dropout = self.dropout if inner_dropout else nn.Identity()
        self.norm: nn.Module = nn.LayerNorm(hidden_size, eps=1e-12) if norm else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        inner = self.inner_dropout(self.activation(self.inner(hidden)))
        return self.norm(self.dropout(self.outer(inner)) + hidden)

    def step(self, hidden: Array) -> Array:
        """(D,) -> (D,) without dropout, on CPU."""
        if not isinstance(self.norm, nn.LayerNorm):
            output: Array = self(torch.from_numpy(hidden)).numpy()
            return output
        return feed_forward_step(hidden, shared_arrays(self, _WEIGHTS, self.inner.weight), self.norm.eps)
