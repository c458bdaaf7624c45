"""Rows of unit length are scikit-learn's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.preprocessing import normalize

from sealst._core.rows import unit_rows
from sealst._core.scores.novelty import Scale
from sealst._core.search.queries import mean_ranks


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rows_are_those_of_scikit_learn(kind):
    x = np.random.default_rng(0).normal(size=(200, 96)).astype(kind)
    x[3], x[5] = 0, 1e-12
    before = x.copy()
    found = unit_rows(x)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, normalize(x))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(unit_rows([[3, 4]]), [[0.6, 0.8]])


def test_ranks_are_those_of_scipy():
    similarity = np.random.default_rng(1).integers(0, 40, 300) / 40 - 0.5
    similarity[:3] = [0.0, -0.0, 1e-13]
    np.testing.assert_array_equal(mean_ranks(similarity), rankdata(-np.round(similarity, 10), method="average"))


def test_percentiles_of_sections_are_those_of_students_distribution():
    from scipy import stats

    scale = Scale(np.array([0.1, -0.2]), np.array([0.5, 0.3]), 4.5, np.zeros((2, 3)))
    away = np.array([[-3.0, 0.0], [0.4, 9.0]])
    found = scale.of_section(away)
    expected = stats.t.cdf((away.mean(axis=0) - scale.level) / scale.spread, scale.freedom)
    np.testing.assert_array_equal(found, expected)
