"""Kernels of retrieval: query vectors, similarities, ranks and spaced hits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import pdist

from sealst._core.search.queries import (
    centred,
    cosine,
    direction,
    gene_weights,
    mean_ranks,
    shifted_profiles,
    spaced_hits,
)
from sealst._errors import DataError, PanelError

GENES = ("ERBB2", "EPCAM", "KRT8", "KRT18", "CD3E")


# -- weights and profiles ---------------------------------------------------------------------------------------------
def test_weights_have_unit_length_and_panel_order() -> None:
    np.testing.assert_allclose(gene_weights({"cd3e": -4, " Erbb2 ": 3}, GENES), [0.6, 0, 0, 0, -0.8])
    np.testing.assert_allclose(gene_weights({"KRT8": 2.5}, GENES), [0, 0, 1, 0, 0])


def test_only_proportions_of_weights_matter() -> None:
    few = {"ERBB2": 1.0, "KRT8": -2.0, "CD3E": 0.5}
    np.testing.assert_allclose(gene_weights(few, GENES), gene_weights({g: 40 * w for g, w in few.items()}, GENES))


def test_unknown_genes_come_with_near_names() -> None:
    with pytest.raises(
        PanelError, match=r"2 gene\(s\).*panel of 5: 'KRT81', 'FOO'; near names: 'KRT18', 'KRT8'. `model.p"
    ):
        gene_weights({"KRT81": 1, "ERBB2": 1, "FOO": 1}, GENES)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({}, DataError, "names no gene"),
        ({"ERBB2": 1, "Erbb2": 2}, PanelError, "occurs twice: 'ERBB2'"),
        ({"ERBB2": 0}, DataError, "finite and not all 0, found '0.0'"),
        ({"ERBB2": float("nan")}, DataError, "finite and not all 0"),
        ({"ERBB2": "high"}, DataError, "must be numbers, found 'high'"),
        ({"ERBB2": None}, DataError, "must be numbers, found 'None'"),
    ],
)
def test_bad_weights(weights: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gene_weights(weights, GENES)


def test_shift_is_n_std_long_in_standard_deviations() -> None:
    mean, std = np.array([1.0, 2, 3]), np.array([0.5, 1, 2])
    weights = np.array([0.6, 0, -0.8])
    start, end = shifted_profiles(mean, std, weights, n_std=5)
    np.testing.assert_allclose(start, mean)
    np.testing.assert_allclose((end - start) / std, [3, 0, -4], rtol=1e-6)
    assert end.dtype == np.float32


def test_direction_knows_no_length() -> None:
    np.testing.assert_allclose(direction(np.array([[2.0, 0], [0, 7]])), [-1, 1])
    with pytest.raises(DataError, match="does not react to these genes"):
        direction(np.array([[1.0, 2], [3, 6]]))


# -- similarity and ranks ---------------------------------------------------------------------------------------------
def test_centred_by_hand() -> None:
    z = np.array([[3.0, 0], [0, 2], [0, 5], [0, 1]])
    found = centred(z, np.array(["a", "a", "b", "b"]))
    np.testing.assert_allclose(found, [[0.5, -0.5], [-0.5, 0.5], [0, 0], [0, 0]])


def test_cosine_by_hand() -> None:
    z = np.array([[2.0, 0], [3, 3], [0, -1], [0, 0]])
    np.testing.assert_allclose(cosine(np.array([0.0, 5]), z), [0, np.sqrt(0.5), -1, 0], atol=1e-15)


@given(arrays(np.float32, (7, 5), elements=st.floats(-10, 10, width=32)), st.integers(0, 6))
@settings(deadline=None, max_examples=50)
def test_own_embedding_is_most_similar(z: np.ndarray, i: int) -> None:
    z[:, 0] += 20  # no row of zeros
    similarity = cosine(z[i], z)
    assert np.abs(similarity).max() <= 1
    assert similarity[i] == pytest.approx(1)
    assert similarity[i] >= similarity.max() - 1e-12


def test_ties_share_their_mean_rank() -> None:
    np.testing.assert_array_equal(mean_ranks(np.array([0.1, 0.7, 0.7 + 1e-14, 0.9, -1])), [4, 2.5, 2.5, 1, 5])
    np.testing.assert_array_equal(mean_ranks(np.zeros(5)), [3] * 5)


# -- hits -------------------------------------------------------------------------------------------------------------
def test_spacing_by_hand() -> None:
    xy = np.array([[0.0, 0], [60, 0], [100, 0], [160, 0], [5, 0]])
    similarity = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    one, two = np.zeros(5), np.array([0, 0, 0, 0, 1])
    np.testing.assert_array_equal(spaced_hits(similarity, xy, one, n=9, min_um=100), [0, 2])
    # What is skipped keeps nobody else away: 160 is 60 from 100, and 100 from the skipped 60.
    np.testing.assert_array_equal(spaced_hits(similarity, xy, one, n=9, min_um=61), [0, 2])
    np.testing.assert_array_equal(spaced_hits(similarity, xy, one, n=9, min_um=60), [0, 1, 3])
    # Another section has no distance to this one.
    np.testing.assert_array_equal(spaced_hits(similarity, xy, two, n=9, min_um=100), [0, 2, 4])
    np.testing.assert_array_equal(spaced_hits(similarity, xy, one, n=2, min_um=10), [0, 1])
    np.testing.assert_array_equal(spaced_hits(similarity, None, one, n=3, min_um=0), [0, 1, 2])


def test_equal_similarities_keep_their_order() -> None:
    np.testing.assert_array_equal(
        spaced_hits(np.array([0.5, 0.5, 0.6, 0.5]), None, np.zeros(4), n=4, min_um=0), [2, 0, 1, 3]
    )


@given(st.integers(1, 40), st.floats(1, 400), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_spacing_against_a_plain_loop(n_spots: int, min_um: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xy, similarity = rng.uniform(0, 600, (n_spots, 2)), rng.normal(size=n_spots)
    groups = rng.integers(0, 2, n_spots)
    expected: list[int] = []
    for i in np.argsort(-similarity):
        near = [j for j in expected if groups[j] == groups[i] and np.hypot(*(xy[i] - xy[j])) < min_um]
        if not near and len(expected) < 12:
            expected.append(int(i))
    hits = spaced_hits(similarity, xy, groups, n=12, min_um=min_um)
    assert hits.tolist() == expected
    for group in (0, 1):
        distances = pdist(xy[hits[groups[hits] == group]])
        assert not distances.size or distances.min() >= min_um
