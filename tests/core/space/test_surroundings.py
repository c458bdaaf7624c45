"""Means over what lies around a spot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sealst as sl
from sealst._core.space import surroundings as module
from sealst._core.space.surroundings import beside_surroundings, common_pitch, patches, surroundings


def lattice(n: int, pitch: float = 100.0) -> np.ndarray:
    return np.stack(np.divmod(np.arange(n * n), n), axis=1) * pitch


@given(seed=st.integers(0, 1000), width=st.floats(20, 400), shift=st.floats(-1e5, 1e5))
def test_it_is_the_weighted_mean_within_three_widths(seed, width, shift):
    rng = np.random.default_rng(seed)
    xy, values = rng.uniform(0, 1000, (30, 2)), rng.normal(size=(30, 3))
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    weight = np.exp(-0.5 * (distance / width) ** 2) * (distance <= 3 * width)
    expected = weight @ values / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(surroundings(values, xy, width), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(surroundings(values, xy + shift, width), expected, rtol=1e-6, atol=1e-6)
    order = rng.permutation(30)
    np.testing.assert_allclose(surroundings(values[order], xy[order], width), expected[order], rtol=1e-9, atol=1e-9)


def test_a_lone_spot_is_its_own_surroundings():
    values = np.array([[1.0, 2.0], [5.0, 6.0]], dtype=np.float32)
    found = beside_surroundings(values, np.array([[0, 0], [1e4, 0]]), 100.0)
    np.testing.assert_array_equal(found, np.hstack([values, values]))
    assert found.dtype == np.float32


def test_rows_come_in_blocks_without_a_difference(monkeypatch):
    xy, values = lattice(9), np.random.default_rng(0).normal(size=(81, 4))
    whole = surroundings(values, xy, 100.0)
    monkeypatch.setattr(module, "_ROWS", 7)
    np.testing.assert_allclose(surroundings(values, xy, 100.0), whole, rtol=1e-12)


@pytest.mark.parametrize("xy", [np.zeros((2, 2)), np.full((3, 2), np.nan), np.zeros((3, 3))])
def test_positions_that_do_not_do(xy):
    with pytest.raises(sl.DataError, match="finite position in µm for each of 3 spots"):
        surroundings(np.zeros((3, 1)), xy, 1.0)


def test_the_pitch_that_sections_share():
    assert common_pitch([lattice(5), lattice(5, 200.0), lattice(5)]) == pytest.approx(100)
    unknown = np.full((4, 2), np.nan)
    assert common_pitch([unknown, lattice(5, 55.0)]) == pytest.approx(55)
    assert common_pitch([unknown, np.zeros((1, 2))]) is None


def test_patches_keep_neighbours_together():
    xy = lattice(40)
    rows = patches(xy, 250)
    assert len(rows) <= 250
    assert (np.diff(rows) > 0).all()
    near = np.sort(np.linalg.norm(xy[rows][:, None] - xy[rows][None], axis=2), axis=1)[:, 1:5]
    assert (near.max(axis=1) <= 300).all()
    spread = np.histogram2d(*xy[rows].T, bins=2)[0]
    assert (spread > 0).all()
    np.testing.assert_array_equal(patches(xy, 1600), np.arange(1600))
    assert len(patches(xy, 3)) <= 3
