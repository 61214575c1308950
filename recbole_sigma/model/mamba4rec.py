"""Mamba4Rec (Liu et al., arXiv 2403.03900)."""

from typing import Any

from torch import Tensor, nn

from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.model.sequence import SequenceModel


class Mamba4RecLayer(nn.Module):
    """Mamba -> dropout -> (+ input, if stacked) -> LayerNorm -> feed-forward (section 3.2)."""

    gives_last = gives_prefixes = streams = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.mamba = Mamba(hidden_size, config["d_state"], config["d_conv"], config["expand"])
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.feed_forward = FeedForward(hidden_size, dropout)
        self.residual = config["num_layers"] > 1

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)"""
        output = self.dropout(self.mamba(hidden, rows))
        if self.residual:
            output = output + rows.output(hidden)
        return self.feed_forward(self.norm(output))

    def start(self) -> State:
        """The state of an empty history."""
        return self.mamba.start()

    def step(self, hidden: Tensor, state: State) -> Tensor:
        """The next item: (D,) -> (D,)"""
        output = self.mamba.step(hidden, state)
        return self.feed_forward.step(self.norm(output + hidden if self.residual else output))


class Mamba4Rec(SequenceModel):
    """Mamba layers on the item embeddings."""

    layer_class = Mamba4RecLayer
    causal = True
