"""RecBole's own models at the cost of real lengths."""

from typing import Any

import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_sigma.model.chunks import encode_in_chunks
from recbole_sigma.ops.softmax import softmax_loss


class ByLength(SequentialRecommender):
    """Mixin before a class of RecBole's: its `forward` on rows of similar length at a time (setting `by_length`).

    For classes whose row at its last real item depends on neither the padding after it nor the other rows. Dropout
    draws other numbers than on the padded batch; all else is equal, the CE loss too, of which the (B, V) scores are
    not kept. With `by_length: false` the batch is padded to MAX_ITEM_LIST_LENGTH and goes to RecBole's `forward` and
    loss as it is.
    """

    accepts_any_length = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.by_length: bool = config["by_length"]
        self.length_ratio: float = config["length_ratio"]

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D)."""
        if self.by_length:
            return encode_in_chunks(super().forward, item_seq, lengths, self.length_ratio)
        return super().forward(F.pad(item_seq, (0, self.max_seq_length - item_seq.size(1))), lengths)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of a batch, ()."""
        if not self.by_length or self.loss_type != "CE":
            return super().calculate_loss(interaction)
        representation = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return softmax_loss(representation, self.item_embedding.weight, interaction[self.POS_ITEM_ID])
