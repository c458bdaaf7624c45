"""Merge the square bins of a regular array into larger ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class Bins:
    """Merged bins, ordered by row, then column.

    Parameters
    ----------
    row, col
        Position of the merged bins on the coarse array, int (m,).
    member
        Merged bin of every source bin, int (n,).
    n
        Number of source bins in every merged bin, int (m,).
    """

    row: np.ndarray
    col: np.ndarray
    member: np.ndarray
    n: np.ndarray


def merge_bins(row: np.ndarray, col: np.ndarray, factor: int) -> Bins:
    """Assign the bins of an array to blocks of `factor` x `factor` bins that start at row 0, column 0.

    Examples
    --------
    >>> merge_bins(np.array([0, 1, 4]), np.array([0, 3, 4]), 4).n
    array([2, 1])
    """
    coarse_row, coarse_col = row // factor, col // factor
    n_cols = int(coarse_col.max(initial=0)) + 1
    key, member, n = np.unique(
        coarse_row.astype(np.int64) * n_cols + coarse_col, return_inverse=True, return_counts=True
    )
    return Bins(key // n_cols, key % n_cols, member, n)


def sum_rows(x: Any, member: np.ndarray, n: int) -> sp.csr_matrix:
    """Sum rows of a matrix by group, with one sparse product.

    Parameters
    ----------
    x
        Counts (rows, genes), sparse.
    member
        Group of every row.
    n
        Number of groups.

    Returns
    -------
    CSR float32 (n, genes); exact for sums below 2**24.
    """
    ones = np.ones(len(member), dtype=np.float32)
    groups = sp.csr_matrix((ones, (member, np.arange(len(member)))), shape=(n, len(member)))
    total = sp.csr_matrix(groups @ sp.csr_matrix(x), dtype=np.float32)
    total.sort_indices()
    return total


def block_centres(bins: Bins, factor: int) -> np.ndarray:
    """Centre (col, row) of merged bins in units of source bins, (m, 2), whichever of their source bins are there."""
    return np.column_stack([bins.col, bins.row]) * float(factor) + (factor - 1) / 2


def mean_by_bin(values: np.ndarray, bins: Bins) -> np.ndarray:
    """Mean of the rows of `values` (n, k) over the members of every merged bin, (m, k)."""
    sums = [np.bincount(bins.member, weights=column, minlength=len(bins.n)) for column in values.T]
    return np.column_stack(sums) / bins.n[:, None]
