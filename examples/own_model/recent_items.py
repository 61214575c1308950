"""RecentItems: an exponentially weighted mean of the items' embeddings. A model on this package's base class."""

import torch
from torch import Tensor, nn

from recbole_sigma.model.sequence import SequenceModel


class RecentItems(SequenceModel):
    """h(t) = W (decay h(t - 1) + (1 - decay) e(t)). Position t depends on items 0 to t only, so it is causal."""

    causal = True

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.decay: float = config["decay"]
        self.output = nn.Linear(self.hidden_size, self.hidden_size)
        self.initialise()

    def encode(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D), (B,) -> (B, L, D)"""
        ages = torch.arange(hidden.shape[1])
        ages = (ages[:, None] - ages).to(hidden)
        weights = torch.where(ages >= 0, self.decay ** ages.clamp(min=0), 0) * (1 - self.decay)
        return self.output(weights @ hidden)
