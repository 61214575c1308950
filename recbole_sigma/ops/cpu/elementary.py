"""Elementary functions that the compiler can vectorise, for use inside kernels.

Each is a stub with two bodies: float64 calls libm; float32 is a polynomial (LLVM has no vector `exp`, and numba's
wheels contain none that works) with coefficients from minimax fits, relative error below 1e-7.
"""

import math
from typing import Any

import numpy as np

from recbole_sigma.ops.cpu.compiler import by_dtype

_f = np.float32
_ONE, _TWO, _ZERO = _f(1), _f(2), _f(0)
_LOG2_E = _f(1.4426950408889634)
_LN_2 = 0.6931471805599453

# 2^r on [-1/2, 1/2]; the constant term is exactly 1, or the error of a product of decays would grow with their number
_E1, _E2, _E3 = _f(0.6931472028551069), _f(0.24022647913626183), _f(0.0555033247101301)
_E4, _E5, _E6 = _f(0.00961843735771809), _f(0.0013398874464485044), _f(0.00015353362000249736)
# adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; 127 is the exponent's offset
_ROUNDER = _f(12582912 + 127)
_LOWEST, _HIGHEST = _f(-127), _f(128)  # there the exponent bits read 0 (exactly zero) and 255 (infinity)
_EXPONENT_SHIFT = np.int32(23)

# atanh(s) / s in powers of s^2, s in [0, 1/3]
_T1, _T2 = _f(0.333332081426862), _f(0.20010763629903855)
_T3, _T4 = _f(0.14000902441577082), _f(0.14005994476909153)


def _exp2_single(x: Any) -> Any:
    x = min(max(x, _LOWEST), _HIGHEST)  # x comes first, so that NaN passes through
    rounded = np.float32(x + _ROUNDER)
    r = x - (rounded - _ROUNDER)
    power = (((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _ONE
    return power * np.int32(rounded.view(np.int32) << _EXPONENT_SHIFT).view(np.float32)


@by_dtype(_exp2_single, lambda x: math.exp(x * _LN_2))
def exp2(x: Any) -> Any:
    """2^x for any x: 0 below the smallest normal number, infinity above the largest, NaN for NaN."""


@by_dtype(lambda x: _ONE / (_ONE + exp2(-x * _LOG2_E)), lambda x: 1.0 / (1.0 + math.exp(-x)))
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)"""


def _softplus_single(x: Any) -> Any:
    # log(1 + e) = 2 atanh(e / (2 + e)): no branch, and accurate relative to its own size however small e is
    e = exp2(-abs(x) * _LOG2_E)
    s = e / (_TWO + e)
    square = s * s
    series = (((_T4 * square + _T3) * square + _T2) * square + _T1) * square + _ONE
    return (x if x > _ZERO else _ZERO) + _TWO * s * series


@by_dtype(_softplus_single, lambda x: (x if x > 0.0 else 0.0) + math.log1p(math.exp(-abs(x))))
def softplus(x: Any) -> Any:
    """log(1 + e^x)"""
