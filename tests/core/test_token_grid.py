"""Crops on a grid of tokens, and what is stitched of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.space.token_grid import TokenGrid, overlaps, stitched
from sealst._core.space.views import N_SYMMETRIES, symmetry, turned_back


@st.composite
def grids(draw):
    side = draw(st.integers(2, 6))
    overlap = draw(st.integers(0, side - 1))
    size = st.floats(5, 300)
    return TokenGrid(side, overlap, draw(st.sampled_from([7.0, 10.0, 16.3])), int(draw(size)), int(draw(size)))


def cut(grid: TokenGrid, whole: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Crops of a map."""
    return np.stack([whole[r * grid.step :][: grid.side, c * grid.step :][:, : grid.side] for r, c in places])


def pieces(grid: TokenGrid, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map that reaches as far as the crops do, all places, and their crops."""
    shape = [(n - 1) * grid.step + grid.side for n in grid.crops]
    whole = np.random.default_rng(seed).standard_normal((*shape, 2)).astype(np.float32)
    places = grid.holding(np.ones(grid.shape, dtype=bool))
    return whole, places, cut(grid, whole, places)


@settings(max_examples=60, deadline=None)
@given(grids(), st.integers(1, 7))
def test_a_map_that_was_cut_into_crops_is_put_together_again(grid, batch):
    whole, places, crops = pieces(grid)
    assert len(places) == np.prod(grid.crops)
    parts = [(places[i : i + batch], crops[i : i + batch]) for i in range(0, len(places), batch)]
    bands = list(stitched(grid, parts, 2))
    assert [band.top for band in bands] == [i * grid.step for i in range(grid.crops[0])]
    found = np.concatenate([band.values for band in bands])
    assert all(band.covered.all() for band in bands)
    np.testing.assert_allclose(found, whole[: grid.shape[0], : grid.shape[1]], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(grids(), st.data())
def test_a_map_can_be_gone_on_with_at_any_row(grid, data):
    _, places, crops = pieces(grid)
    every = list(stitched(grid, [(places, crops)], 2))
    first = data.draw(st.integers(0, grid.crops[0] - 1))
    kept = places[:, 0] >= first - grid.n_shared
    rest = list(stitched(grid, [(places[kept], crops[kept])], 2, first=first))
    assert [band.top for band in rest] == [band.top for band in every[first:]]
    for one, other in zip(rest, every[first:], strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(grids(), st.data())
def test_every_token_that_is_wanted_is_in_a_crop(grid, data):
    wanted = np.zeros(grid.shape, dtype=bool)
    for _ in range(data.draw(st.integers(1, 4))):
        wanted[data.draw(st.integers(0, grid.shape[0] - 1)), data.draw(st.integers(0, grid.shape[1] - 1))] = True
    places = grid.holding(wanted)
    covered = np.zeros(grid.shape, dtype=bool)
    for row, column in places:
        part = np.s_[row * grid.step : row * grid.step + grid.side, column * grid.step : column * grid.step + grid.side]
        assert wanted[part].any()
        covered[part] = True
    assert covered[wanted].all()


def test_places_without_a_crop_are_told():
    grid = TokenGrid(4, 1, 10.0, 100, 100)
    places = np.array([[1, 1]])
    bands = list(stitched(grid, [(places, np.ones((1, 4, 4, 1), dtype=np.float32))], 1))
    covered = np.concatenate([band.covered for band in bands])
    assert covered.shape == grid.shape
    assert covered.sum() == 16
    assert covered[3:7, 3:7].all()


def test_tokens_at_the_border_of_a_crop_count_less():
    grid = TokenGrid(4, 1, 10.0, 40, 70)
    places = np.array([[0, 0], [0, 1]])
    crops = np.stack([np.zeros((4, 4, 1)), np.ones((4, 4, 1))]).astype(np.float32)
    (band,) = stitched(grid, [(places, crops)], 1)
    assert band.values[0, :, 0].tolist() == [0, 0, 0, 0.5, 1, 1, 1]
    assert grid.weights[0, 0] < grid.weights[1, 1]


def test_boxes_lie_where_tokens_do():
    grid = TokenGrid(4, 1, 10.0, 100, 100)
    assert grid.boxes(np.array([[0, 0], [1, 2]])).tolist() == [[0, 0, 40, 40], [60, 30, 100, 70]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.floats(1, 9), st.floats(1, 30))
def test_bins_share_out_all_of_their_source(n, source, target):
    m = int(np.ceil(n * source / target - 1e-9))
    found = overlaps(n, source, m, target)
    np.testing.assert_allclose(found.sum(axis=0), source, rtol=1e-6, atol=1e-6)
    assert (found.sum(axis=1) <= target + 1e-6).all()


@pytest.mark.parametrize("code", range(N_SYMMETRIES))
def test_grids_of_turned_crops_are_turned_back(code):
    crops = np.random.default_rng(0).integers(0, 255, (2, 5, 5, 3))
    np.testing.assert_array_equal(turned_back(symmetry(crops, code), code), crops)
