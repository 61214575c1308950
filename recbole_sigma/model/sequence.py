"""What all our models share: embedding, losses, scores, and encoding rows of similar length together."""

from typing import Any, ClassVar

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.ops.softmax import softmax_loss


class SequenceModel(SequentialRecommender):
    """A model of item histories. A subclass fills `layers` and calls `initialise()`.

    A layer is called as `layer(hidden, lengths, last=False)`, (B, L, D), (B,) -> (B, L, D), or (B, D) with `last`. A
    model that is no stack of layers implements `encode` and `encode_last`.
    Item sequences are (B, L), right-padded with item 0; L may differ from batch to batch.
    """

    layers: nn.ModuleList

    accepts_any_length = True
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "loss_type": ("CE", "BPR"),
        "ssm_init": ("mamba", "published"),
    }

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.loss_type: str = config["loss_type"]
        self.ssm_init: str = config["ssm_init"]
        self.length_ratio: float = config["length_ratio"] or 1.25
        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.embedding_dropout = nn.Dropout(config["dropout_prob"])
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=1e-12)
        self.bpr_loss = BPRLoss()

    def encode(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The model itself: (B, L, D), (B,) -> (B, L, D). A row depends on its own items alone."""
        for layer in self.layers:
            hidden = layer(hidden, lengths)
        return hidden

    def encode_last(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`encode` at each row's last item: (B, L, D), (B,) -> (B, D).

        What the last layer does position by position, it does at that one only: most of a layer's arithmetic.
        """
        *first, last = self.layers
        for layer in first:
            hidden = layer(hidden, lengths)
        return last(hidden, lengths, last=True)

    def embed(self, item_seq: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)"""
        return self.embedding_norm(self.embedding_dropout(self.item_embedding(item_seq)))

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D).

        Rows are encoded in chunks of similar length: the same result and gradient as one padded batch, at the cost of
        the real items.
        """
        order = torch.argsort(lengths, stable=True)
        represented = []
        for rows in length_chunks(lengths[order], self.length_ratio):
            chunk = order[rows]
            items, own = item_seq[chunk], lengths[chunk]
            hidden = self.embed(items[:, : int(own[-1])])
            represented.append(self.encode_last(hidden, own))
        return torch.cat(represented)[torch.argsort(order)]

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of a batch, (): softmax over all items (CE), or against one sampled item each (BPR)."""
        representation = self.represent(interaction)
        positive = interaction[self.POS_ITEM_ID]
        if self.loss_type == "CE":
            return softmax_loss(representation, self.item_embedding.weight, positive)
        difference = [self._score(representation, interaction[field]) for field in (self.POS_ITEM_ID, self.NEG_ITEM_ID)]
        return self.bpr_loss(*difference)

    def represent(self, interaction: Interaction) -> Tensor:
        """Representations of a batch's histories, (B, D)."""
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of one item a row, (B,)."""
        return self._score(self.represent(interaction), interaction[self.ITEM_ID])

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        return self.represent(interaction) @ self.item_embedding.weight.T

    def _score(self, representation: Tensor, items: Tensor) -> Tensor:
        """(B, D), (B,) -> (B,)"""
        return (representation * self.item_embedding(items)).sum(-1)

    def initialise(self) -> None:
        """Linear and embedding weights N(0, 0.02), biases 0, as in SASRec and its successors.

        Mamba blocks keep mamba-ssm's initialisation, unless `ssm_init` is `published`.
        """
        blocks = [module for module in self.modules() if isinstance(module, Mamba)]
        inside = {id(part) for block in blocks for part in block.modules()}
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and id(module) not in inside:
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.ssm_init == "published":
            for block in blocks:
                block.init_published()


def length_chunks(lengths: Tensor, ratio: float) -> list[slice]:
    """Cut rows into chunks whose longest is at most `ratio` times the shortest.

    Args:
        lengths: (B,), ascending.
        ratio: 1 or more; infinity gives one chunk.
    """
    distinct, counts = torch.unique_consecutive(lengths, return_counts=True)
    chunks, start, stop, shortest = [], 0, 0, None
    for length, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        if shortest is None:
            shortest = length
        elif length > shortest * ratio:
            chunks.append(slice(start, stop))
            start, shortest = stop, length
        stop += count
    return [*chunks, slice(start, stop)]
