from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealst._core.scores.metrics import near_chance, near_ranks, near_recall, retrieval_ranks


@given(st.integers(3, 20), st.integers(0, 2**16))
def test_without_a_radius_it_is_the_plain_rank(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, p = rng.normal(size=(2, n, 4))
    ranks, hits = near_ranks(q, p, np.arange(2.0 * n).reshape(n, 2), 0.5)
    np.testing.assert_allclose(ranks, retrieval_ranks(q, p, np.arange(n)))
    assert (hits == 1).all()


@given(st.integers(3, 20), st.integers(0, 2**16), st.floats(0.5, 6))
def test_more_hits_never_rank_worse(n: int, seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    q, p = rng.normal(size=(2, n, 4))
    xy = rng.uniform(0, 5, (n, 2))
    near, hits = near_ranks(q, p, xy, radius)
    assert (near <= retrieval_ranks(q, p, np.arange(n)) + 1e-9).all()
    assert (near <= n - hits + 1 + 1e-9).all()


def test_equal_embeddings_are_no_finds() -> None:
    n = 50
    ranks, hits = near_ranks(np.ones((n, 3)), np.ones((n, 3)), np.column_stack([np.arange(n), np.zeros(n)]), 1.5)
    np.testing.assert_allclose(ranks, (n + 1) / (hits + 1))
    assert near_recall(ranks, hits, (1,))[1][0] == 0


@pytest.mark.parametrize(("hits", "k", "pool"), [(1, 10, 100), (3, 5, 20), (7, 1, 9), (4, 9, 9)])
def test_chance_equals_a_simulation(hits: int, k: int, pool: int) -> None:
    rng = np.random.default_rng(0)
    found = [(rng.permutation(pool)[:k] < hits).any() for _ in range(4000)]
    assert near_chance(np.array([hits]), k, pool) == pytest.approx(np.mean(found), abs=0.03)
