"""Folds of slides: no patient on two sides, labels balanced, the same under a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.splits import check_sides, inner_split, named_folds, patient_folds, strata_of
from sealst._errors import DataError, LeakError


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(2, 5))
def test_no_patient_on_both_sides(seed: int, n: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(5), rng.integers(0, max(5, n // 2), n)]).astype(str)
    strata = rng.integers(0, 2, len(patients))
    found = patient_folds(patients, strata, n_folds, seed=seed)
    assert sorted(np.concatenate([test for _, test in found])) == list(range(len(patients)))
    for train, test in found:
        assert not set(patients[train]) & set(patients[test])
    learn, watch = inner_split(patients, strata, seed=seed)
    assert sorted([*learn, *watch]) == list(range(len(patients)))
    assert not set(patients[learn]) & set(patients[watch])


def test_folds_are_stratified_and_repeat_under_a_seed() -> None:
    patients, strata = np.arange(40).astype(str), np.repeat([0, 1], [30, 10])
    found = patient_folds(patients, strata, 5, seed=1)
    assert [strata[test].sum() for _, test in found] == [2] * 5
    again, other = (patient_folds(patients, strata, 5, seed=s) for s in (1, 2))
    assert all((a[1] == b[1]).all() for a, b in zip(found, again, strict=True))
    assert any(list(a[1]) != list(b[1]) for a, b in zip(found, other, strict=True))


def test_numbers_are_balanced_by_quarters() -> None:
    assert np.bincount(strata_of(np.linspace(0, 1, 40))).tolist() == [10, 10, 10, 10]
    assert strata_of(np.array(["b", "a", "b"])).tolist() == [1, 0, 1]


def test_few_patients_are_not_spared_for_watching() -> None:
    learn, watch = inner_split(np.arange(6).astype(str), np.tile([0, 1], 3), seed=0)
    assert len(learn) == 6
    assert not len(watch)


def test_both_inner_sides_hold_every_class() -> None:
    patients, strata = np.arange(30).astype(str), np.array([0] * 26 + [1] * 4)
    learn, watch = inner_split(patients, strata, seed=0)
    assert set(strata[learn]) == set(strata[watch]) == {0, 1}
    assert not len(inner_split(patients, np.array([0] * 29 + [1]), seed=0)[1])


def _labels(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    return {
        "numbers": rng.normal(size=n),
        "ties": np.repeat([0.0, 1.0, 2.0], [n - 4, 2, 2]),
        "two": np.arange(n) % 2,
        "three": np.arange(n) % 3,
        "seven": np.arange(n) % 7,
        "events": (np.arange(n) % 4 == 0).astype(int),
    }[kind]


@pytest.mark.parametrize("kind", ["numbers", "ties", "two", "three", "seven", "events"])
def test_few_patients_have_folds_too(kind: str) -> None:
    for n in range(6, 25):
        patients, labels = np.arange(n).astype(str), _labels(kind, n)
        for n_folds in (2, 3, 5, 6):
            found = patient_folds(patients, strata_of(labels, n_folds), n_folds, seed=n)
            assert sorted(np.concatenate([test for _, test in found])) == list(range(n))
        learn, watch = inner_split(patients, strata_of(labels), seed=n)
        assert sorted([*learn, *watch]) == list(range(n))
        assert len(watch) <= n / 3 + 1


def test_small_classes_are_watched_in_a_larger_part() -> None:
    strata = np.repeat([0, 1, 2], 4)
    watch = inner_split(np.arange(12).astype(str), strata, seed=0)[1]
    assert sorted(strata[watch]) == [0, 1, 2]
    assert np.bincount(strata_of(np.linspace(0, 1, 19), 5)).tolist() == [6, 6, 7]


def test_one_patient_with_most_slides_is_not_split() -> None:
    patients = np.array(["big"] * 60 + [f"p{i}" for i in range(9)])
    for seed in range(5):
        learn, watch = inner_split(patients, np.arange(69) % 2, seed=seed)
        assert sorted([*learn, *watch]) == list(range(69))


def test_named_folds() -> None:
    patients, sites = np.array(["a", "a", "b", "c"]), np.array(["x", "x", "y", "y"])
    assert {name: test.tolist() for name, (_, test) in named_folds(patients, sites).items()} == {
        "x": [0, 1],
        "y": [2, 3],
    }
    with pytest.raises(LeakError, match=r"'a' have slides in several folds"):
        named_folds(patients, np.array(["x", "y", "y", "y"]))
    with pytest.raises(DataError, match="holds one value"):
        named_folds(patients, np.full(4, "x"))
    # Tables of results keep the blank name for all folds together.
    for blank in ("", " "):
        with pytest.raises(DataError, match=r"is blank in 2 slide\(s\)"):
            named_folds(patients, np.array(["x", "x", blank, blank]))


def test_errors() -> None:
    with pytest.raises(DataError, match=r"between 2 and the number of patients \(3\), found 4"):
        patient_folds(np.array(["a", "b", "c"]), np.zeros(3), 4, seed=0)
    with pytest.raises(LeakError, match="'a' stand on both sides"):
        check_sides(np.array(["a", "a", "b"]), np.array([0]), np.array([1, 2]))
