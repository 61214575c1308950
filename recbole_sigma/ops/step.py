"""The next items of one history through a Mamba block or a feed-forward network: on CPU, one kernel each.

Torch's own operations on vectors of this size cost several times their arithmetic.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


def mamba_step(hidden: Tensor, window: Tensor, scan: Tensor, weights: tuple[Array, ...]) -> Tensor:
    """Read a position: (D,) -> the block's output (D,).

        x, z = in_proj hidden,  u = SiLU(conv(window, x)),  dt, B, C = projections of u
        h = exp(dt A) h + dt B u,  output = out_proj ((C h + D u) SiLU(z))

    `window` (K - 1, E) and `scan` (E, N), h, are updated in place. `weights`: in_proj, conv1d weight and bias, x_proj,
    dt_proj weight and bias, A_log, D, out_proj.
    """
    from recbole_sigma.ops.cpu import step  # here, because it imports numba

    output = np.empty(len(hidden), weights[0].dtype)
    step.mamba_step(hidden.numpy(), window.numpy(), scan.numpy(), *weights, output)
    return torch.from_numpy(output)


def flipped_step(
    newest: Tensor, oldest: Tensor, r: int, total: Tensor, decay: Tensor, smallest: float, weights: tuple[Array, ...]
) -> Tensor:
    """The output (D,) of a block at the end of a partially flipped history; layers/flipped_scan.py has the algorithm.

    `newest` (n, D): its last items, at most r + K; `oldest` (m, D): its first ones. `total` and `decay` (E, N), the
    running sum and the decay so far, are updated in place; a decay of at most `smallest` becomes 0. `weights` as above.
    """
    from recbole_sigma.ops.cpu import step

    output = np.empty(newest.shape[1], weights[0].dtype)
    arrays = total.numpy(), decay.numpy()
    step.flipped_step(newest.numpy(), oldest.numpy(), r, *arrays, smallest, *weights, output)
    return torch.from_numpy(output)


def feed_forward_step(hidden: Tensor, weights: tuple[Array, ...], eps: float) -> Tensor:
    """LayerNorm(GELU(hidden W3 + b3) W4 + b4 + hidden): (D,) -> (D,); `weights` W3, b3, W4, b4, then LayerNorm's."""
    from recbole_sigma.ops.cpu import step

    output = np.empty(len(hidden), weights[0].dtype)
    step.feed_forward(hidden.numpy(), *weights, eps, output)
    return torch.from_numpy(output)


def released_gates(hidden: Tensor, flipped: Tensor, weights: tuple[Array, ...]) -> list[Tensor]:
    """g = W_s SiLU(H + W_1 H) + W_g sigmoid(H + W_1 H), g^f = W_s SiLU(H^f + W_2 H^f) + W_g sigmoid(g): (D,) each

    `weights`: W_1, W_2, W_s, W_g, each followed by its bias.
    """
    from recbole_sigma.ops.cpu import step

    gates = np.empty((2, len(hidden)), weights[0].dtype)
    step.released_gates(hidden.numpy(), flipped.numpy(), *weights, gates)
    return [*torch.from_numpy(gates)]


def shared_arrays(module: nn.Module, names: tuple[str, ...], first: Tensor) -> tuple[Array, ...]:
    """The parameters `names` as arrays on the same memory, kept in the module until `first`, one of them, moves."""
    pointer, arrays = module.__dict__.get("_shared_arrays", (0, ()))
    if pointer != first.data_ptr():
        pointer, arrays = first.data_ptr(), tuple(module.get_parameter(name).detach().numpy() for name in names)
        module.__dict__["_shared_arrays"] = pointer, arrays
    return arrays
