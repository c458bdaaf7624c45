"""Folds of spots and of slides, spatial blocks, and what two sides of a split share; on plain arrays."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from sealst._errors import DataError, LeakError
from sealst._validate import listed

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
    digests = [hashlib.sha256(gene.encode()).digest()[:8] for gene in genes]
    weight = np.array([int.from_bytes(digest, "little") | 1 for digest in digests], dtype=np.uint64)
    # Sums of products modulo 2^64: independent of the order of columns, and of genes that are not expressed.
    value = x.data.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    terms = value * weight[x.indices] * (x.data > 0)
    out = np.zeros(x.shape[0], dtype=np.uint64)
    np.add.at(out, np.repeat(np.arange(x.shape[0]), np.diff(x.indptr)), terms)
    detected = np.diff(sp.csr_matrix(x > 0).indptr)
    out[detected < MIN_GENES] = 0
    return out


def evenly(n: int, most: int) -> np.ndarray:
    """Numbers from 0 to n - 1, all of them or `most` at equal distances.

    Examples
    --------
    >>> evenly(10, 3).tolist()
    [0, 4, 9]
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.zeros(0, dtype=int)


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
    from sklearn.model_selection import GroupKFold, LeaveOneGroupOut

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


Fold = tuple[np.ndarray, np.ndarray]
#: classes that numbers are cut into, so that folds get high and low ones alike
_BINS = 4
#: share of the training patients that decide when to stop is one in this many, and in so many where classes are small
_INNER, _LEAST_INNER = 5, 3
#: with fewer training patients none is spared for that
_MIN_INNER = 10


def strata_of(values: np.ndarray, n_folds: int = _INNER) -> np.ndarray:
    """Classes that folds balance: the labels, or quarters of numbers (fewer parts where these are too few); int (n,).

    Parameters
    ----------
    values
        Numbers, or labels of any other type (n,).
    n_folds
        Number of folds, of which each should get one value of every part.
    """
    if values.dtype.kind != "f":
        return np.unique(values, return_inverse=True)[1]
    n_bins = max(1, min(_BINS, len(values) // n_folds))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def patient_folds(patients: np.ndarray, strata: np.ndarray, n_folds: int, *, seed: int) -> list[Fold]:
    """Folds by patient, stratified by label (scikit-learn's StratifiedGroupKFold).

    Where every class has fewer slides than there are folds, no fold can hold all of them, and labels are not balanced.

    Parameters
    ----------
    patients
        Patient of every slide (n,).
    strata
        Class to balance, of every slide (n,).
    n_folds
        Number of folds, from 2 to the number of patients.
    seed
        Seed of the draw.

    Returns
    -------
    Per fold the row numbers to train on and to hold out; every row is held out once.

    Raises
    ------
    DataError
        When `n_folds` is out of range.
    """
    n_patients = len(np.unique(patients))
    if not isinstance(n_folds, int | np.integer) or not 2 <= n_folds <= n_patients:
        raise DataError(f"`folds` must lie between 2 and the number of patients ({n_patients}), found {n_folds!r}.")
    if _largest(strata) < n_folds:
        strata = np.zeros(len(patients), dtype=int)
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=int(n_folds), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Rare labels are reported by the caller, in words of its own.
        warnings.filterwarnings("ignore", message="The least populated class")
        found = list(splitter.split(np.zeros(len(patients)), strata, groups=patients))
    if empty := [i for i, (train, test) in enumerate(found) if not len(train) or not len(test)]:
        raise DataError(f"Fold(s) {listed(empty)} of {n_folds} hold no slide; ask for fewer `folds`.")
    return [(np.asarray(train), np.asarray(test)) for train, test in found]


def _largest(strata: np.ndarray) -> int:
    return int(np.unique(strata, return_counts=True)[1].max())


def named_folds(patients: np.ndarray, names: np.ndarray) -> dict[str, Fold]:
    """Folds that a column names, such as the hospital; a patient in two of them is refused.

    Parameters
    ----------
    patients, names
        Patient and fold of every slide (n,).

    Returns
    -------
    Per name the row numbers to train on and to hold out.

    Raises
    ------
    LeakError
        When a patient's slides belong to several folds.
    DataError
        When there is only one name, or a blank one.
    """
    labels = names.astype(str)
    if blank := int((np.char.strip(labels) == "").sum()):
        raise DataError(f"The column of folds is blank in {blank} slide(s); name the fold of every slide.")
    if len(np.unique(labels)) < 2:
        raise DataError(f"The column of folds holds one value ({labels[0]!r}); at least 2 are needed.")
    split = [p for p in np.unique(patients) if len(np.unique(labels[patients == p])) > 1]
    if split:
        raise LeakError(f"Patient(s) {listed(split)} have slides in several folds; a patient belongs to one.")
    return {str(n): (np.flatnonzero(labels != n), np.flatnonzero(labels == n)) for n in np.unique(labels)}


def inner_split(patients: np.ndarray, strata: np.ndarray, *, seed: int) -> Fold:
    """Training rows to learn from and to watch, by patient; none is watched where patients or classes are too few.

    Parameters
    ----------
    patients, strata
        Patient and class of every training slide (n,).
    seed
        Seed of the draw.

    Returns
    -------
    Row numbers to learn from, and those that decide when training stops (possibly none).
    """
    everything = np.arange(len(patients)), np.arange(0)
    # Classes that are smaller than a fifth asks for can still be on both sides of a larger part.
    n_parts = min(_INNER, _largest(strata))
    if len(np.unique(patients)) < _MIN_INNER or n_parts < _LEAST_INNER:
        return everything
    try:
        found = patient_folds(patients, strata, n_parts, seed=seed)
    except DataError:
        # One patient with most of the slides leaves parts empty.
        return everything
    for learn, watch in found:
        # Both must hold every class: a loss without events, or of one class, says nothing about when to stop.
        if len(np.unique(strata[learn])) == len(np.unique(strata[watch])) == len(np.unique(strata)):
            return learn, watch
    return everything


def check_sides(patients: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    """Raise `LeakError` where a patient stands on both sides."""
    if both := sorted(set(patients[train]) & set(patients[test])):
        raise LeakError(f"Patient(s) {listed(both)} stand on both sides of a fold.")
