"""A vocabulary without a data set: what a model needs in order to be built."""

from collections import defaultdict
from collections.abc import Mapping

import torch


class Items:
    """Replaces a data set of which only the number of items is known; its only interaction is with item 1."""

    def __init__(self, n_items: int) -> None:
        self._n_items = n_items
        one = torch.ones(1, dtype=torch.long, device="cpu")  # on the CPU even where "meta" is the default device
        self.inter_feat: Mapping[str, torch.Tensor] = defaultdict(lambda: one)

    def num(self, _field: str) -> int:
        """Number of items, with the padding item."""
        return self._n_items + 1
