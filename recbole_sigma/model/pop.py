"""Pop: the most popular items for everybody, a baseline that every model should beat."""

from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_sigma.model.fitted import FittedModel, interactions


class Pop(FittedModel):
    """An item's score is the number of its training interactions."""

    counts: Tensor  # (V,)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.register_buffer("counts", torch.zeros(self.n_items))

    def fit(self, samples: Any) -> None:
        """Count the training interactions of each item."""
        _, items = interactions(samples)
        self.counts.copy_(torch.bincount(items, minlength=self.n_items))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, (B, V)."""
        return self.counts.repeat(len(interaction), 1)
