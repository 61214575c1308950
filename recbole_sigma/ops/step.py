"""The next items of one history through a Mamba block or a feed-forward network: on CPU, one kernel each.

Torch's own operations on vectors of this size cost several times their arithmetic.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


def mamba_step(
    hidden: Tensor, window: Tensor, scan: Tensor, weights: tuple[Array, ...], held: int = 0
) -> tuple[Tensor, Tensor]:
    """Read the positions `hidden` (n, D): the last one's output (D,) and step sizes (E,), or zeros for n = 0.

        x, z = in_proj hidden,  u = SiLU(conv(window, x)),  dt, B, C = projections of u
        h = exp(dt A) h + dt B u,  output = out_proj ((C h + D u) SiLU(z))

    `window` (K - 1, E) and `scan` (E, N), h, are updated in place; the first `held` positions only enter the window.
    `weights`: in_proj, conv1d weight and bias, x_proj, dt_proj weight and bias, A_log, D, out_proj.
    """
    from recbole_sigma.ops.cpu import step  # here, because it imports numba

    dtype = weights[0].dtype
    output, dt = np.zeros(hidden.shape[1], dtype), np.zeros(len(scan), dtype)
    step.mamba_step(hidden.contiguous().numpy(), held, window.numpy(), scan.numpy(), *weights, dt, output)
    return torch.from_numpy(output), torch.from_numpy(dt)


def feed_forward_step(hidden: Tensor, weights: tuple[Array, ...], eps: float) -> Tensor:
    """LayerNorm(GELU(hidden W3 + b3) W4 + b4 + hidden): (D,) -> (D,); `weights` W3, b3, W4, b4, then LayerNorm's."""
    from recbole_sigma.ops.cpu import step

    output = np.empty(len(hidden), weights[0].dtype)
    step.feed_forward(hidden.numpy(), *weights, eps, output)
    return torch.from_numpy(output)


def shared_arrays(module: nn.Module, names: tuple[str, ...], first: Tensor) -> tuple[Array, ...]:
    """The parameters `names` as arrays on the same memory, kept in the module until `first`, one of them, moves."""
    pointer, arrays = module.__dict__.get("_shared_arrays", (0, ()))
    if pointer != first.data_ptr():
        pointer, arrays = first.data_ptr(), tuple(module.get_parameter(name).detach().numpy() for name in names)
        module.__dict__["_shared_arrays"] = pointer, arrays
    return arrays
