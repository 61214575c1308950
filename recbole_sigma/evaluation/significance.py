"""Paired t-tests of one model against others, with Holm's correction."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel

LEVEL = 0.05
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class PairedTest:
    """One-sided paired t-test: is the first of a pair larger?"""

    difference: float  # mean of first minus second
    p: float  # of this test alone
    p_holm: float  # corrected for all tests made together
    n: int  # number of pairs

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below LEVEL."""
        return self.p_holm < LEVEL


def paired_tests(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, PairedTest]:
    """Test each name's (first, second), (n,) each, of the same users or seeds; Holm's correction is over all names."""
    p_values = [paired_p(first, second) for first, second in pairs.values()]
    return {
        name: PairedTest(float(np.mean(first - second)), p, p_holm, len(first))
        for (name, (first, second)), p, p_holm in zip(pairs.items(), p_values, holm(p_values), strict=True)
    }


def paired_p(first: np.ndarray, second: np.ndarray) -> float:
    """p of the test that `first` is larger, (n,), (n,); 1 without any difference. ValueError for fewer than 2 pairs."""
    if len(first) < 2:
        raise ValueError("a paired test needs at least two pairs")
    if np.array_equal(first, second):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the same difference in all pairs: p is 0 or 1
        return float(ttest_rel(first, second, alternative="greater").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest of m p-values times m, the next times m - 1, ..., made monotonic."""
    corrected = np.empty(len(p))
    order = np.argsort(p, kind="stable")
    steps = np.arange(len(p), 0, -1) * np.asarray(p, dtype=float)[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()
