from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core import splits
from sealst._errors import DataError


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=60), n_folds=st.none() | st.integers(2, 6))
def test_folds_cover_every_row_once_and_never_cut_a_group(groups, n_folds) -> None:
    groups = np.array(groups)
    known = np.unique(groups)
    if len(known) < 2 or (n_folds or 2) > len(known):
        return
    folds = splits.group_folds(groups, n_folds)
    assert len(folds) == (n_folds or len(known))
    tested = np.concatenate([test for _, test in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(groups)))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == len(groups)


def test_folds_balance_rows() -> None:
    groups = np.repeat(np.arange(6), [60, 10, 10, 10, 20, 10])
    assert sorted(len(test) for _, test in splits.group_folds(groups, 2)) == [60, 60]


@pytest.mark.parametrize("n_folds", [1, 4])
def test_impossible_numbers_of_folds_are_refused(n_folds: int) -> None:
    with pytest.raises(DataError, match=rf"between 2 and the number of groups \(3\), found {n_folds}"):
        splits.group_folds(np.array(["a", "b", "c"]), n_folds)


def test_blocks_are_squares_of_the_given_size() -> None:
    xy = np.array([[10, 10], [19.9, 10], [20, 10], [10, 20], [35, 10]])
    labels = splits.spatial_blocks(xy, 10.0)
    assert labels[0] == labels[1]
    assert len(set(labels)) == 4
    assert set(labels) == set(range(4))
    # Half a block to the left: the first two points now belong to different blocks.
    shifted = splits.spatial_blocks(xy, 10.0, shift=np.array([0.5, 0.0]))
    assert shifted[0] != shifted[1] == shifted[2]


def test_near_counts_the_distance_itself() -> None:
    xy = np.array([[0.0, 0], [1, 0], [2, 0]])
    np.testing.assert_array_equal(splits.near(xy, np.array([[0.0, 0]]), 1.0), [True, True, False])
    np.testing.assert_array_equal(splits.near(xy, np.empty((0, 2)), 1.0), [False] * 3)


def test_shared_groups_name_the_sections_of_both_sides() -> None:
    train = {"s1": ["A"], "s2": ["B", "C"], "s3": ["C"]}
    test = {"s4": ["C"], "s5": ["D"]}
    assert splits.shared_groups(train, test) == {"C": (["s2", "s3"], ["s4"])}
    assert splits.shared_groups(train, {"s5": ["D"]}) == {}
