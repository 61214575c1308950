"""Selective scan and causal convolution on CPU and CUDA. Knows torch and its kernel libraries, nothing of models or of RecBole."""

from recbole_sigma.ops.reference import selective_scan_reference
from recbole_sigma.ops.scan import selective_scan

__all__ = ["selective_scan", "selective_scan_reference"]
