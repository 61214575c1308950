"""The partial flip of SIGMA (arXiv 2408.11451, section 2.3.1)."""

import torch
from torch import Tensor, nn

from recbole_sigma.layers.padding import Rows
from recbole_sigma.ops.traced import exporting


class PartialFlip(nn.Module):
    """Reverse a history except for its last `r` items.

        [a b c d e . .], length 5, r 2  ->  [c b a d e . .]     (padding is not moved)

    With `slots`, the first `slots - r` positions are reversed whatever the row's length, as in the released code. Items
    of a short history then move behind its last position, where they are lost, and zeros take their positions.
    """

    def __init__(self, r: int, slots: int | None = None) -> None:
        super().__init__()
        self.r = r
        self.slots = slots

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, L, D), (B,) -> (B, L, D): `hidden` itself if no row is long enough to change."""
        if self.slots is None:
            if not exporting() and hidden.shape[1] <= self.r + 1:
                return hidden
            reversed_items = (lengths[:, None] - self.r).clamp(min=0)
        else:
            reversed_items = torch.full_like(lengths[:, None], max(self.slots - self.r, 0))
        position = torch.arange(hidden.shape[1], device=hidden.device)[None]
        source = torch.where(position < reversed_items, reversed_items - 1 - position, position)
        nothing = (source >= lengths[:, None]) | (position >= lengths[:, None])
        flipped = hidden.gather(1, source.masked_fill(nothing, 0)[..., None].expand_as(hidden))
        return flipped.masked_fill(nothing[..., None], 0)


def prefix_ends(hidden: Tensor, rows: Rows, reach: int, r: int | None = None) -> Tensor:
    """The last `reach` items of each prefix of flat rows, with `r` of the flipped prefix: (T, D) -> (T, reach, D)

    Right-padded, with any of the prefix's items, where a prefix is shorter.
    """
    length = rows.position[:, None] + 1
    position = (length - reach).clamp(min=0) + torch.arange(reach, device=hidden.device)
    if r is not None:
        position = torch.where(position < length - r, length - r - 1 - position, position)
    item = rows.per_item(rows.offsets[:-1])[:, None] + torch.minimum(position, length - 1)
    return hidden.index_select(0, item.flatten()).unflatten(0, item.shape)
