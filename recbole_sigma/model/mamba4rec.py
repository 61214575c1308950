"""Mamba4Rec (Liu et al., arXiv 2403.03900)."""

from typing import Any

from torch import Tensor, nn

from recbole_sigma.layers.dropout import Dropout
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.layers.streaming import State
from recbole_sigma.model.sequence import SequenceModel
from recbole_sigma.ops.step import Array, layer_norm


class Mamba4RecLayer(nn.Module):
    """Mamba -> dropout -> (+ input, if stacked) -> LayerNorm -> feed-forward (section 3.2); some can be left out."""

    gives_last = gives_prefixes = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden_size, dropout, has_norm = config["hidden_size"], config["dropout_prob"], config["layer_norm"]
        ssm = config["d_state"], config["d_conv"], config["expand"]
        self.mamba = Mamba(hidden_size, *ssm, selective=config["selective"])
        self.streams = self.mamba.streams
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12) if has_norm else nn.Identity()
        self.feed_forward = FeedForward(hidden_size, dropout, norm=has_norm) if config["feed_forward"] else None
        self.residual = config["num_layers"] > 1

    def forward(self, hidden: Tensor, rows: Rows) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, D) at each row's last item; flat rows (T, D) -> (T, D)"""
        output = self.dropout(self.mamba(hidden, rows))
        if self.residual:
            output = output + rows.output(hidden)
        output = self.norm(output)
        return output if self.feed_forward is None else self.feed_forward(output)

    def start(self) -> State:
        """The state of an empty history."""
        return self.mamba.start()

    def step(self, hidden: Array, state: State) -> Array:
        """The next item: (D,) -> (D,)"""
        output = self.mamba.step(hidden, state)
        output = layer_norm(output + hidden if self.residual else output, self.norm)
        return output if self.feed_forward is None else self.feed_forward.step(output)


class Mamba4Rec(SequenceModel):
    """Mamba layers on the item embeddings."""

    layer_class = Mamba4RecLayer
    causal = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if not config["layer_norm"]:
            self.embedding_norm = nn.Identity()
