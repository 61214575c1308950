"""The rows of a batch: where each ends, and at which positions a layer's output is wanted."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """What a layer needs to know about a batch of histories, beside the batch itself.

    `lengths`: (B,) int, at least 1. `wanted`: the positions whose output is used.

    - `all`, each row's `last` item: the batch is (B, L, D), right-padded. Only a layer with the class attribute
      `gives_last = True` is called with `last`, and returns (B, D) then.
    - `flat`: all positions of a flat batch, (T, D), one row after the other without padding.
    - `prefixes`: of a flat batch each position as it is when its row ends there: the ends of all prefixes. Only a layer
      with `gives_prefixes = True` is called so.
    """

    lengths: Tensor
    wanted: Literal["all", "last", "flat", "prefixes"] = "all"

    @cached_property
    def offsets(self) -> Tensor:
        """Where each row starts in a flat batch, and the end of the last one: (B + 1,) int64"""
        return F.pad(self.lengths.cumsum(0), (1, 0))

    @cached_property
    def row(self) -> Tensor:
        """The row of each item of a flat batch: (T,) int64"""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def position(self) -> Tensor:
        """The position of each item of a flat batch in its row, from 0: (T,) int64"""
        return torch.arange(len(self.row), device=self.row.device) - self.per_item(self.offsets[:-1])

    def per_item(self, of_rows: Tensor) -> Tensor:
        """What belongs to each row, for each item of a flat batch: (B,) -> (T,)"""
        return of_rows.index_select(0, self.row)

    def sum(self, of_items: Tensor) -> Tensor:
        """The sum over each row of a flat batch: (T,) -> (B,)"""
        return of_items.new_zeros(len(self.lengths)).index_add(0, self.row, of_items)

    @property
    def extent(self) -> dict[str, Any]:
        """The rows as an argument of the operations in ops/."""
        return {"offsets": self.offsets} if self.wanted in ("flat", "prefixes") else {"lengths": self.lengths}

    def earlier(self, hidden: Tensor, steps: int) -> Tensor:
        """(T, D) -> (T, D): what is `steps` positions before each position (after it, if negative), zero if nothing."""
        if steps == 0:
            return hidden
        other_row = self.position < steps if steps > 0 else self.position - steps >= self.per_item(self.lengths)
        return hidden.roll(steps, 0).masked_fill(other_row[:, None], 0)

    def zero_padding(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D): zeros beyond each row's last item, so that convolutions see nothing there."""
        real = torch.arange(hidden.shape[1], device=self.lengths.device) < self.lengths[:, None]
        return hidden.masked_fill(~real[..., None], 0)

    def last(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, D): each row at its last item."""
        # index_select, because gather would keep `hidden` for its gradient, and that of indexing is slower
        return hidden.flatten(0, 1).index_select(0, self._row_numbers * hidden.shape[1] + self._last_positions)

    @cached_property
    def _row_numbers(self) -> Tensor:
        return torch.arange(self.lengths.shape[0], device=self.lengths.device)

    @cached_property
    def _last_positions(self) -> Tensor:
        return self.lengths - 1

    def output(self, hidden: Tensor) -> Tensor:
        """The wanted positions: `hidden`, or (B, L, D) -> (B, D) if only the last item of each row is wanted."""
        return self.last(hidden) if self.wanted == "last" else hidden
