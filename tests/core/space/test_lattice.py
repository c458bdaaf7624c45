from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from sealst._core.space import lattice
from sealst._errors import DataError

SHARED = Path(os.environ.get("SEALST_SHARED", Path(__file__).parents[4] / "shared"))
SECTIONS = sorted(SHARED.glob("data/her2st*/**/*_selection.tsv"))


def ideal(grid: str, rows: int = 20, cols: int = 20) -> np.ndarray:
    y, x = (a.ravel().astype(float) for a in np.mgrid[:rows, :cols])
    return np.column_stack([x, y]) if grid == "square" else np.column_stack([x + 0.5 * (y % 2), y * np.sqrt(3) / 2])


def true_neighbours(xy: np.ndarray) -> np.ndarray:
    distance = cdist(xy, xy)
    return (distance > 0) & (distance < 1.1)


def placed(xy: np.ndarray, angle: float = 0.4, scale: float = 137.0) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return xy @ np.array([[c, s], [-s, c]]) * scale + [4000, -900]


def neighbours(xy: np.ndarray, grid: str) -> np.ndarray:
    close = cdist(xy, xy) <= lattice.REACH * lattice.pitch(xy)
    return lattice.keep_neighbours(sp.csr_matrix(close), xy, grid).toarray() > 0


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(["hex", "square"]),
    angle=st.floats(0, 2 * np.pi),
    scale=st.floats(1e-3, 1e4),
    jitter=st.floats(0, 0.1),
    kept=st.floats(0.4, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_grid_and_pitch_survive_rotation_scale_jitter_and_missing_spots(grid, angle, scale, jitter, kept, seed) -> None:
    rng = np.random.default_rng(seed)
    xy = ideal(grid)
    xy = xy[rng.random(len(xy)) < kept]
    xy = placed(xy + rng.normal(0, jitter, xy.shape), angle, scale)
    assert lattice.detect_grid(xy) == grid
    assert lattice.pitch(xy) == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("grid", ["hex", "square"])
def test_pitch_is_exact_without_jitter_even_with_a_tenth_of_the_spots(grid: str) -> None:
    xy = ideal(grid, 40, 40)
    xy = xy[np.random.default_rng(0).random(len(xy)) < 0.1]
    assert lattice.pitch(xy * 55.0) == pytest.approx(55.0)


@pytest.mark.parametrize(
    ("grid", "xy"),
    [
        ("square", [[0, 0], [1, 0], [1, 1]]),
        ("square", [[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]]),
        ("hex", [[0, 0], [1, 0], [0.5, 0.866]]),
        ("hex", [[0, 0], [1, 0], [2, 0], [0.5, 0.866], [1.5, 0.866], [2.5, 0.866]]),
    ],
)
def test_few_spots_suffice(grid: str, xy: list[list[float]]) -> None:
    assert lattice.detect_grid(np.array(xy)) == grid


def test_no_grid_is_refused() -> None:
    line = np.column_stack([np.arange(30.0), np.zeros(30)])
    with pytest.raises(DataError, match=r"grid of the 30 spots is not clear.*hex 1\.00, square 1\.00.*grid='hex'"):
        lattice.detect_grid(line)
    cells = np.random.default_rng(0).random((2000, 2)) * 1000
    with pytest.raises(DataError, match="is not clear.*context=False"):
        lattice.detect_grid(cells)


def test_one_spot_and_shared_positions_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 spots, found 1"):
        lattice.pitch(np.zeros((1, 2)))
    with pytest.raises(DataError, match="2 of 4 spots share their position"):
        lattice.pitch(np.array([[0, 0], [1, 0], [1, 0], [2, 0]]))


@pytest.mark.parametrize(("grid", "inner"), [("hex", 6), ("square", 4)])
def test_spots_inside_have_all_neighbours(grid: str, inner: int) -> None:
    found = neighbours(placed(ideal(grid)), grid)
    np.testing.assert_array_equal(found, true_neighbours(ideal(grid)))
    assert found.sum(1).max() == inner


@pytest.mark.parametrize("grid", ["hex", "square"])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_neighbours_are_exact_with_the_jitter_of_real_arrays(grid: str, kept: float) -> None:
    rng = np.random.default_rng(1)
    xy = ideal(grid)
    xy = xy[rng.random(len(xy)) < kept]
    found = neighbours(placed(xy + rng.normal(0, 0.05, xy.shape)), grid)
    np.testing.assert_array_equal(found, true_neighbours(xy))


@pytest.mark.skipif(not SECTIONS, reason="real sections not found; set SEALST_SHARED")
@pytest.mark.parametrize("path", SECTIONS, ids=lambda p: p.name[:2])
def test_neighbours_equal_the_array_indices_on_real_sections(path: Path) -> None:
    spots = pd.read_csv(path, sep="\t").drop_duplicates(["x", "y"])
    xy = spots[["pixel_x", "pixel_y"]].to_numpy()
    assert lattice.detect_grid(xy) == "square"
    np.testing.assert_array_equal(neighbours(xy, "square"), true_neighbours(spots[["x", "y"]].to_numpy(dtype=float)))


def test_unknown_grid_is_refused() -> None:
    with pytest.raises(DataError, match="`grid` must be one of 'hex', 'square', found 'triangle'"):
        lattice.keep_neighbours(sp.eye_array(2), np.eye(2), "triangle")


# --- smoothing --------------------------------------------------------------------------------------------------------


def random_graph(n: int, density: float, seed: int) -> sp.csr_matrix:
    half = sp.triu(sp.random(n, n, density, random_state=np.random.default_rng(seed)), k=1)
    graph = (half + half.T).tocsr()
    graph.data[:] = 1
    return graph


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 30),
    density=st.floats(0, 0.5),
    weight=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_constant_expression_stays_constant(n, density, weight, seed) -> None:
    profile = np.random.default_rng(seed).integers(0, 1000, 5).astype(np.float32)
    x = sp.csr_matrix(np.tile(profile, (n, 1)))
    smooth = lattice.smooth_context(x, random_graph(n, density, seed), weight)
    np.testing.assert_allclose(smooth.toarray(), x.toarray(), rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_smoothing_equals_a_loop(weight: float) -> None:
    graph = random_graph(25, 0.1, 3)
    x = np.random.default_rng(3).poisson(2.0, (25, 7)).astype(np.float32)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    assert (degree == 0).any()
    expected = x.astype(float)
    for i in np.flatnonzero(degree):
        expected[i] = (1 - weight) * x[i] + weight * x[graph[[i]].indices].mean(axis=0)
    result = lattice.smooth_context(sp.csr_matrix(x), graph, weight)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.toarray(), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["square", "hex", "diamond"]),
    turn=st.floats(0, np.pi),
    jitter=st.floats(0, 0.06),
    missing=st.floats(0, 0.5),
    seed=st.integers(0, 2**16),
)
def test_pitch_is_within_one_percent(kind, turn, jitter, missing, seed):
    """Whatever lattice, its turn, the jitter of its spots (legacy arrays: 6 % of the pitch) and what is lost."""
    rng = np.random.default_rng(seed)
    i, j = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(24), np.arange(24)))
    x, y = {"square": (i, j), "hex": (i + 0.5 * (j % 2), j * np.sqrt(3) / 2), "diamond": (i - j, i + j)}[kind]
    side = np.sqrt(2) if kind == "diamond" else 1.0
    xy = 137.0 * np.column_stack([x, y]) / side + rng.normal(0, 137.0 * jitter / np.sqrt(2), (len(x), 2))
    xy = xy[rng.random(len(xy)) >= missing] @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert lattice.pitch(xy) == pytest.approx(137.0, rel=0.01)


@pytest.mark.parametrize(
    ("technology", "name"),
    [
        ("Visium", "Visium"),
        ("10x visium CytAssist", "Visium"),
        ("Visium HD", None),
        ("visium-hd", None),
        ("VisiumHD", None),
        ("Spatial Transcriptomics", "legacy ST"),
        ("legacy ST", "legacy ST"),
        ("ST", "legacy ST"),
        (" st ", "legacy ST"),
        ("Xenium", None),
        ("STARmap", None),
        ("unknown", None),
    ],
)
def test_arrays_by_their_names(technology, name):
    found = lattice.known_array(technology)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(("grid", "angle"), [("hex", -20.0), ("hex", 0.0), ("hex", 29.0), ("square", 40.0)])
def test_turn_of_a_lattice(grid, angle):
    i, j = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(12), np.arange(12)))
    xy = np.column_stack([i + 0.5 * (j % 2), j * np.sqrt(3) / 2] if grid == "hex" else [i, j])
    turn = np.radians(angle)
    turned = xy @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    assert lattice.turn(turned, grid) == pytest.approx(angle)


def test_pitch_refuses_what_is_no_place():
    with pytest.raises(DataError, match="1 of 3 spots have no finite coordinates"):
        lattice.pitch(np.array([[0.0, 0.0], [1.0, 0.0], [np.nan, 2.0]]))
