"""Splits by group, spatial blocks, and what two sides of a split share; on plain arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut

from sealst._errors import DataError

#: profiles with fewer detected genes may agree by chance
MIN_GENES = 20


def profile_digests(counts: Any, genes: Sequence[str]) -> np.ndarray:
    """One number per spot that depends on its counts by gene, whatever the order of genes.

    Parameters
    ----------
    counts
        Counts (n, G), sparse or dense.
    genes
        Names of the columns.

    Returns
    -------
    uint64 (n,); equal for equal profiles, 0 for spots with fewer than 20 detected genes.

    Examples
    --------
    >>> int(profile_digests(np.ones((1, 3)), ["A", "B", "C"])[0])
    0
    """
    x = sp.csr_matrix(counts)
    weight = np.array([_number(g) for g in genes], dtype=np.uint64)
    # Sums of products modulo 2^64: independent of the order of columns, and of genes that are not expressed.
    value = x.data.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    terms = value * weight[x.indices] * (x.data > 0)
    out = np.zeros(x.shape[0], dtype=np.uint64)
    np.add.at(out, np.repeat(np.arange(x.shape[0]), np.diff(x.indptr)), terms)
    detected = np.diff(sp.csr_matrix(x > 0).indptr)
    out[detected < MIN_GENES] = 0
    return out


def _number(gene: str) -> int:
    return int.from_bytes(hashlib.sha256(gene.encode()).digest()[:8], "little") | 1


def group_folds(groups: np.ndarray, n_folds: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds that never cut through a group.

    Parameters
    ----------
    groups
        Group of every row, (n,).
    n_folds
        Number of folds, filled so that their rows balance; None leaves one group out at a time.

    Returns
    -------
    Per fold the row numbers to train and to test on. The test rows of all folds cover every row once.

    Raises
    ------
    DataError
        When `n_folds` is below 2 or above the number of groups.
    """
    n_groups = len(np.unique(groups))
    if n_folds is not None and not 2 <= n_folds <= n_groups:
        raise DataError(f"`n_folds` must lie between 2 and the number of groups ({n_groups}), found {n_folds!r}.")
    splitter = LeaveOneGroupOut() if n_folds is None else GroupKFold(n_splits=n_folds)
    return [(train, test) for train, test in splitter.split(np.empty((len(groups), 0)), groups=groups)]


def spatial_blocks(xy: np.ndarray, size: float, *, shift: np.ndarray | None = None) -> np.ndarray:
    """Number the square blocks that points fall into.

    Parameters
    ----------
    xy
        Positions (n, 2).
    size
        Edge of a block, in the units of `xy`.
    shift
        Offset (2,) of the blocks' corner, as a fraction of `size`; default 0, a corner at the lowest x and y.

    Returns
    -------
    int (n,), from 0; only blocks that hold a point are numbered.
    """
    offset = np.zeros(2) if shift is None else np.asarray(shift)
    cell = np.floor((xy - xy.min(axis=0)) / size + offset).astype(np.int64)
    return np.unique(cell, axis=0, return_inverse=True)[1].reshape(-1)


def near(xy: np.ndarray, target: np.ndarray, distance: float) -> np.ndarray:
    """Whether each point lies within `distance` of a point of `target`; bool (n,)."""
    if len(target) == 0:
        return np.zeros(len(xy), dtype=bool)
    return cKDTree(target).query(xy, k=1)[0] <= distance


def shared_groups(
    train: Mapping[str, Iterable[str]], test: Mapping[str, Iterable[str]]
) -> dict[str, tuple[list[str], list[str]]]:
    """Groups (patients) that occur on both sides of a split.

    Parameters
    ----------
    train, test
        Groups of every section, by the section's name.

    Returns
    -------
    Per shared group the names of the training and of the test sections it occurs in.
    """
    sides = []
    for side in (train, test):
        sections: dict[str, list[str]] = {}
        for section, groups in side.items():
            for group in groups:
                sections.setdefault(group, []).append(section)
        sides.append(sections)
    return {g: (sides[0][g], sides[1][g]) for g in sorted(sides[0]) if g in sides[1]}
