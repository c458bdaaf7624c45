"""Pool points into squares: transcripts or cells into pseudo-spots. Pure arrays, (x, y) in pixels of the image."""

from __future__ import annotations

from collections.abc import Sequence
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


#: square and feature share one integer key: the feature takes the low 24 bits
_SHIFT = 24
_FEATURE = (1 << _SHIFT) - 1
#: keys that wait at least before they are merged with those seen before
_PENDING = 1 << 20


@dataclass(frozen=True)
class SquareGrid:
    """Squares that tile an image from its top left corner; those at the right and bottom edge may reach beyond it.

    Parameters
    ----------
    side
        Side of a square in pixels.
    width, height
        Size of the image in pixels; it covers [0, width) and [0, height).
    """

    side: float
    width: float
    height: float

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return int(np.ceil(self.height / self.side)), int(np.ceil(self.width / self.side))

    def inside(self, xy: np.ndarray) -> np.ndarray:
        """Whether points (n, 2) lie in the image, bool (n,); points that are not finite do not."""
        return np.all((xy >= 0) & (xy < [self.width, self.height]), axis=1)

    def locate(self, xy: np.ndarray) -> np.ndarray:
        """Flat index of the square that holds each point (n, 2), int64 (n,); -1 outside the image."""
        n_rows, n_cols = self.shape
        inside = self.inside(xy)
        col, row = np.floor(np.where(inside[:, None], xy, 0) / self.side).astype(np.int64).T
        # Rounding of the quotient may lift a point at the very edge into a square that does not exist.
        flat = np.minimum(row, n_rows - 1) * n_cols + np.minimum(col, n_cols - 1)
        return np.where(inside, flat, -1)

    def positions(self, squares: np.ndarray) -> np.ndarray:
        """Row and column of squares given by flat index, int64 (n, 2)."""
        return np.column_stack(np.divmod(squares, self.shape[1]))

    def centres(self, squares: np.ndarray) -> np.ndarray:
        """Centres (x, y) of squares given by flat index, float64 (n, 2)."""
        return (self.positions(squares)[:, ::-1] + 0.5) * self.side


class PointCounter:
    """Count points by square and feature, one batch after the other.

    Memory follows the number of different (square, feature) pairs, not the number of points.

    Examples
    --------
    >>> counter = PointCounter()
    >>> counter.add(np.array([4, 4, 9]), np.array([0, 0, 1]))
    >>> squares, counts = counter.total(2)
    >>> squares.tolist(), counts.toarray().tolist()
    ([4, 9], [[2.0, 0.0], [0.0, 1.0]])
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, squares: np.ndarray, features: np.ndarray) -> None:
        """Count points, given the flat index of their square and the index of their feature, both (n,)."""
        keys = (squares.astype(np.int64) << _SHIFT) | features.astype(np.int64)
        self._parts.append(np.unique(keys, return_counts=True))
        # The first part is what was merged before. Waiting until as much has gathered again keeps the work per point
        # constant.
        if sum(len(k) for k, _ in self._parts[1:]) > max(_PENDING, len(self._parts[0][0])):
            self._merge()

    def total(self, n_features: int) -> tuple[np.ndarray, sp.csr_matrix]:
        """Squares that hold a point, in rising order, and their counts: int64 (n,), CSR float32 (n, n_features)."""
        if not self._parts:
            return np.empty(0, dtype=np.int64), sp.csr_matrix((0, n_features), dtype=np.float32)
        self._merge()
        keys, counts = self._parts[0]
        squares, row = np.unique(keys >> _SHIFT, return_inverse=True)
        matrix = sp.csr_matrix((counts.astype(np.float32), (row, keys & _FEATURE)), shape=(len(squares), n_features))
        return squares, matrix

    def _merge(self) -> None:
        keys = np.concatenate([k for k, _ in self._parts])
        counts = np.concatenate([c for _, c in self._parts])
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        self._parts = [(keys[first], np.add.reduceat(counts, first) if len(first) else counts)]


def pool_rows(counts: Any, squares: np.ndarray) -> tuple[np.ndarray, sp.csr_matrix]:
    """Sum the rows of a matrix (cells, genes) that lie in the same square.

    Parameters
    ----------
    counts
        Sparse (n, genes).
    squares
        Flat index of the square of each row, (n,); rows with -1 are left out.

    Returns
    -------
    Squares that hold a row, in rising order, int64 (m,), and their sums, CSR float32 (m, genes).
    """
    used = np.flatnonzero(squares >= 0)
    found, member = np.unique(squares[used], return_inverse=True)
    return found, sum_rows(sp.csr_matrix(counts)[used], member, len(found))


def sum_columns(counts: Any, names: Sequence[str]) -> tuple[sp.csr_matrix, np.ndarray]:
    """Sum the columns of a matrix that carry the same name.

    Returns
    -------
    CSR float32 (n, unique names), in the order of their first appearance, and the index of the first column of each
    name, int64 (unique names,).
    """
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    member = np.array([order[name] for name in names], dtype=np.int64)
    first = np.unique(member, return_index=True)[1]
    return sp.csr_matrix(sum_rows(sp.csr_matrix(counts).T, member, len(order)).T), first
