"""MeanOfItems: the mean of a history's embeddings. Written for RecBole alone; knows nothing of this package."""

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn


class MeanOfItems(SequentialRecommender):
    """A `SequentialRecommender` as RecBole's documentation describes it."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"], padding_idx=0)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, item_seq, item_seq_len):
        """(B, L), (B,) -> (B, D)"""
        return self.item_embedding(item_seq).sum(1) / item_seq_len[:, None]

    def calculate_loss(self, interaction):
        """The mean loss of a batch."""
        return self.loss(self.full_sort_predict(interaction), interaction[self.POS_ITEM_ID])

    def predict(self, interaction):
        """Scores of one item per row."""
        scores = self.full_sort_predict(interaction)
        return torch.gather(scores, 1, interaction[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, interaction):
        """Scores of all items."""
        history = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return history @ self.item_embedding.weight.T
