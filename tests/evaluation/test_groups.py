"""Groups of users by the length of their full history."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_sigma.errors import UserError
from recbole_sigma.evaluation.groups import target_groups, user_groups


def test_groups_are_half_open():
    groups = user_groups(np.array([0, 4, 5, 19, 20, 300]))
    assert [group.title for group in groups] == ["Short 0-5", "Medium 5-20", "Long 20+"]
    assert [group.members.nonzero()[0].tolist() for group in groups] == [[0, 1], [2, 3], [4, 5]]
    assert [group.count for group in groups] == [2, 2, 2]


def test_groups_of_other_bounds_are_named_by_their_lengths():
    groups = user_groups(np.array([1, 2, 3]), [3])
    assert [(group.title, group.count) for group in groups] == [("0-3", 2), ("3+", 1)]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=50), st.sets(st.integers(1, 400), min_size=1, max_size=5))
def test_each_user_is_in_one_group(lengths: list[int], bounds: set[int]):
    groups = user_groups(np.array(lengths), sorted(bounds))
    assert len(groups) == len(bounds) + 1
    assert sum(group.members.astype(int) for group in groups).tolist() == [1] * len(lengths)


@pytest.mark.parametrize("bounds", [[], [0, 5], [5, 5], [20, 5]])
def test_bounds_that_do_not_grow_are_refused(bounds: list[int]):
    with pytest.raises(UserError, match=r"bounds .* 5,20"):
        user_groups(np.array([1]), bounds)


def test_groups_of_targets_begin_with_items_that_training_does_not_have():
    groups = target_groups(np.array([0, 1, 4, 5, 20, 0]))
    assert [group.title for group in groups] == ["Unseen 0-1", "Rare 1-5", "Common 5-20", "Frequent 20+"]
    assert [group.count for group in groups] == [2, 2, 1, 1] and {group.by for group in groups} == {"target"}
