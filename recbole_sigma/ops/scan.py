"""The selective scan: one function for CPU and CUDA."""

from importlib.metadata import version

import torch
from torch import Tensor

from recbole_sigma.ops.cuda import causal_conv1d_missing, require_cuda_extension, selective_scan_cuda
from recbole_sigma.ops.rows import check_rows, check_tensors, on_padded_rows
from recbole_sigma.ops.traced import exporting, selective_scan_traced


def selective_scan(
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
    offsets: Tensor | None = None,
) -> Tensor:
    """Mamba's recurrence over each row of a batch, with skip and gate (arXiv 2312.00752, equation (2) and algorithm 2).

        dt = softplus(delta + delta_bias)
        h_l = exp(dt_l A) h_(l-1) + dt_l B_l u_l,     h_0 = 0
        y_l = (C_l h_l + D u_l) SiLU(z_l)

    Args:
        u, delta: (B, L, E) inputs and step sizes
        A: (E, N) decay rates; B, C: (B, L, N)
        D: (E,) skip; z: (B, L, E) gate; delta_bias: (E,); all three optional
        delta_softplus: False uses delta + delta_bias itself as the step size
        lengths: (B,) int, where each row ends: y is zero beyond, inputs are not read there, and it costs nothing on CPU
        offsets: (rows + 1,) int; u, delta, z, y are (T, E) then, B and C (T, N), rows without padding (ops/rows.py)

    Returns y (B, L, E), in u's dtype. Raises TypeError for wrong dtypes, ValueError for wrong shapes, lengths and
    devices, and CudaExtensionError for CUDA tensors without mamba-ssm's extension.
    """
    flat = offsets is not None
    if u.dim() != 3 - flat or A.dim() != 2:
        expected = "(T, E)" if flat else "(B, L, E)"
        raise ValueError(f"u must be {expected} and A (E, N), not {tuple(u.shape)} and {tuple(A.shape)}")
    channels, states = u.shape[-1], A.shape[1]
    wide, narrow = u.shape, (*u.shape[:-1], states)
    check_tensors(
        u.device, u=(u, wide), delta=(delta, wide), A=(A, (channels, states)), B=(B, narrow), C=(C, narrow),
        D=(D, (channels,)), z=(z, wide), delta_bias=(delta_bias, (channels,)),
    )  # fmt: skip
    if exporting():
        return selective_scan_traced(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths)
    check_rows(u.shape, lengths, offsets)
    if u.device.type == "cuda":

        def padded(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor | None, lengths: Tensor | None) -> Tensor:
            return selective_scan_cuda(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths)

        return on_padded_rows(padded, [u, delta, B, C, z], offsets, lengths)
    if u.device.type == "cpu":
        from recbole_sigma.ops.cpu.arrays import RowLayout
        from recbole_sigma.ops.cpu.scan import selective_scan_cpu  # here, because it imports numba

        rows = RowLayout.of(u.shape, lengths, offsets)
        inputs, steps, B, C = (x.flatten(0, -2) for x in (u, delta, B, C))
        gate = None if z is None else z.flatten(0, -2)
        return selective_scan_cpu(inputs, steps, A, B, C, D, gate, delta_bias, delta_softplus, rows).view(u.shape)
    raise ValueError(f"selective_scan runs on cpu and cuda, not on {u.device.type}")


def active_backend(device: torch.device | str) -> str:
    """The library that computes the scan on `device`: "numba 0.61.2", "mamba-ssm 2.2.4, causal-conv1d 1.5.0" ...

    Raises CudaExtensionError for a CUDA device without mamba-ssm's extension.
    """
    if torch.device(device).type == "cuda":
        require_cuda_extension()
        convolution = "torch's convolution" if causal_conv1d_missing() else f"causal-conv1d {version('causal-conv1d')}"
        return f"mamba-ssm {version('mamba-ssm')}, {convolution}"
    return f"numba {version('numba')}"
