"""SIGMA and Mamba4Rec as their authors released them, by design: the rivals of benchmarks/gpu.py.

What is the same as there: batches padded to MAX_ITEM_LIST_LENGTH, every position computed, the last one gathered, the
(B, V) scores kept for torch's cross-entropy, `mamba_ssm.Mamba` called on the padded batch. What the released code
computes and does not use (a gate's second projection, for one) is left out, in the rivals' favour.
Gates, mixing and feed-forward network are ours: the same operations, on all L positions.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_sigma.layers.feed_forward import FeedForward
from recbole_sigma.layers.gate import ReleasedGates
from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.mixing import WeightedSum
from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.sigma import CONV_WIDTH, WEIGHTS

KEPT = 5  # slots at the end of the padded row that are not flipped: the first 45 of 50 are
GATE_DROPOUT = 0.2
NO_LENGTHS = Rows(torch.empty(0, dtype=torch.long))  # which the gates of all positions do not read

MakeMamba = Callable[[int, int, int, int], nn.Module]  # d_model, d_state, d_conv, expand


def mamba_ssm_block(d_model: int, d_state: int, d_conv: int, expand: int) -> nn.Module:
    """mamba-ssm's own block. Raises ImportError where it is not installed."""
    from mamba_ssm import Mamba as MambaSsm

    return MambaSsm(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)


class StandInMamba(nn.Module):
    """Our block in mamba-ssm's place, where there is no GPU: every one of the L positions is computed."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.block = Mamba(d_model, d_state, d_conv, expand)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        rows, length, _ = hidden.shape
        return self.block(hidden, Rows(torch.full((rows,), length, device=hidden.device)))


class ReleasedModel(SequentialRecommender):
    """Embedding, dropout, LayerNorm, layers on the padded batch, softmax over all items."""

    def __init__(self, config: Any, dataset: Any, make_mamba: MakeMamba = mamba_ssm_block) -> None:
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["hidden_size"], padding_idx=0)
        self.dropout = nn.Dropout(config["dropout_prob"])
        self.norm = nn.LayerNorm(config["hidden_size"], eps=1e-12)
        self.layers = nn.ModuleList(self.make_layer(config, make_mamba) for _ in range(config["num_layers"]))
        self.loss = nn.CrossEntropyLoss()
        self.apply(_initialise)

    @abstractmethod
    def make_layer(self, config: Any, make_mamba: MakeMamba) -> nn.Module:
        """A layer, (B, L, D) -> (B, L, D)."""

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """(B, L), (B,) -> (B, D)"""
        hidden = self.norm(self.dropout(self.item_embedding(item_seq)))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.gather_indexes(hidden, lengths - 1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean cross-entropy of a batch, ()."""
        return self.loss(self.full_sort_predict(interaction), interaction[self.POS_ITEM_ID])

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of one item a row, (B,)."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        hidden = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return hidden @ self.item_embedding.weight.T


class ReleasedMamba4Rec(ReleasedModel):
    """Mamba4Rec (Liu et al., arXiv 2403.03900)."""

    def make_layer(self, config: Any, make_mamba: MakeMamba) -> nn.Module:
        """Mamba, then what closes a layer."""
        mamba = make_mamba(config["hidden_size"], config["d_state"], config["d_conv"], config["expand"])
        return _Layer(mamba, config)


class ReleasedSIGMA(ReleasedModel):
    """SIGMA (Liu et al., arXiv 2408.11451)."""

    def make_layer(self, config: Any, make_mamba: MakeMamba) -> nn.Module:
        """The gated block, then what closes a layer."""
        mamba = make_mamba(config["hidden_size"], config["d_state"], config["d_conv"], config["expand"])
        return _Layer(_GatedBlock(mamba, config["hidden_size"]), config)


class _GatedBlock(nn.Module):
    """Both directions through one Mamba block, their gates, and the GRU; mixed and projected."""

    def __init__(self, mamba: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.mamba = mamba
        self.gates = ReleasedGates(hidden_size, GATE_DROPOUT)
        self.conv = nn.Conv1d(hidden_size, hidden_size, CONV_WIDTH, padding=CONV_WIDTH // 2)
        self.gru = nn.GRU(hidden_size, hidden_size, bias=False, batch_first=True)
        self.mixing = WeightedSum(list(WEIGHTS["released"].values()))
        self.projection = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        flipped = torch.cat([hidden[:, :-KEPT].flip(1), hidden[:, -KEPT:]], dim=1)
        gate, flipped_gate = self.gates(hidden, flipped, NO_LENGTHS)
        states = [self.mamba(hidden) * gate, self.mamba(flipped) * flipped_gate]
        features = self.gru(self.conv(hidden.transpose(1, 2)).transpose(1, 2))[0]
        return self.projection(self.mixing([*states, features]))


class _Layer(nn.Module):
    """A block, dropout, (+ input, if stacked), LayerNorm, feed-forward network."""

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


def _initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), biases 0: in the Mamba blocks, too."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


RELEASED: dict[str, type[ReleasedModel]] = {"SIGMA": ReleasedSIGMA, "Mamba4Rec": ReleasedMamba4Rec}
