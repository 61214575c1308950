"""Mamba over a partially flipped history that grows item by item, in O(r + K) per item.

The reversed prefix is read from its newest item, m, to its oldest, 1. What an item adds to the state at its end decays
by the steps of the items read after it, the older ones:

    h(m) = sum_j exp(A (dt_1 + ... + dt_(j-1))) dt_j B_j u_j

so that an item that joins the prefix adds one term, and changes no other: a running sum. Only the items at the border,
whose convolution reaches beyond the newest item (K - 1 of them), and the last r items, which are read after the
prefix, have to be read again for each new item.
"""

import numpy as np

from recbole_sigma.layers.mamba import Mamba
from recbole_sigma.layers.streaming import State
from recbole_sigma.ops.step import Array, flipped_step

OLDEST = 2  # items kept beside those that the convolution needs: SIGMA's gate looks at two
SMALLEST = 1e-20  # of the decay: products of smaller ones lose precision and take the processor ten times as long


def start_flipped(mamba: Mamba) -> State:
    """The state of an empty history: oldest and newest items (n, D), the running sum and the decay so far (E, N)."""
    total = np.zeros_like(mamba.A_log.detach().numpy())
    nothing = np.empty((0, mamba.out_proj.out_features), total.dtype)
    return {
        "oldest": nothing,  # the first items of the reversed prefix, at most max(K, OLDEST)
        "newest": nothing,  # the last r + K items
        "sum": total,
        "decay": np.ones_like(total),
    }


def step_flipped(mamba: Mamba, r: int, hidden: Array, state: State) -> tuple[Array, Array]:
    """The next item (D,) -> the block's output at the end of the flipped history (D,), and its last items (n, D).

    There are at least OLDEST of them, if the history has as many.
    """
    width = mamba.conv1d.kernel_size[0]
    newest = state["newest"] = np.concatenate([state["newest"], hidden[None]])[-(r + width) :]
    turned = len(newest) - min(r, len(newest))
    if turned and len(state["oldest"]) < max(width, OLDEST):
        state["oldest"] = np.concatenate([state["oldest"], newest[turned - 1 : turned]])
    oldest = state["oldest"]
    output = flipped_step(newest, oldest, r, state["sum"], state["decay"], SMALLEST, mamba.weights())
    end = newest[turned:]
    return output, end if len(end) >= OLDEST else np.concatenate([oldest[::-1], end])
