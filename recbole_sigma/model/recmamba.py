"""RecMamba (Yang et al., arXiv 2403.16371): one Mamba block for histories of thousands of items."""

import math
from typing import Any

from torch import nn

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.model.sequence import SequenceModel


class RecMamba(SequenceModel):
    """A Mamba block on item and position embeddings, without residual and normalisation (section 3.2).

    Items are multiplied by sqrt(D), because their scale is small. Further blocks follow each other as they are.
    """

    causal = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.embedding_scale = math.sqrt(self.hidden_size)
        self.embedding_norm = nn.Identity()
        ssm = self.hidden_size, config["d_state"], config["d_conv"], config["expand"]
        self.layers = nn.ModuleList(Mamba(*ssm) for _ in range(config["num_layers"]))
        self.initialise()
