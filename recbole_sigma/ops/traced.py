"""The operations as torch.export records them: loops over positions that any runtime can execute, of any length."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_sigma.ops.cuda import causal_conv1d_torch, padding


def exporting() -> bool:
    """Whether torch.export records this computation, so that sizes are symbols, and values are not known."""
    return bool(getattr(torch.compiler, "is_exporting", bool)())  # torch 2.7 and later


def causal_conv1d_traced(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None, lengths: Tensor | None
) -> Tensor:
    """`causal_conv1d` of padded rows."""
    return _masked(causal_conv1d_torch(x, weight, bias, activation), lengths)


def selective_scan_traced(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """`selective_scan` of padded rows."""
    step = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        step = F.softplus(step)

    def read(state: Tensor, position: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(B, E, N), a position of `dt`, `dt u`, B and C -> the next state, and what C reads of it, (B, E)"""
        dt, inputs, to_state, from_state = position
        state = torch.exp(dt[..., None] * A) * state + inputs[..., None] * to_state[:, None]
        return state, (state * from_state[:, None]).sum(-1)

    start = u.new_zeros(u.shape[0], A.shape[0], A.shape[1])
    y = _scan(read, start, (step, step * u, B, C))
    y = y if D is None else y + D * u
    return _masked(y if z is None else y * F.silu(z), lengths)


def gru_traced(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """`gru` of padded rows."""

    def read(state: Tensor, position: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(B, D), a position of the projected input, (B, 3D) -> the next state, twice"""
        reset, update, new = position[0].chunk(3, -1)
        own_reset, own_update, own_new = F.linear(state, weight_hh, bias_hh).chunk(3, -1)
        new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
        state = new + torch.sigmoid(update + own_update) * (state - new)
        return state, state.clone()

    start = x.new_zeros(x.shape[0], weight_hh.shape[1])
    return _masked(_scan(read, start, (F.linear(x, weight_ih, bias_ih),)), lengths)


def _scan(
    read: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]], start: Tensor, inputs: tuple[Tensor, ...]
) -> Tensor:
    """The outputs of `read` at each position: (B, L, X) each -> (B, L, Y)"""
    from torch._higher_order_ops.scan import scan  # not in the oldest torch that we support

    _, outputs = scan(read, start, tuple(each.transpose(0, 1) for each in inputs))
    return outputs.transpose(0, 1)


def _masked(y: Tensor, lengths: Tensor | None) -> Tensor:
    return y if lengths is None else y.masked_fill(padding(lengths, y), 0)
