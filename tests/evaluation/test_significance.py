"""Paired t-tests and Holm's correction against the textbook, written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from recbole_sigma.evaluation.significance import holm, paired_p, paired_tests

_P = st.lists(st.floats(0, 1), max_size=8)
_PAIRS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=40)


def textbook_p(first: np.ndarray, second: np.ndarray) -> float:
    difference = [a - b for a, b in zip(first, second, strict=True)]
    n = len(difference)
    mean = sum(difference) / n
    variance = sum((each - mean) ** 2 for each in difference) / (n - 1)
    return float(student.sf(mean / (variance / n) ** 0.5, n - 1))


def textbook_holm(p: list[float]) -> list[float]:
    """By rejection: the corrected p is the smallest level at which the step-down procedure rejects."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    corrected = [0.0] * len(p)
    for step, index in enumerate(order):
        corrected[index] = min(1, max((len(p) - before) * p[order[before]] for before in range(step + 1)))
    return corrected


def test_p_is_that_of_the_textbook_and_one_sided():
    random = np.random.default_rng(0)
    first, second = random.random(30) + 0.5, random.random(30)
    assert paired_p(first, second) < 0.05
    assert paired_p(first, second) == pytest.approx(textbook_p(first, second), rel=1e-9)
    assert paired_p(second, first) == pytest.approx(1 - paired_p(first, second), rel=1e-9)


def test_equal_differences_give_0_or_1_and_one_pair_is_refused():
    same = np.array([0.5, 0.0, 1.0])
    assert paired_p(same, same.copy()) == 1.0
    assert paired_p(same + 0.5, same) == 0.0
    with pytest.raises(ValueError, match="two pairs"):
        paired_p(same[:1], same[1:2])


@given(_PAIRS, st.randoms())
def test_p_does_not_depend_on_the_order_of_users(pairs: list[tuple[float, float]], random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, other = np.array(pairs), np.array(shuffled)
    assert paired_p(one[:, 0], one[:, 1]) == pytest.approx(paired_p(other[:, 0], other[:, 1]), rel=1e-6, abs=1e-9)


@given(_P)
def test_holm_is_that_of_the_textbook_keeps_the_order_and_never_lowers_p(p: list[float]):
    corrected = holm(p)
    assert corrected == pytest.approx(textbook_holm(p))
    assert all(before <= after <= 1 for before, after in zip(p, corrected, strict=True))
    assert all(p[i] > p[j] or corrected[i] <= corrected[j] for i in range(len(p)) for j in range(len(p)))


def test_tests_made_together_are_corrected_together():
    random = np.random.default_rng(1)
    best = random.random(50) + 0.2
    pairs = {"A": (best, random.random(50)), "B": (best, random.random(50))}
    a, b = (paired_tests(pairs)[name] for name in "AB")
    assert [a.p, b.p] == [paired_p(*pair) for pair in pairs.values()]
    assert [a.p_holm, b.p_holm] == holm([a.p, b.p])
    assert a.n == 50 and a.difference == pytest.approx(float(np.mean(best - pairs["A"][1])))
