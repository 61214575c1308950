"""ItemKNN: the neighbours of the last item, the baseline of GRU4Rec's paper (Hidasi et al., arXiv 1511.06939)."""

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array
from torch import Tensor

from recbole_sigma.model.fitted import FittedModel, interactions, strongest

_ITEMS_TOGETHER = 256  # rows of the similarity matrix that are computed together


class ItemKNN(FittedModel):
    """An item's score is its similarity to the last item of the history, if it is among that item's `k` neighbours.

    The similarity of two items is users(both) / (sqrt(users(one)) sqrt(users(other)) + shrink), over the users who have
    them in the training data, however often: the cosine, if `shrink` is 0.
    """

    neighbours: Tensor  # (V, k) item ids; 0 where an item has fewer
    similarities: Tensor  # (V, k), falling; 0 where an item has fewer

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.k, self.shrink = config["k"], config["shrink"]
        self.register_buffer("neighbours", torch.zeros(self.n_items, self.k, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(self.n_items, self.k))

    def fit(self, samples: Any) -> None:
        """Find the neighbours of each item; memory and time follow the pairs of items that some user has."""
        user, item = (each.numpy() for each in interactions(samples))
        has = csr_array((np.ones(len(user), dtype=np.float32), (user, item)), shape=(user.max() + 1, self.n_items))
        has.data[:] = 1  # repeated interactions are summed
        norm = np.sqrt(np.bincount(has.indices, minlength=self.n_items))
        by_item = has.T.tocsr()
        for start in range(0, self.n_items, _ITEMS_TOGETHER):
            rows = slice(start, start + _ITEMS_TOGETHER)
            both = (by_item[rows] @ has).tocoo()
            other = both.row + start != both.col
            row, col = both.row[other], both.col[other]
            similarity = both.data[other] / (norm[row + start] * norm[col] + self.shrink)
            block = csr_array((similarity, (row, col)), shape=both.shape)
            strongest(block, self.neighbours[rows], self.similarities[rows])

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        last = interaction[self.ITEM_SEQ].gather(1, interaction[self.ITEM_SEQ_LEN][:, None] - 1)[:, 0]
        scores = self.similarities.new_zeros(len(last), self.n_items)
        return scores.scatter_(1, self.neighbours[last].long(), self.similarities[last])
