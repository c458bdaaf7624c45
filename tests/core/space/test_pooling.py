from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.space import pooling
from sealst._core.space.geometry import apply_affine
from sealst._core.space.pooling import PointCounter, SquareGrid, pool_rows, sum_columns


def similarity(scale: float, turn: float, mirrored: bool, shift: tuple[float, float]) -> np.ndarray:
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    flip = -1 if mirrored else 1
    return np.array([[flip * c, -s, shift[0]], [flip * s, c, shift[1]], [0, 0, 1]])


# -- squares ----------------------------------------------------------------------------------------------------------
def test_squares_start_at_the_top_left_and_cover_the_image() -> None:
    grid = SquareGrid(10.0, 25, 31)
    assert grid.shape == (4, 3)
    xy = np.array([[0.0, 0.0], [9.99, 0], [10.0, 0], [24.9, 30.9], [0, 10]])
    assert grid.locate(xy).tolist() == [0, 0, 1, 11, 3]
    np.testing.assert_array_equal(grid.centres(np.array([0, 1, 11])), [[5, 5], [15, 5], [25, 35]])
    assert grid.positions(np.array([11])).tolist() == [[3, 2]]


@pytest.mark.parametrize("point", [(-1e-9, 5), (5, -0.1), (25, 5), (5, 31), (np.nan, 5), (5, np.inf)])
def test_what_lies_outside_the_image_has_no_square(point: tuple[float, float]) -> None:
    assert SquareGrid(10.0, 25, 31).locate(np.array([point])).tolist() == [-1]


def test_last_pixel_belongs_to_the_last_square() -> None:
    # The quotient rounds up to 7, the number of columns.
    side = 0.7
    grid = SquareGrid(side, 4.9, 4.9)
    edge = np.nextafter(4.9, 0)
    assert grid.locate(np.array([[edge, edge]]))[0] == grid.shape[0] * grid.shape[1] - 1


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.2, 5),
    turn=st.floats(0, 2 * np.pi),
    mirrored=st.booleans(),
    shift=st.tuples(st.floats(-3000, 3000), st.floats(-3000, 3000)),
    pool_um=st.floats(5, 200),
    seed=st.integers(0, 2**32 - 1),
)
def test_points_lie_in_their_square_in_physical_units(
    scale: float, turn: float, mirrored: bool, shift: tuple[float, float], pool_um: float, seed: int
) -> None:
    # Seen from the instrument a square is turned; its centre is at most half a diagonal away, and along the turned axes
    # at most half a side.
    pixel_um = 0.2125
    matrix = similarity(scale, turn, mirrored, shift)
    to_um = np.diag([pixel_um, pixel_um, 1]) @ matrix
    side = pool_um / (pixel_um * scale)
    rng = np.random.default_rng(seed)
    um = apply_affine(to_um, rng.uniform(-100, 900, (300, 2)))
    grid = SquareGrid(side, 800, 700)
    pixels = apply_affine(np.linalg.inv(to_um), um)
    squares = grid.locate(pixels)
    inside = (pixels >= 0).all(1) & (pixels < [800, 700]).all(1)
    np.testing.assert_array_equal(squares >= 0, inside)
    offset = um[inside] - apply_affine(to_um, grid.centres(squares[inside]))
    axes = matrix[:2, :2] / scale
    np.testing.assert_allclose(axes.T @ axes, np.eye(2), atol=1e-9)
    assert (np.abs(offset @ axes) <= pool_um / 2 * (1 + 1e-6) + 1e-6).all()

    counter = PointCounter()
    gene = rng.integers(0, 5, len(um))
    counter.add(squares[inside], gene[inside])
    _, counts = counter.total(5)
    assert counts.sum() == inside.sum()


# -- counting ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pending", [1, 50, 10**6])
def test_counts_equal_a_groupby_however_they_arrive(monkeypatch: pytest.MonkeyPatch, pending: int) -> None:
    monkeypatch.setattr(pooling, "_PENDING", pending)
    rng = np.random.default_rng(0)
    square, gene = rng.choice([3, 17, 18, 10**9], 2000), rng.integers(0, 7, 2000)
    counter = PointCounter()
    for part in np.array_split(np.arange(2000), 13):
        counter.add(square[part], gene[part])
    squares, counts = counter.total(9)
    expected = pd.crosstab(square, gene).reindex(columns=range(9), fill_value=0)
    np.testing.assert_array_equal(squares, expected.index)
    np.testing.assert_array_equal(counts.toarray(), expected.to_numpy())
    assert counts.dtype == np.float32
    assert counts.has_canonical_format


def test_memory_follows_pairs_not_points() -> None:
    counter = PointCounter()
    for _ in range(50):
        counter.add(np.zeros(10_000, dtype=np.int64), np.zeros(10_000, dtype=np.int64))
    assert sum(len(keys) for keys, _ in counter._parts) <= 50
    assert counter.total(1)[1].toarray().tolist() == [[500_000.0]]


def test_nothing_counted() -> None:
    squares, counts = PointCounter().total(4)
    assert squares.shape == (0,)
    assert counts.shape == (0, 4)
    empty = PointCounter()
    empty.add(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    assert empty.total(4)[1].shape == (0, 4)


def test_rows_of_one_square_are_summed() -> None:
    counts = sp.csr_matrix(np.arange(12).reshape(4, 3))
    squares, pooled = pool_rows(counts, np.array([7, -1, 2, 7]))
    assert squares.tolist() == [2, 7]
    np.testing.assert_array_equal(pooled.toarray(), [[6, 7, 8], [9, 11, 13]])


def test_columns_of_one_name_are_summed() -> None:
    counts, first = sum_columns(np.array([[1, 2, 3, 4]]), ["b", "a", "b", "c"])
    assert counts.toarray().tolist() == [[4, 2, 4]]
    assert first.tolist() == [0, 1, 3]
