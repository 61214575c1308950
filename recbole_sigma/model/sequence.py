"""What all our models share: embedding, losses, scores, and encoding rows of similar length together."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.model.chunks import encode_in_chunks, token_chunks
from recbole_sigma.ops.softmax import softmax_loss


class SequenceModel(SequentialRecommender):
    """A model of item histories. A subclass fills `layers` and calls `initialise()`.

    A layer is called as `layer(hidden, lengths, last=False)`, (B, L, D), (B,) -> (B, L, D), or (B, D) with `last`. A
    model that is no stack of layers implements `encode` and `encode_last`.
    Item sequences are (B, L), right-padded with item 0; L may differ from batch to batch.
    """

    layers: nn.ModuleList

    accepts_any_length = True
    causal = False  # whether position t of `encode` depends on items 0 to t alone: what `train_mode: sequence` needs
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "loss_type": ("CE", "BPR", "BCE"),
        "ssm_init": ("mamba", "published"),
    }

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.loss_type: str = config["loss_type"]
        self.train_mode: str = config["train_mode"]
        self.ssm_init: str = config["ssm_init"]
        self.length_ratio: float = config["length_ratio"] or 1.25
        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.embedding_dropout = nn.Dropout(config["dropout_prob"])
        self.embedding_norm: nn.Module = nn.LayerNorm(self.hidden_size, eps=1e-12)
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
        return encode_in_chunks(self._represent_last, item_seq, lengths, self.length_ratio)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of a batch, (): softmax over all items (CE), or against one sampled item each (BPR, BCE).

        The mean is over rows, or with `train_mode: sequence` over all positions that have a target.
        """
        names = [self.POS_ITEM_ID] if self.loss_type == "CE" else [self.POS_ITEM_ID, self.NEG_ITEM_ID]
        items = [interaction[name] for name in names]
        if self.train_mode == "sequence":
            representation, items = self._represent_targets(interaction, items)
        else:
            representation = self.represent(interaction)
        if self.loss_type == "CE":
            return softmax_loss(representation, self.item_embedding.weight, items[0])
        positive, negative = (self._score(representation, each) for each in items)
        if self.loss_type == "BPR":
            return self.bpr_loss(positive, negative)
        return F.softplus(-positive).mean() + F.softplus(negative).mean()

    def _represent_last(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """(n, l), (n,) -> (n, D), rows of similar length"""
        return self.encode_last(self.embed(item_seq), lengths)

    def _represent_targets(self, interaction: Interaction, items: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What each position that has a target knows of its past, (n, D), and `items` (B, L) at those, (n,) each."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        order = torch.argsort(lengths, stable=True)
        item_seq, lengths, items = item_seq[order], lengths[order], [each[order] for each in items]
        wanted = items[0] != 0

        def encode(rows: Tensor, own: Tensor, here: Tensor) -> Tensor:
            return self.encode(self.embed(rows), own)[here]

        represented = [
            part(encode)(item_seq[rows, :width], lengths[rows], wanted[rows, :width])
            for rows, width, part in token_chunks(lengths, self.length_ratio)
        ]
        return torch.cat(represented), [each[wanted] for each in items]

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
