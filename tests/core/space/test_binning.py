"""Merging bins: every count ends up in one block, and centres do not depend on what is there."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.space.pooling import block_centres, mean_by_bin, merge_bins, sum_rows


@given(st.integers(1, 9), st.integers(1, 60), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_sums_by_block(factor: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    key = rng.choice(400, n, replace=False)
    row, col = key // 20, key % 20
    x = sp.csr_matrix(rng.poisson(1.0, (n, 5)), dtype=np.float32)
    bins = merge_bins(row, col, factor)
    total = sum_rows(x, bins.member, len(bins.n))
    assert total.dtype == np.float32
    assert bins.n.sum() == n
    assert (np.diff(bins.row * 20 + bins.col) > 0).all()
    for i, (r, c) in enumerate(zip(bins.row, bins.col, strict=True)):
        inside = (row // factor == r) & (col // factor == c)
        np.testing.assert_array_equal(total[i].toarray()[0], x.toarray()[inside].sum(0))
        assert bins.n[i] == inside.sum()


def test_centres_of_blocks() -> None:
    bins = merge_bins(np.array([0, 5, 5]), np.array([7, 4, 5]), 4)
    np.testing.assert_array_equal(block_centres(bins, 4), [[5.5, 1.5], [5.5, 5.5]])
    np.testing.assert_array_equal(mean_by_bin(np.array([[1.0, 0], [2, 4], [4, 8]]), bins), [[1, 0], [3, 6]])
    np.testing.assert_array_equal(block_centres(merge_bins(np.array([3]), np.array([2]), 1), 1), [[2, 3]])
