"""The rows of a right-padded batch: where each ends, and at which positions a layer's output is wanted."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What a layer needs to know about a batch of right-padded rows, beside the batch itself.

    `lengths`: (B,) int, at least 1. `wanted`: the positions whose output is used, all or each row's last item; only a
    layer with the class attribute `gives_last = True` is called with `last`, and returns (B, D) then.
    """

    lengths: Tensor
    wanted: Literal["all", "last"] = "all"

    def zero_padding(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D): zeros beyond each row's last item, so that convolutions see nothing there."""
        real = torch.arange(hidden.shape[1], device=self.lengths.device) < self.lengths[:, None]
        return hidden.masked_fill(~real[..., None], 0)

    def last(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, D): each row at its last item."""
        # indexing, because gather would keep `hidden` for its gradient
        return hidden[torch.arange(len(hidden), device=hidden.device), self.lengths - 1]

    def output(self, hidden: Tensor) -> Tensor:
        """The wanted positions: (B, L, D) -> (B, L, D), or (B, D) if only the last item of each row is wanted."""
        return self.last(hidden) if self.wanted == "last" else hidden
