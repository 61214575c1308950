"""CUDA work goes to the kernels of mamba-ssm and causal-conv1d.

Nothing of theirs is imported before a CUDA tensor asks for it.
"""

from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

# pip does nothing for a package that stands there without its extension
INSTALL = (
    "pip uninstall -y causal-conv1d mamba-ssm; "
    "CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE "
    "pip install --no-build-isolation --no-cache-dir causal-conv1d mamba-ssm"
)
_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
# what a missing or half-built extension raises while it loads
LOADING_FAILS = (ImportError, OSError, RuntimeError, AttributeError)
WIDEST_KERNEL = 4  # causal-conv1d knows widths 2 to 4
ALIGNED = 8  # and, where channels lie next to each other, reads so many at a time
MOST_STATES = 256  # mamba-ssm's kernels have no room for more


class CudaExtensionError(RuntimeError):
    """mamba-ssm's compiled selective scan cannot be loaded. The message says why and how to install it."""


@cache
def cuda_extension_missing() -> str | None:
    """Why the extension `selective_scan_cuda`, or what calls it, cannot be loaded; None if both can.

    The extension is what matters: newer mamba-ssm imports without it and fails at the first call. The other way
    round, the extension loads where mamba-ssm was installed without what it imports (`--no-deps`).
    """
    try:
        import_module("selective_scan_cuda")
        import_module(_INTERFACE)
    except LOADING_FAILS as error:
        return f"{type(error).__name__}: {error}"
    return None


def require_cuda_extension() -> None:
    """Raises CudaExtensionError unless the extension can be loaded."""
    reason = cuda_extension_missing()
    if reason is not None:
        raise CudaExtensionError(
            "selective_scan on CUDA needs mamba-ssm's extension selective_scan_cuda, which cannot be loaded "
            f"({reason}). Install it with\n    {INSTALL}\nor run on the CPU (use_gpu: False)."
        )


def padding(lengths: Tensor, x: Tensor) -> Tensor:
    """(B,) and (B, L, E) -> (B, L, 1), true beyond each row's end"""
    return (torch.arange(x.shape[1], device=x.device) >= lengths.to(x.device)[:, None])[..., None]


def selective_scan_cuda(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
) -> Tensor:
    """`recbole_sigma.ops.selective_scan` for CUDA tensors. Padding must be finite: it is computed and then masked.

    Raises:
        CudaExtensionError: mamba-ssm or its extension is not installed
        TypeError: float64, which the extension does not know
        ValueError: more than MOST_STATES states
    """
    require_cuda_extension()
    if u.dtype == torch.float64:
        raise TypeError(
            "selective_scan on CUDA takes float32, float16 or bfloat16; for float64 there is selective_scan_reference"
        )
    if A.shape[1] > MOST_STATES:
        raise ValueError(f"selective_scan on CUDA takes at most {MOST_STATES} states, not {A.shape[1]}")
    if u.numel() == 0:  # no kernel starts for nothing
        return torch.zeros_like(u)
    scan = import_module(_INTERFACE).selective_scan_fn
    # mamba-ssm wants (B, E, L), the parameters in float32 and all else in one dtype
    inputs, steps, to_state, from_state = (x.to(u.dtype).transpose(1, 2) for x in (u, delta, B, C))
    gate = None if z is None else z.to(u.dtype).transpose(1, 2)
    skip, bias = (None if x is None else x.float() for x in (D, delta_bias))
    y = scan(inputs, steps, A.float(), to_state, from_state, skip, gate, bias, delta_softplus).transpose(1, 2)
    return y if lengths is None else y.masked_fill(padding(lengths, y), 0)


@cache
def causal_conv1d_missing() -> str | None:
    """Why causal-conv1d cannot be loaded, or None if it can. Without it torch's convolution does the same work."""
    try:
        import_module("causal_conv1d_cuda")
        import_module("causal_conv1d")
    except LOADING_FAILS as error:
        return f"{type(error).__name__}: {error}"
    return None


def _kernel_takes(x: Tensor, width: int) -> bool:
    """Whether causal-conv1d can convolve x (B, L, E) as it lies in memory."""
    aligned = all(n % ALIGNED == 0 for n in (x.shape[2], x.stride(0), x.stride(1), x.storage_offset()))
    return aligned and x.stride(2) == 1 and 2 <= width <= WIDEST_KERNEL and x.dtype != torch.float64


def causal_conv1d_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str | None, lengths: Tensor | None
) -> Tensor:
    """`recbole_sigma.ops.causal_conv1d` for CUDA tensors: causal-conv1d where it is installed and can, else torch."""
    if x.numel() and _kernel_takes(x, weight.shape[1]) and causal_conv1d_missing() is None:
        convolve = import_module("causal_conv1d").causal_conv1d_fn  # takes float32 weights beside half precision
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
