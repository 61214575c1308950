"""Paired t-tests and Holm's correction against the textbook, written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from recbole_sigma.evaluation.significance import holm, paired_p, paired_tests

_P = st.lists(st.floats(0, 1), min_size=1, max_size=8)
_PAIRS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=40)


def textbook_p(first: np.ndarray, second: np.ndarray) -> float:
    difference = [a - b for a, b in zip(first, second, strict=True)]
    n = len(difference)
    mean = sum(difference) / n
    variance = sum((each - mean) ** 2 for each in difference) / (n - 1)
    return float(student.sf(mean / (variance / n) ** 0.5, n - 1))


def textbook_holm(p: list[float]) -> list[float]:
    """By rejection: the corrected p is the smallest level at which the step-down procedure rejects."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected = [0.0] * len(p)
    for step, place in enumerate(order):
        corrected[place] = min(1, max((len(p) - before) * p[order[before]] for before in range(step + 1)))
    return corrected


def test_p_is_that_of_the_textbook():
    random = np.random.default_rng(0)
    first, second = random.random(30) + 0.1, random.random(30)
    assert paired_p(first, second) == pytest.approx(textbook_p(first, second), rel=1e-9)
    assert paired_p(second, first) == pytest.approx(1 - paired_p(first, second), rel=1e-9)


def test_the_test_is_one_sided():
    worse, better = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.4, 0.6])
    assert paired_p(better, worse) < 0.05
    assert paired_p(worse, better) > 0.95


def test_no_difference_in_any_pair_is_no_significance():
    same = np.array([0.5, 0.0, 1.0])
    assert paired_p(same, same.copy()) == 1.0


def test_the_same_difference_in_all_pairs_is_certain():
    assert paired_p(np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.5, 2.5])) == 0.0


def test_one_pair_is_refused():
    with pytest.raises(ValueError, match="two pairs"):
        paired_p(np.array([1.0]), np.array([0.0]))


@given(_PAIRS, st.randoms())
def test_p_does_not_depend_on_the_order_of_users(pairs: list[tuple[float, float]], random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, other = np.array(pairs), np.array(shuffled)
    assert paired_p(one[:, 0], one[:, 1]) == pytest.approx(paired_p(other[:, 0], other[:, 1]), rel=1e-6, abs=1e-9)


@given(_P)
def test_holm_is_that_of_the_textbook(p: list[float]):
    assert holm(p) == pytest.approx(textbook_holm(p))


@given(_P)
def test_holm_keeps_the_order_and_never_lowers_p(p: list[float]):
    corrected = holm(p)
    assert all(after >= before and after <= 1 for before, after in zip(p, corrected, strict=True))
    for i, one in enumerate(p):
        for j, other in enumerate(p):
            assert one > other or corrected[i] <= corrected[j]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_tests_made_together_are_corrected_together():
    random = np.random.default_rng(1)
    best = random.random(50) + 0.2
    pairs = {"A": (best, random.random(50)), "B": (best, random.random(50))}
    tests = paired_tests(pairs)
    assert [tests[name].p for name in "AB"] == [paired_p(*pairs[name]) for name in "AB"]
    assert [tests[name].p_holm for name in "AB"] == holm([tests["A"].p, tests["B"].p])
    assert tests["A"].n == 50
    assert tests["A"].difference == pytest.approx(float(np.mean(best - pairs["A"][1])))
