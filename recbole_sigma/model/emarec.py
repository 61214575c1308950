"""EMARec, moving averages of the history: a diagonal state space (S4D-real, Gu et al., arXiv 2206.11893).

It is what Mamba4Rec is without selection, convolution and gate.
"""

from typing import Any

from torch import Tensor, nn

from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.moving_average import MovingAverages
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops.step import Array, layer_norm


class EMARecLayer(nn.Module):
    """Moving averages -> dropout -> + input -> LayerNorm -> feed-forward."""

    gives_prefixes = streams = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout = config["hidden_size"], config["dropout_prob"]
        self.averages = MovingAverages(hidden_size, config["n_decays"])
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.feed_forward = FeedForward(hidden_size, dropout)

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or flat rows (T, D) -> (T, D)"""
        return self.feed_forward(self.norm(self.dropout(self.averages(hidden, rows)) + hidden))

    def start(self) -> State:
        """The state of an empty history."""
        return self.averages.start()

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,)"""
        return self.feed_forward.step(layer_norm(self.averages.step(hidden, state) + hidden, self.norm))


class EMARec(SequenceModel):
    """Layers of moving averages on the item embeddings."""

    layer_class = EMARecLayer
    causal = True
