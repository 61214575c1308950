"""The next item of one history through the parts of a layer, on CPU: vectors as arrays, the larger parts as kernels.

Torch's own operations on vectors of this size cost several times their arithmetic, and several times NumPy's.
"""

from typing import Any

import numpy as np
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


def mamba_step(hidden: Array, window: Array, scan: Array, weights: tuple[Array, ...]) -> Array:
    """Read a position: (D,) -> the block's output (D,).

        x, z = in_proj hidden,  u = SiLU(conv(window, x)),  dt, B, C = projections of u
        h = exp(dt A) h + dt B u,  output = out_proj ((C h + D u) SiLU(z))

    `window` (K - 1, E) and `scan` (E, N), h, are updated in place. `weights`: in_proj, conv1d weight and bias, x_proj,
    dt_proj weight and bias, A_log, D, out_proj.
    """
    from recbole_sigma.ops.cpu import step  # here, because it imports numba

    step.mamba_step(hidden, window, scan, *weights, output := np.empty_like(hidden))
    return output


def flipped_step(
    newest: Array, oldest: Array, r: int, total: Array, decay: Array, smallest: float, weights: tuple[Array, ...]
) -> Array:
    """The output (D,) of a block at the end of a partially flipped history; layers/flipped_scan.py has the algorithm.

    `newest` (n, D): its last items, at most r + K; `oldest` (m, D): its first ones. `total` and `decay` (E, N), the
    running sum and the decay so far, are updated in place; a decay of at most `smallest` becomes 0. `weights` as above.
    """
    from recbole_sigma.ops.cpu import step

    step.flipped_step(newest, oldest, r, total, decay, smallest, *weights, output := np.empty_like(newest[0]))
    return output


def feed_forward_step(hidden: Array, weights: tuple[Array, ...], eps: float) -> Array:
    """LayerNorm(GELU(hidden W3 + b3) W4 + b4 + hidden): (D,) -> (D,); `weights` W3, b3, W4, b4, then LayerNorm's."""
    from recbole_sigma.ops.cpu import step

    step.feed_forward(hidden, *weights, eps, output := np.empty_like(hidden))
    return output


def released_gates(hidden: Array, flipped: Array, weights: tuple[Array, ...]) -> Array:
    """g = W_s SiLU(H + W_1 H) + W_g sigmoid(H + W_1 H), g^f = W_s SiLU(H^f + W_2 H^f) + W_g sigmoid(g): (D,) -> (2, D)

    `weights`: W_1, W_2, W_s, W_g, each followed by its bias.
    """
    from recbole_sigma.ops.cpu import step

    step.released_gates(hidden, flipped, *weights, gates := np.empty((2, len(hidden)), hidden.dtype))
    return gates


def gru_step(x: Array, before: Array, weights: tuple[Array, ...]) -> Array:
    """torch.gru_cell: (D,), state (D,) -> next state (D,). `weights`: of input and state, then biases, if any."""
    from recbole_sigma.ops.cpu import step

    biases = weights[2:] or (before[:0],) * 2
    step.gru_step(x, before, *weights[:2], *biases, after := np.empty_like(before))
    return after


def layer_norm(x: Array, norm: nn.Module) -> Array:
    """(D,) -> (D,); `norm`: nn.LayerNorm, or nn.Identity"""
    from recbole_sigma.ops.cpu import step

    if not isinstance(norm, nn.LayerNorm):
        return x
    step.layer_norm(x, *shared_arrays(norm, ("weight", "bias"), norm.weight), norm.eps, output := np.empty_like(x))
    return output


def linear(x: Array, layer: nn.Linear) -> Array:
    """(I,) -> (O,), with bias"""
    weight, bias = shared_arrays(layer, ("weight", "bias"), layer.weight)
    return weight @ x + bias


def shared_arrays(module: nn.Module, names: tuple[str, ...], first: Tensor) -> tuple[Array, ...]:
    """The parameters `names` as arrays on the same memory, kept in the module until `first`, one of them, moves."""
    pointer, arrays = module.__dict__.get("_shared_arrays", (0, ()))
    if pointer != first.data_ptr():
        pointer, arrays = first.data_ptr(), tuple(module.get_parameter(name).detach().numpy() for name in names)
        module.__dict__["_shared_arrays"] = pointer, arrays
    return arrays
