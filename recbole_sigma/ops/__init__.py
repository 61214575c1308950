"""Selective scan and causal convolution on CPU and CUDA, independent of the models and RecBole."""

from recbole_sigma.ops.conv import causal_conv1d
from recbole_sigma.ops.cuda import CudaExtensionError, cuda_extension_missing
from recbole_sigma.ops.reference import selective_scan_reference
from recbole_sigma.ops.scan import active_backend, selective_scan

__all__ = [
    "CudaExtensionError",
    "active_backend",
    "causal_conv1d",
    "cuda_extension_missing",
    "selective_scan",
    "selective_scan_reference",
]
