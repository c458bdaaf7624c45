"""Exact search of the most similar vectors, block by block, in bounded memory.

A pass in float32 finds every vector whose similarity may be among the best: the rounding of a dot product has a bound,
which is added to what was computed. Only those few are computed anew in float64, and only that decides. Results depend
neither on blocks nor on threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sealst._core.rows import unit_rows
from sealst._errors import DataError

#: rows and queries of one matrix product: 32 MiB of similarities
_ROWS, _QUERIES = 65_536, 128
#: values of rows that are computed anew at once: 32 MiB of float64
_VALUES = 2**22
#: similarities that agree in so many decimals are ties, as in `sealst._core.search.queries`
_TIE_DECIMALS = 10
#: a vector closer to the mean of its group has no direction from there
_MIN_SPREAD = 1e-6
_UNIT_ROUNDOFF = 2.0**-24


class Rows(Protocol):
    """What is needed of the vectors: an array, or what stands for one on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __getitem__(self, key: Any) -> np.ndarray:
        """Rows of a slice or of an array of positions."""


@dataclass(frozen=True)
class Centring:
    """What turns similarities with vectors into similarities with vectors minus the mean of their group."""

    #: mean of each group's unit vectors, float64 (n_groups, d)
    means: np.ndarray
    #: group of every vector, (n,)
    groups: np.ndarray
    #: length of every unit vector minus its mean, float32 (n,)
    spread: np.ndarray


def similarities(
    queries: np.ndarray, vectors: np.ndarray, *, rows: np.ndarray, centring: Centring | None = None
) -> np.ndarray:
    """Cosine of pairs of unit query and vector, float64 (m,); `rows` are the vectors' positions, for their groups."""
    z = unit_rows(np.asarray(vectors, dtype=np.float64))
    if centring is not None:
        z -= centring.means[centring.groups[rows]]
        flat = np.linalg.norm(z, axis=1) < _MIN_SPREAD
        z = unit_rows(z)
        z[flat] = 0
    return np.clip(np.einsum("ij,ij->i", queries, z), -1, 1)


def top_k(
    queries: np.ndarray, vectors: Rows, k: int, *, keep: np.ndarray | None = None, centring: Centring | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Most similar vectors of every query by cosine, exactly.

    Parameters
    ----------
    queries
        (q, d), not 0.
    vectors
        (n, d) float32, of length 1.
    k
        How many are wanted.
    keep
        Which vectors may be found, bool (n,); None for all.
    centring
        Compare with vectors minus the mean of their group.

    Returns
    -------
    Positions, int64 (q, k), and similarities, float64 (q, k), best first; of equal ones (to 10 decimals) the first
    comes first. Where fewer than k may be found, -1 and NaN fill the rest.

    Examples
    --------
    >>> found, similarity = top_k(np.array([[1.0, 0]]), np.array([[0, 1], [1, 0]], dtype=np.float32), 3)
    >>> found
    array([[ 1,  0, -1]])
    """
    if not len(queries):
        return np.empty((0, k), dtype=np.int64), np.empty((0, k))
    unit = unit_rows(np.asarray(queries, dtype=np.float64))
    parts = [
        _Best(unit[start : start + _QUERIES], vectors, k, centring).scan(keep)
        for start in range(0, len(unit), _QUERIES)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def best_of(
    queries: np.ndarray, vectors: Rows, k: int, *, candidates: np.ndarray, centring: Centring | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `top_k`, among the candidates (q, m) of every query alone; -1 stands for none."""
    best = _Best(unit_rows(np.asarray(queries, dtype=np.float64)), vectors, k, centring)
    query, column = np.nonzero(candidates >= 0)
    best.add(query, candidates[query, column])
    return best.result()


class _Best:
    """The best vectors so far of some queries."""

    def __init__(self, unit: np.ndarray, vectors: Rows, k: int, centring: Centring | None) -> None:
        self._unit, self._vectors, self._k, self._centring = unit, vectors, k, centring
        self._rows = np.full((len(unit), k), -1, dtype=np.int64)
        self._similarity = np.full((len(unit), k), -np.inf)
        self._single = unit.astype(np.float32)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        return self._rows, np.where(self._rows < 0, np.nan, self._similarity)

    def scan(self, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        n = self._vectors.shape[0]
        for start in range(0, n, _ROWS):
            stop = min(n, start + _ROWS)
            inside = None if keep is None else np.flatnonzero(keep[start:stop])
            if inside is not None and not inside.size:
                continue
            if inside is not None and inside.size < (stop - start) // 2:
                rows = start + inside
                upper = self._upper(self._vectors[rows], rows)
            else:
                rows = np.arange(start, stop)
                upper = self._upper(self._vectors[start:stop], rows)
                if inside is not None and inside.size < len(rows):
                    upper[:, np.setdiff1d(rows - start, inside, assume_unique=True)] = -np.inf
            # A first few, so that there is a limit; and again where most of a block would pass it.
            unlimited = np.flatnonzero(np.isneginf(self._similarity[:, -1]))
            if unlimited.size:
                self._seed(unlimited, upper, rows)
            flat = self._passing(upper)
            if flat.size > 8 * self._k * len(upper):
                counts = np.bincount(flat // len(rows), minlength=len(upper))
                self._seed(np.flatnonzero(counts > 8 * self._k), upper, rows)
                flat = self._passing(upper)
            self.add(flat // len(rows), rows[flat % len(rows)])
        return self.result()

    def _upper(self, block: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Upper bound of the similarities of a block, float32 (q, b)."""
        # Rounding of a sum of d products of unit vectors, in any order, and of the few steps that follow.
        margin = np.float32((self._unit.shape[1] + 16) * _UNIT_ROUNDOFF * 1.01)
        one = len(self._single) == 1
        upper = (block @ self._single[0])[None] if one else self._single @ block.T
        if not np.isfinite(upper).all():
            lost = rows[~np.isfinite(upper).all(axis=0)]
            raise DataError(
                f"{len(lost)} vectors of the index hold NaN or infinite values (first: row {lost[0]}); it is damaged. "
                "Build it again."
            )
        if self._centring is not None:
            spread = self._centring.spread[rows]
            upper -= (self._unit @ self._centring.means.T).astype(np.float32)[:, self._centring.groups[rows]]
            upper += margin
            upper *= np.where(spread < _MIN_SPREAD / 2, 0, 1 / np.maximum(spread, _MIN_SPREAD / 2))
            # What has next to no direction is computed anew whenever 0 would do.
            upper[:, spread < 2 * _MIN_SPREAD] = 1
        else:
            upper += margin
        return upper

    def _passing(self, upper: np.ndarray) -> np.ndarray:
        # Of the k best similarities so far the lowest, -inf where there are fewer.
        limit = np.maximum(self._similarity[:, -1] - 1e-9, -2.0)
        # Rounded down, so that nothing is lost to float32.
        return np.flatnonzero(upper >= np.nextafter(limit.astype(np.float32), np.float32(-3))[:, None])

    def _seed(self, queries: np.ndarray, upper: np.ndarray, rows: np.ndarray) -> None:
        """Add the best of a block, and take them out of it."""
        part, k = upper[queries], min(self._k, len(rows))
        columns = np.argpartition(part, len(rows) - k, axis=1)[:, len(rows) - k :]
        query = np.repeat(queries, k)
        column = columns.ravel()
        known = upper[query, column] > -np.inf
        query, column = query[known], column[known]
        self.add(query, rows[column])
        upper[query, column] = -np.inf

    def add(self, query: np.ndarray, row: np.ndarray) -> None:
        """Compute pairs of query and vector in float64 and keep the best."""
        if not len(row):
            return
        found = np.empty(len(row))
        step = max(1, _VALUES // self._unit.shape[1])
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            found[part] = similarities(
                self._unit[query[part]], self._vectors[row[part]], rows=row[part], centring=self._centring
            )
        q, k = self._rows.shape
        query = np.concatenate([np.repeat(np.arange(q), k), query])
        row = np.concatenate([self._rows.ravel(), row])
        found = np.concatenate([self._similarity.ravel(), found])
        order = np.lexsort((row, -np.round(found, _TIE_DECIMALS), query))
        query = query[order]
        place = np.arange(len(query)) - np.searchsorted(query, np.arange(q))[query]
        kept = place < k
        self._rows[query[kept], place[kept]] = row[order][kept]
        self._similarity[query[kept], place[kept]] = found[order][kept]
