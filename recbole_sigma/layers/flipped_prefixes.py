"""SIGMA's flipped direction at the ends of all prefixes of a history, in one pass (train_mode: sequence)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.padding import Rows
from recbole_sigma.ops import causal_conv1d
from recbole_sigma.ops.prefix_scan import prefix_scan


def flipped_prefixes(mamba: Mamba, hidden: Tensor, rows: Rows, r: int, unflipped: Tensor) -> Tensor:
    """`mamba` over each partially flipped prefix, at the prefix's end: (T, D) -> (T, D)

    A prefix of m + r items is read as m, m - 1, ..., 1, m + 1, ..., m + r. Reading backwards, an item's convolution
    sees the items *after* it, the same in every prefix except for the K - 1 items nearest to the turn: the scan over
    all other items is a running sum (ops/prefix_scan.py), and each prefix repeats K - 1 steps before it and r after it.

    `unflipped`: `mamba` over the history, (T, D): the result for prefixes of at most r + 1 items.
    """
    keep = rows.lengths > r + 1
    if not keep.any():
        return unflipped
    of_kept = rows.per_item(keep).nonzero()[:, 0]
    kept = Rows(rows.lengths[keep], "prefixes")
    at_end = (kept.position > r).nonzero()[:, 0]
    x, z = mamba.in_proj(hidden.index_select(0, of_kept)).chunk(2, -1)
    inputs, where, final = _inputs(mamba, x, kept, at_end, r)
    delta, B, C = mamba.select(inputs)
    step = F.softplus(delta + mamba.dt_proj.bias)
    y = prefix_scan(step, step * inputs, mamba.decay_rates(), B, C.index_select(0, final), **where)
    y = y + mamba.D * inputs.index_select(0, final)
    last_item = at_end if r else kept.per_item(kept.offsets[:-1])[at_end]  # with r = 0 the first item is read last
    y = mamba.out_proj(y * F.silu(z.index_select(0, last_item)))
    return unflipped.index_copy(0, of_kept[at_end], y)


def _inputs(mamba: Mamba, x: Tensor, rows: Rows, at_end: Tensor, r: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Convolved inputs (V, E), the indices of `prefix_scan` into them, and the index of each prefix's last input.

    `at_end`: (Q,) int, the last items of the prefixes that are wanted.
    """
    assert mamba.conv1d.bias is not None
    taps, bias = mamba.conv1d.weight[:, 0], mamba.conv1d.bias
    width, device = taps.shape[1], x.device
    start = rows.per_item(rows.offsets[:-1])[at_end, None]  # (Q, 1), where the prefix begins
    turn = rows.position[at_end, None] + 1 - r  # (Q, 1), m

    # 1. backwards: item j with itself and the next t - 1 items in its window, t = 1 ... K, at j K + t - 1
    window, windows = bias.expand_as(x), []
    for ahead in range(width):
        window = torch.addcmul(window, taps[:, width - 1 - ahead], rows.earlier(x, -ahead))
        windows.append(window)
    inputs = [F.silu(torch.stack(windows, 1).flatten(0, 1))]
    seen = torch.arange(1, width, device=device)
    first = ((start + turn - seen) * width + seen - 1).masked_fill(seen > turn, -1)

    # 2. forwards again: the first K - 1 items after the turn have items 1, 2, ... in their window
    crossing = min(r, width - 1)
    back, on = torch.arange(width - 1, 0, -1, device=device), torch.arange(1, crossing + 1, device=device)
    around = torch.cat([(start + back - 1).masked_fill(back > turn, -1), start + turn - 1 + on], 1)
    items = x.index_select(0, around.clamp(min=0).flatten()).unflatten(0, around.shape)
    items = items.masked_fill((around < 0)[..., None], 0)
    inputs.append(causal_conv1d(items, taps, bias)[:, width - 1 :].flatten(0, 1))
    last = len(inputs[0]) + torch.arange(len(start) * crossing, device=device).view(len(start), crossing)

    # 3. and the others what they have in the history itself
    if r > crossing:
        inputs.append(causal_conv1d(x, taps, bias, **rows.extent))
        item = start + turn - 1 + torch.arange(crossing + 1, r + 1, device=device)
        last = torch.cat([last, len(inputs[0]) + len(inputs[1]) + item], 1)

    where = {
        "inner": torch.arange(len(x), device=device) * width + width - 1,
        "offsets": rows.offsets,
        "counts": (turn[:, 0] - width + 1).clamp(min=0),
        "query_offsets": F.pad((rows.lengths - r - 1).cumsum(0), (1, 0)),
        "first": first,
        "last": last,
    }
    final = last[:, -1] if r else (start * width + turn.clamp(max=width) - 1)[:, 0]
    return torch.cat(inputs), where, final
