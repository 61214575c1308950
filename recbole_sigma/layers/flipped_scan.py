"""Mamba over a partially flipped history that grows item by item, in O(r + K) per item.

The reversed prefix is read from its newest item, m, to its oldest, 1. What an item adds to the state at its end decays
by the steps of the items read after it, the older ones:

    h(m) = sum_j exp(A (dt_1 + ... + dt_(j-1))) dt_j B_j u_j

so that an item that joins the prefix adds one term, and changes no other: a running sum. Only the items at the border,
whose convolution reaches beyond the newest item (K - 1 of them), and the last r items, which are read after the
prefix, have to be read again for each new item.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.streaming import State

OLDEST = 2  # items kept beside those that the convolution needs: SIGMA's gate looks at two
SMALLEST = 1e-30  # of the decay: below, numbers lose precision and take the processor long


def start_flipped(mamba: Mamba) -> State:
    """The state of an empty history: oldest and newest items (n, D), the running sum and the decay so far (E, N)."""
    nothing = mamba.out_proj.weight.new_zeros(0, mamba.out_proj.out_features)
    return {
        "oldest": nothing,  # the first items of the reversed prefix, at most max(K, OLDEST)
        "newest": nothing,  # the last r + K items
        "sum": mamba.A_log.new_zeros(mamba.A_log.shape),
        "decay": mamba.A_log.new_ones(mamba.A_log.shape),
    }


def step_flipped(mamba: Mamba, r: int, hidden: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """The next item (D,) -> the block's output at the end of the flipped history (D,), and its last items (n, D)."""
    width = mamba.conv1d.kernel_size[0]
    newest = state["newest"] = torch.cat([state["newest"], hidden[None]])[-(r + width) :]
    kept = min(r, len(newest))
    turned, tail = newest[: len(newest) - kept].flip(0), newest[len(newest) - kept :]
    if len(turned) and len(state["oldest"]) < max(width, OLDEST):
        state["oldest"] = torch.cat([state["oldest"], turned[:1]])
    end = torch.cat([state["oldest"].flip(0), tail])  # the flipped history at its end

    # 1. The newest items of the prefix, read first: their convolution reaches beyond the history's start
    reading = mamba.start()
    mamba.read_next(turned[: width - 1], reading)
    scan = reading["scan"]

    # 2. The item after them, whose convolution is complete, joins the running sum
    if len(turned) == width:
        reading["scan"] = torch.zeros_like(scan)
        _, dt = mamba.read_next(turned[width - 1 :], reading)
        state["sum"] = state["sum"] + state["decay"] * reading["scan"]
        decay = state["decay"] * torch.exp(dt[:, None] * -torch.exp(mamba.A_log))
        state["decay"] = F.threshold(decay, SMALLEST, 0.0)

    # 3. The last r items, after the oldest; with r = 0 the output at the oldest, which is part of the sum already
    reading = {"window": torch.zeros_like(reading["window"]), "scan": state["decay"] * scan + state["sum"]}
    output, _ = mamba.read_next(end, reading, held=len(end) - kept)
    return output, end
