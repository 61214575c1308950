"""CUDA work goes to the kernels of mamba-ssm and causal-conv1d, imported when a CUDA tensor first needs them."""

from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

# pip does nothing for a package that is installed without its extension, hence the uninstall
INSTALL = (
    "pip uninstall -y causal-conv1d mamba-ssm; "
    "CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE "
    "pip install --no-build-isolation --no-cache-dir causal-conv1d mamba-ssm"
)
_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
LOADING_FAILS = (ImportError, OSError, RuntimeError, AttributeError)  # importing a missing or half-built extension
WIDEST_KERNEL = 4  # causal-conv1d supports widths 2 to 4
ALIGNED = 8  # and reads this many channels at a time where they are adjacent in memory
MOST_STATES = 256  # the limit of mamba-ssm's kernels


class CudaExtensionError(RuntimeError):
    """mamba-ssm's compiled selective scan cannot be loaded. The message says why and how to install it."""


@cache
def cuda_extension_missing() -> str | None:
    """Why the extension `selective_scan_cuda` or its Python interface cannot be loaded; None if both can.

    Newer mamba-ssm imports without the extension, and the extension loads without mamba-ssm's dependencies.
    """
    return _why_missing("selective_scan_cuda", _INTERFACE)


def require_cuda_extension() -> None:
    """Raises CudaExtensionError unless the extension can be loaded."""
    reason = cuda_extension_missing()
    if reason is not None:
        raise CudaExtensionError(
            "selective_scan on CUDA needs mamba-ssm's extension selective_scan_cuda, which cannot be loaded "
            f"({reason}). Install it with\n    {INSTALL}\nor run on the CPU (use_gpu: False)."
        )


def padding(lengths: Tensor, x: Tensor) -> Tensor:
    """The padding of x: (B,), (B, L, E) -> (B, L, 1) bool, True beyond each row's end"""
    return (torch.arange(x.shape[1], device=x.device) >= lengths.to(x.device)[:, None])[..., None]


def selective_scan_cuda(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, lengths: Tensor | None,
) -> Tensor:  # fmt: skip
    """`recbole_sigma.ops.selective_scan` for CUDA tensors. Padding must be finite: it is computed and then masked.

    Raises CudaExtensionError without the extension, TypeError for float64, ValueError for more than MOST_STATES states.
    """
    require_cuda_extension()
    if u.dtype == torch.float64:
        raise TypeError(
            "selective_scan on CUDA supports float32, float16 and bfloat16; use selective_scan_reference for float64"
        )
    if A.shape[1] > MOST_STATES:
        raise ValueError(f"selective_scan on CUDA takes at most {MOST_STATES} states, not {A.shape[1]}")
    if u.numel() == 0:  # a kernel cannot be launched on nothing
        return torch.zeros_like(u)
    scan = import_module(_INTERFACE).selective_scan_fn
    # mamba-ssm takes (B, E, L), the parameters in float32 and everything else in one dtype
    inputs, steps, to_state, from_state = (x.to(u.dtype).transpose(1, 2) for x in (u, delta, B, C))
    gate = None if z is None else z.to(u.dtype).transpose(1, 2)
    skip, bias = (None if x is None else x.float() for x in (D, delta_bias))
    y = scan(inputs, steps, A.float(), to_state, from_state, skip, gate, bias, delta_softplus).transpose(1, 2)
    return y if lengths is None else y.masked_fill(padding(lengths, y), 0)


@cache
def causal_conv1d_missing() -> str | None:
    """Why causal-conv1d cannot be loaded; None if it can. Without it, torch's convolution is used."""
    return _why_missing("causal_conv1d_cuda", "causal_conv1d")


def _why_missing(*modules: str) -> str | None:
    try:
        for module in modules:
            import_module(module)
    except LOADING_FAILS as error:
        return f"{type(error).__name__}: {error}"
    return None


def causal_conv1d_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None, lengths: Tensor | None
) -> Tensor:
    """`recbole_sigma.ops.causal_conv1d` for CUDA tensors: by causal-conv1d if it is installed and supports x."""
    aligned = all(n % ALIGNED == 0 for n in (x.shape[2], x.stride(0), x.stride(1), x.storage_offset()))
    supported = aligned and x.stride(2) == 1 and 2 <= weight.shape[1] <= WIDEST_KERNEL and x.dtype != torch.float64
    if x.numel() and supported and causal_conv1d_missing() is None:
        convolve = import_module("causal_conv1d").causal_conv1d_fn  # float32 weights go with half precision, too
        y = convolve(x.transpose(1, 2), weight, bias, activation=activation).transpose(1, 2)
    else:
        y = causal_conv1d_torch(x, weight, bias, activation)
    return y if lengths is None else y.masked_fill(padding(lengths, y), 0)


def causal_conv1d_torch(x: Tensor, weight: Tensor, bias: Tensor, activation: str | None) -> Tensor:
    """(B, L, E) -> (B, L, E) by torch's own convolution."""
    channels, width = weight.shape
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    y = F.conv1d(padded, weight.to(x.dtype)[:, None], bias.to(x.dtype), groups=channels).transpose(1, 2)
    return F.silu(y) if activation == "silu" else y
