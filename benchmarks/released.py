"""SIGMA and Mamba4Rec as their authors released them, by design: rivals in epoch.py.

The same as in the released code: batches are padded to MAX_ITEM_LIST_LENGTH, every position is computed and the last
one gathered, the scores (B, V) are kept for torch's cross-entropy, `mamba_ssm.Mamba` is called on the padded batch.
What that code computes without using it, such as a second projection of a gate, is left out in favour of the rivals.
Gates, mixing and feed-forward network are ours: the same operations, on all L positions.
"""

from functools import partial
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_sigma.layers.directions import CONV_WIDTH
from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.gate import ReleasedGates
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.mixing import WeightedSum
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.sigma import WEIGHTS

KEPT = 5  # slots at the end of the padded row that are not flipped: the first 45 of 50 are
GATE_DROPOUT = 0.2
NO_LENGTHS = Rows(torch.empty(0, dtype=torch.long))  # gates of all positions do not use lengths


class StandInMamba(nn.Module):
    """Our block instead of mamba-ssm's, for machines without a GPU: all of the L positions are computed."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.block = Mamba(d_model, d_state, d_conv, expand)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        rows, length, _ = hidden.shape
        return self.block(hidden, Rows(torch.full((rows,), length, device=hidden.device)))


class ReleasedModel(SequentialRecommender):
    """Embedding, dropout, LayerNorm, layers on the padded batch, softmax over all items.

    Mamba4Rec (Liu et al., arXiv 2403.03900), or with `gated` SIGMA (Liu et al., arXiv 2408.11451).
    """

    def __init__(self, config: Any, dataset: Any, gated: bool) -> None:
        super().__init__(config, dataset)
        make_mamba: Any = StandInMamba
        if config["device"].type == "cuda":
            from mamba_ssm import Mamba as MambaSsm

            make_mamba = MambaSsm
        hidden_size, ssm = config["hidden_size"], (config["d_state"], config["d_conv"], config["expand"])
        self.item_embedding = nn.Embedding(self.n_items, hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(config["dropout_prob"])
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.layers = nn.ModuleList()
        for _ in range(config["num_layers"]):
            mamba = make_mamba(hidden_size, *ssm)  # d_model, d_state, d_conv, expand
            self.layers.append(_Layer(_GatedBlock(mamba, hidden_size) if gated else mamba, config))
        self.loss = nn.CrossEntropyLoss()
        for module in self.modules():  # those of the Mamba blocks as well
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """(B, L), (B,) -> (B, D)"""
        hidden = self.norm(self.dropout(self.item_embedding(item_seq)))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.gather_indexes(hidden, lengths - 1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean cross-entropy of a batch, ()."""
        return self.loss(self.full_sort_predict(interaction), interaction[self.POS_ITEM_ID])

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        hidden = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return hidden @ self.item_embedding.weight.T


class _GatedBlock(nn.Module):
    """Both directions through one Mamba block, their gates, and the GRU; mixed and projected."""

    def __init__(self, mamba: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.mamba = mamba
        self.gates = ReleasedGates(hidden_size, GATE_DROPOUT)
        self.conv = nn.Conv1d(hidden_size, hidden_size, CONV_WIDTH, padding=CONV_WIDTH // 2)
        self.gru = nn.GRU(hidden_size, hidden_size, bias=False, batch_first=True)
        self.mixing = WeightedSum(WEIGHTS["released"])
        self.projection = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        flipped = torch.cat([hidden[:, :-KEPT].flip(1), hidden[:, -KEPT:]], dim=1)
        gate, flipped_gate = self.gates([hidden, flipped], NO_LENGTHS)
        states = [self.mamba(hidden) * gate, self.mamba(flipped) * flipped_gate]
        features = self.gru(self.conv(hidden.transpose(1, 2)).transpose(1, 2))[0]
        return self.projection(self.mixing([*states, features]))


class _Layer(nn.Module):
    """A block, dropout, residual if stacked, LayerNorm, feed-forward network."""

    def __init__(self, block: nn.Module, config: Any) -> None:
        super().__init__()
        self.block = block
        self.dropout = nn.Dropout(config["dropout_prob"])
        self.norm = nn.LayerNorm(config["hidden_size"], eps=1e-12)
        self.feed_forward = FeedForward(config["hidden_size"], config["dropout_prob"])
        self.residual = config["num_layers"] > 1

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        output = self.dropout(self.block(hidden))
        return self.feed_forward(self.norm(output + hidden if self.residual else output))


RELEASED = {"SIGMA": partial(ReleasedModel, gated=True), "Mamba4Rec": partial(ReleasedModel, gated=False)}
