"""The selective scan: one function for CPU and CUDA."""

from importlib.metadata import version

import torch
from torch import Tensor

from recbole_sigma.ops.cuda import causal_conv1d_missing, require_cuda_extension, selective_scan_cuda


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

    Returns y (B, L, E), in u's dtype. Raises TypeError for wrong dtypes, ValueError for wrong shapes, lengths and
    devices, and CudaExtensionError for CUDA tensors without mamba-ssm's extension.
    """
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must be (B, L, E) and A (E, N), not {tuple(u.shape)} and {tuple(A.shape)}")
    (rows, length, channels), states = u.shape, A.shape[1]
    wide, narrow = (rows, length, channels), (rows, length, states)
    check_tensors(
        u.device, u=(u, wide), delta=(delta, wide), A=(A, (channels, states)), B=(B, narrow), C=(C, narrow),
        D=(D, (channels,)), z=(z, wide), delta_bias=(delta_bias, (channels,)),
    )  # fmt: skip
    check_lengths(lengths, rows, length)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths)
    if u.device.type == "cuda":
        return selective_scan_cuda(*arguments)
    if u.device.type == "cpu":
        from recbole_sigma.ops.cpu.scan import selective_scan_cpu  # here, because it imports numba

        return selective_scan_cpu(*arguments)
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


def check_tensors(device: torch.device, **expected: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises unless each named tensor is None or a floating-point one of its expected shape, on `device`."""
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, not {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the first argument on {device}")


def check_lengths(lengths: Tensor | None, rows: int, length: int) -> None:
    """Raises unless `lengths` has an integer from 0 to `length` per row; unread on CUDA (a synchronisation)."""
    if lengths is None:
        return
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, not {lengths.dtype}")
    if lengths.shape != (rows,):
        raise ValueError(f"lengths must have shape {(rows,)}, not {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and rows:
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 0 or longest > length:
            raise ValueError(f"lengths must lie in 0 .. {length}, not in {shortest} .. {longest}")
