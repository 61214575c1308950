"""RecBole's own classes on rows of similar length, and in one pass over a history where they are causal."""

from typing import Any

import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_sigma.layers.padding import Rows
from recbole_sigma.model.chunks import encode_in_chunks, length_ratio
from recbole_sigma.model.one_pass import OnePass, encode_flat


class ByLength(OnePass, SequentialRecommender):
    """Mixin before a class of RecBole's: its `forward` on rows of similar length at a time (setting `by_length`).

    For classes whose output at a row's last item depends on neither the padding after it nor the other rows. Dropout
    draws other numbers than on the padded batch; all else is equal, and (B, V) scores are not kept. With `by_length:
    false` the batch is padded to MAX_ITEM_LIST_LENGTH and goes to RecBole's `forward` and loss unchanged.
    """

    accepts_any_length = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.by_length: bool = config["by_length"]
        self.length_ratio = length_ratio(config)
        self.label_smoothing: float = config["label_smoothing"]
        self.cosine_temperature: float | None = config["cosine_temperature"]
        self.all_positions = False  # whether `forward` gives every position instead of each row's last

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Representations of histories: (B, L), (B,) -> (B, D)."""
        if self.by_length:
            return encode_in_chunks(super().forward, item_seq, lengths, self.length_ratio)
        return super().forward(F.pad(item_seq, (0, self.max_seq_length - item_seq.size(1))), lengths)

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """The last step of RecBole's `forward`: (B, L, D), (B,) -> (B, D), or `output` if all positions are wanted."""
        return output if self.all_positions else super().gather_indexes(output, gather_index)

    def encode_prefixes(self, item_seq: Tensor, rows: Rows) -> Tensor:
        """Representations of all prefixes of flat histories: (T,) -> (T, D)"""
        padded_forward = super().forward

        def encode(items: Tensor, lengths: Tensor) -> Tensor:
            self.all_positions = True
            try:
                return padded_forward(items, lengths)
            finally:
                self.all_positions = False

        return encode_flat(encode, item_seq, rows, self.length_ratio)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean loss of a batch, ()."""
        if interaction[self.ITEM_SEQ].dim() == 1:  # flat histories (train_mode: sequence)
            return self.one_pass_loss(interaction)
        if not self.by_length or self.loss_type != "CE":
            return super().calculate_loss(interaction)
        representation = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.ranking_loss(representation, interaction[self.POS_ITEM_ID], interaction=interaction)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        if self.cosine_temperature is None:
            return super().full_sort_predict(interaction)
        return self.score_all(self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of one item per row, (B,)."""
        if self.cosine_temperature is None:
            return super().predict(interaction)
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]
