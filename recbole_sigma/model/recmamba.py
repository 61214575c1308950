"""RecMamba (Yang et al., arXiv 2403.16371): one Mamba block for histories of thousands of items."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.model.sequence import SequenceModel


class RecMamba(SequenceModel):
    """A Mamba block on item and position embeddings, without residual and normalisation (section 3.2)."""

    causal = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.embedding_norm = nn.Identity()
        self.position_embedding = nn.Embedding(self.max_seq_length, self.hidden_size)
        self.layers = nn.ModuleList([Mamba(self.hidden_size, config["d_state"], config["d_conv"], config["expand"])])
        self.initialise()

    def embed(self, item_seq: Tensor, position: Tensor | None = None) -> Tensor:
        """Items times sqrt(D), because their scale is small, plus positions from the oldest: (...) -> (..., D)"""
        items = self.item_embedding(item_seq) * math.sqrt(self.hidden_size)
        if position is None:
            position = torch.arange(item_seq.shape[1], device=item_seq.device)
        return self.embedding_dropout(items + self.position_embedding(position))

    def embed_item(self, item: int, position: int) -> Tensor:
        """The item at `position`: (D,); positions beyond the longest history of training are like its last."""
        position = min(position, self.max_seq_length - 1)
        return self.item_embedding.weight[item] * math.sqrt(self.hidden_size) + self.position_embedding.weight[position]
