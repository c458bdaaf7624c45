"""Exact search against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import normalize

from sealst._core.search import exact as search
from sealst._core.search.exact import Centring, best_of, top_k
from sealst._core.search.queries import centred, cosine


def unit(rng: np.random.Generator, n: int, d: int, *, copies: int = 0) -> np.ndarray:
    x = rng.standard_normal((n, d)) + 0.5
    if copies:
        x = x[rng.integers(0, max(1, n // copies), n)]
    return normalize(x).astype(np.float32)


def plain(
    queries: np.ndarray, x: np.ndarray, k: int, keep: np.ndarray | None, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Every similarity, sorted."""
    z = x if groups is None else centred(x, groups)
    rows, values = np.full((len(queries), k), -1), np.full((len(queries), k), np.nan)
    for i, query in enumerate(queries):
        similarity = cosine(query, z)
        order = np.argsort(-np.round(similarity, 10), kind="stable")
        order = order if keep is None else order[keep[order]]
        order = order[:k]
        rows[i, : len(order)], values[i, : len(order)] = order, similarity[order]
    return rows, values


def centring_of(x: np.ndarray, groups: np.ndarray) -> Centring:
    z = normalize(x.astype(np.float64))
    means = np.stack([z[groups == g].mean(axis=0) for g in range(groups.max() + 1)])
    return Centring(means, groups, np.linalg.norm(z - means[groups], axis=1).astype(np.float32))


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 90),
    d=st.integers(2, 12),
    k=st.integers(1, 100),
    copies=st.sampled_from([0, 3, 90]),
    share=st.sampled_from([None, 0.0, 0.2, 0.7, 1.0]),
    block=st.sampled_from([7, 32, 1000]),
)
@settings(deadline=None, max_examples=80)
def test_it_is_a_full_sort(
    seed: int, n: int, d: int, k: int, copies: int, share: float | None, block: int
) -> None:  # ties, filters, k > n, blocks
    rng = np.random.default_rng(seed)
    x, queries = unit(rng, n, d, copies=copies), 3 * rng.standard_normal((5, d)) + 0.1
    queries[0] = x[0]
    keep = None if share is None else rng.random(n) < share
    rows_before, search._ROWS = search._ROWS, block
    try:
        found = top_k(queries, x, k, keep=keep)
    finally:
        search._ROWS = rows_before
    expected = plain(queries, x, k, keep)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


@given(seed=st.integers(0, 10_000), n_groups=st.integers(1, 4), block=st.sampled_from([16, 1000]))
@settings(deadline=None, max_examples=40)
def test_directions_are_compared_with_centred_vectors(seed: int, n_groups: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    x, queries = unit(rng, 60, 8), rng.standard_normal((3, 8))
    groups = rng.permutation(np.arange(60) % n_groups)
    rows_before, search._ROWS = search._ROWS, block
    try:
        found = top_k(queries, x, 12, centring=centring_of(x, groups))
    finally:
        search._ROWS = rows_before
    expected = plain(queries, x, 12, None, groups)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-9)


def test_a_vector_at_the_mean_of_its_group_has_similarity_0() -> None:
    x = np.array([[1, 0], [1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=np.float32)
    groups = np.array([0, 0, 1, 1])
    rows, similarity = top_k(np.array([[0.0, 1]]), x, 4, centring=centring_of(x, groups))
    np.testing.assert_array_equal(rows, [[2, 0, 1, 3]])
    np.testing.assert_array_equal(similarity[0, 1:3], 0)
    assert similarity[0, 0] == pytest.approx(-similarity[0, 3])


def test_neighbours_that_float32_cannot_tell_apart_are_in_order() -> None:
    # Similarities differ by about 1e-9, where a product in float32 is wrong by 1e-7.
    rng = np.random.default_rng(0)
    query = normalize(rng.standard_normal((1, 384)))
    away = rng.standard_normal((3000, 384))
    away -= (away @ query.T) * query
    x = normalize(query + normalize(away) * (0.5 + 1e-8 * rng.standard_normal((3000, 1)))).astype(np.float32)
    found, expected = top_k(query, x, 40), plain(query, x, 40, None)
    np.testing.assert_array_equal(found[0], expected[0])
    single = np.argsort(-(x @ query[0].astype(np.float32)), kind="stable")[:40]
    assert (single != expected[0][0]).any(), "the case is no case"


def test_more_queries_than_one_product_takes() -> None:
    rng = np.random.default_rng(1)
    x, queries = unit(rng, 200, 6), rng.standard_normal((300, 6))
    np.testing.assert_array_equal(top_k(queries, x, 3)[0], plain(queries, x, 3, None)[0])
    assert top_k(queries[:0], x, 3)[0].shape == (0, 3)


def test_best_of_candidates() -> None:
    rng = np.random.default_rng(2)
    x, queries = unit(rng, 50, 6), rng.standard_normal((2, 6))
    candidates = np.array([[4, 9, -1, 30, 2], [-1, -1, 7, -1, -1]])
    rows, similarity = best_of(queries, x, 3, candidates=candidates)
    keep = np.isin(np.arange(50), [4, 9, 30, 2])
    np.testing.assert_array_equal(rows[0], plain(queries, x, 3, keep)[0][0])
    np.testing.assert_array_equal(rows[1], [7, -1, -1])
    assert np.isnan(similarity[1, 1:]).all()
