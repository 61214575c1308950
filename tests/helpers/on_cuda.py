"""Where the tests of CUDA run, and what they need; see tests/model/test_cuda.py."""

import math
import os

import pytest
import torch
from torch import Tensor

from recbole_sigma.environment import no_gpu
from recbole_sigma.ops import cuda

ON = os.environ.get("RECBOLE_SIGMA_CUDA_TESTS_ON")
INSTEAD = ON == "cpu"  # the CPU instead of a GPU
GPU = not INSTEAD
MISSING = None if INSTEAD else no_gpu()
WITHOUT_SCAN = None if INSTEAD or MISSING else cuda.cuda_extension_missing()
if ON == "cuda" and (MISSING or WITHOUT_SCAN or cuda.causal_conv1d_missing()):
    reason = MISSING or WITHOUT_SCAN or cuda.causal_conv1d_missing()
    pytest.exit(f"nothing can be tested on CUDA: {reason}; see recbole-sigma env", returncode=1)

needs_gpu = pytest.mark.skipif(MISSING is not None, reason=f"no GPU that torch can see: {MISSING}")
needs_scan = pytest.mark.skipif(WITHOUT_SCAN is not None, reason=f"no mamba-ssm: {WITHOUT_SCAN}")
needs_mamba_ssm = pytest.mark.skipif(INSTEAD or WITHOUT_SCAN is not None, reason="compares with mamba_ssm.Mamba")
needs_two = pytest.mark.skipif(INSTEAD or torch.cuda.device_count() < 2, reason="needs two GPUs")
DEVICE = torch.device("cpu" if INSTEAD else "cuda")
CPU = torch.device("cpu")


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], scores: float, gradients: float) -> None:
    """Scores and loss within a fraction of their largest value; gradients of their norm, or of the norm of all."""
    assert got.keys() == expected.keys()
    total = math.sqrt(sum(float(each.square().sum()) for each in expected.values()))
    for name, want in expected.items():
        assert got[name].isfinite().all(), name
        if name in ("scores", "loss"):
            assert (got[name] - want).abs().max() <= scores * want.abs().max(), name
        else:
            assert (got[name] - want).norm() <= gradients * (want.norm() + 1e-3 * total), name
