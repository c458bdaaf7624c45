"""Who is near whom in an embedding: what an alignment changes there, and whether biology or its confounder decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from sealst._core.rows import unit_rows
from sealst._errors import DataError

#: rows whose similarities with all others are computed at once
_ROWS = 512


def nearest(z: np.ndarray, k: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Rows of the most similar vectors by cosine, nearest first.

    Parameters
    ----------
    z
        float (n, d).
    k
        How many.
    groups
        Group of every vector, (n,); those of its own group are no neighbours. None leaves out the vector alone.

    Returns
    -------
    int (n, min(k, n)); -1 where a vector has fewer neighbours.
    """
    unit, rows = unit_rows(np.asarray(z, dtype=np.float64)), np.arange(len(z))
    own, k = rows if groups is None else np.unique(groups, return_inverse=True)[1], min(k, len(z))
    found = np.empty((len(z), k), dtype=int)
    for start in range(0, len(z), _ROWS):
        part = slice(start, start + _ROWS)
        similarity = unit[part] @ unit.T
        similarity[own[part, None] == own] = -np.inf
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        value = np.take_along_axis(similarity, best, axis=1)
        order = np.lexsort((best, -value), axis=1)
        best, value = np.take_along_axis(best, order, axis=1), np.take_along_axis(value, order, axis=1)
        found[part] = np.where(np.isfinite(value), best, -1)
    return found


def neighbours_kept(a: np.ndarray, b: np.ndarray, k: int = 10) -> float:
    """Share of the `k` nearest neighbours in one embedding that are among the `k` nearest in another.

    Parameters
    ----------
    a, b
        Embeddings of the same spots, (n, d) and (n, e).
    k
        Neighbours of every spot; at most n - 1. By chance k / (n - 1) of them agree.

    Returns
    -------
    Mean over spots, 0 to 1; NaN for fewer than two spots.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(50, 4))
    >>> neighbours_kept(z, 2 * z, 5)
    1.0
    """
    k = min(k, len(a) - 1)
    if k < 1:
        return float("nan")
    pairs = zip(nearest(a, k), nearest(b, k), strict=True)
    return float(np.mean([len(np.intersect1d(x, y)) / k for x, y in pairs]))


class Robustness(NamedTuple):
    """What `robustness_index` found."""

    #: 0 to 1; above 0.5 biology decides more often
    value: float
    #: neighbours that were looked at
    k: int
    #: share of vectors that have a neighbour which tells
    support: float


def robustness_index(
    z: np.ndarray, labels: np.ndarray, confounder: np.ndarray, groups: np.ndarray, *, ks: Sequence[int] = (5, 11, 21)
) -> Robustness:
    """Whether neighbours share what is biological, or what is not.

    Of all neighbours that share either the label or the confounder, but not both, the share that share the label; the
    number of neighbours is that of `ks` by which neighbours tell labels best (balanced accuracy of their majority).

    Parameters
    ----------
    z
        Embeddings (n, d), compared by cosine.
    labels
        What is biological, such as the region, (n,).
    confounder
        What is not, such as the patient, section or centre, (n,).
    groups
        What no neighbour may share, (n,), such as the section when the confounder is the patient.
    ks
        Numbers of neighbours to choose from.

    Returns
    -------
    See `Robustness`; 0.5 where no neighbour tells.

    Raises
    ------
    DataError
        When no vector has a neighbour of another group.

    References
    ----------
    Kömen et al., *Towards robust foundation models for digital pathology*, arXiv 2507.17845 (2025), as the PyPI package
    ``croma`` computes it over all rows.

    Examples
    --------
    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> label, patient = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    >>> robustness_index(z, label, patient, np.arange(4), ks=[1]).value
    1.0
    """
    # Of labels with as many votes the one that comes first in the data wins, as in the reference.
    label, other = (pd.factorize(np.asarray(values))[0] for values in (labels, confounder))
    near = nearest(z, max(ks), groups)
    if (near < 0).all():
        raise DataError("No spot has a neighbour of another group, so nothing tells label from confounder.")
    k = max(ks, key=lambda k: _accuracy(label, near[:, :k]))
    near = near[:, :k]
    same_label, same_other = label[near] == label[:, None], other[near] == other[:, None]
    for_label, against = (
        (near >= 0) & mine & ~theirs for mine, theirs in ((same_label, same_other), (same_other, same_label))
    )
    telling = for_label.sum() + against.sum()
    value = float(for_label.sum() / telling) if telling else 0.5
    return Robustness(value, int(k), float((for_label | against).any(axis=1).mean()))


def _accuracy(label: np.ndarray, near: np.ndarray) -> float:
    """Balanced accuracy of the majority of neighbours; of equal ones the first in the data."""
    votes = np.zeros((len(label), label.max() + 1))
    rows, places = np.nonzero(near >= 0)
    np.add.at(votes, (rows, label[near[rows, places]]), 1)
    known = votes.any(axis=1)
    return float(balanced_accuracy_score(label[known], votes[known].argmax(axis=1)))
