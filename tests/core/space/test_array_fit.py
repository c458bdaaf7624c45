"""Where an array lies in a picture: recovered through any similarity, and in spite of misplaced spots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.space.lattice import fit_array

ROW, COL = (a.ravel() for a in np.mgrid[:20, :20])
UM = np.column_stack([COL * 50.0, ROW * 86.60254])[(ROW + COL) % 2 == 0]


def placed(turn: float, mpp: float, mirror: bool, shift: float = 300.0) -> np.ndarray:
    c, s = np.cos(turn), np.sin(turn)
    return (UM * [-1 if mirror else 1, 1]) @ np.array([[c, s], [-s, c]]) / mpp + shift


@given(st.floats(-np.pi, np.pi), st.floats(0.1, 20), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_recovers_similarity_with_misplaced_spots(turn: float, mpp: float, mirror: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = placed(turn, mpp, mirror)
    px = true.copy()
    wrong = rng.choice(len(px), len(px) // 8, replace=False)
    px[wrong] += rng.uniform(150, 900, (len(wrong), 2)) / mpp
    fit = fit_array(UM, px, tolerance_um=50)
    assert fit is not None
    assert fit.mpp == pytest.approx(mpp, rel=1e-6)
    assert fit.anisotropy == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(fit(UM) * mpp, true * mpp, atol=1e-3)
    assert set(np.flatnonzero(fit.residual_um(UM, px) > 50)) == set(wrong)


def test_anisotropy() -> None:
    fit = fit_array(UM, placed(0.4, 1.0, False) * [1.0, 1.1], tolerance_um=50)
    assert fit is not None
    assert 0.05 < fit.anisotropy <= 0.1 + 1e-9
    straight = fit_array(UM, placed(0.0, 2.0, False) * [1.0, 1.1], tolerance_um=50)
    assert straight is not None
    assert straight.anisotropy == pytest.approx(0.1)
    assert straight.mpp == pytest.approx(2 / np.sqrt(1.1))


def test_coordinates_that_do_not_vary() -> None:
    fit = fit_array(UM, np.full((len(UM), 2), 7.0), tolerance_um=50)
    assert fit is None or fit.mpp > 1e6


@pytest.mark.parametrize("um", [UM[:2], UM[UM[:, 1] == 0], UM[:0]])
def test_no_plane(um: np.ndarray) -> None:
    assert fit_array(um, um * 2, tolerance_um=50) is None
