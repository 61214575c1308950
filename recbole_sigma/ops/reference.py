"""The selective scan, written for readability: the reference for the fast versions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    lengths: Tensor | None = None,
) -> Tensor:
    """`recbole_sigma.ops.selective_scan` with the same arguments and result, one step at a time.

    Runs on any device and in any floating-point dtype, and can be differentiated twice. Source: Mamba (arXiv
    2312.00752), equation (2) and algorithm 2, with B discretised by Euler's rule as in the authors' code.
    """
    length = u.shape[1]
    ends = torch.full((u.shape[0],), length, device=u.device) if lengths is None else lengths.to(u.device)
    real = (torch.arange(length, device=u.device) < ends[:, None])[..., None]  # (B, L, 1)
    # values in the padding must have no effect, not even NaN
    inputs, step, B, C = (x.masked_fill(~real, 0) for x in (u, delta, B, C))
    if delta_bias is not None:
        step = step + delta_bias
    if delta_softplus:
        step = torch.logaddexp(step, torch.zeros_like(step))
    h = u.new_zeros(u.shape[0], *A.shape)  # (B, E, N)
    outputs = []
    for dt, x, to_state, from_state in zip(*(tensor.unbind(1) for tensor in (step, inputs, B, C)), strict=True):
        h = torch.exp(dt[..., None] * A) * h + (dt * x)[..., None] * to_state[:, None]
        outputs.append((h * from_state[:, None]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else inputs
    if D is not None:
        y = y + D * inputs
    if z is not None:
        y = y * F.silu(z.masked_fill(~real, 0))
    return y.masked_fill(~real, 0)
