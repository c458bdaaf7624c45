"""Retrieval in which a neighbour of the target counts as found, as tissue changes slowly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import gammaln
from sklearn.preprocessing import normalize

# Values of similarity per block: 32 MB of float64.
_BLOCK = 2**22
# Cosines of equal vectors differ by this much at most.
_TIE = 1e-12


def near_ranks(query: np.ndarray, pool: np.ndarray, xy: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the most similar entry within a distance of each query's own place.

    Parameters
    ----------
    query, pool
        Embeddings (n, d); row i of both belongs to the spot at ``xy[i]``. Compared by cosine.
    xy
        Positions (n, 2) in µm.
    radius
        Distance in µm; with 0 only the own spot counts.

    Returns
    -------
    Ranks (n,), from 1; among equally similar entries the first hit has its expected place, so that equal embeddings do
    not look like finds. And how many entries count as a hit, (n,).

    Examples
    --------
    >>> near_ranks(np.eye(2), np.eye(2)[::-1], np.array([[0.0, 0], [9, 0]]), 10.0)[0]
    array([1., 1.])
    """
    q, p = normalize(np.asarray(query, np.float64)), normalize(np.asarray(pool, np.float64)).T
    tree = cKDTree(xy)
    near = tree.query_ball_point(xy, radius)
    ranks = np.empty(len(q))
    step = max(1, _BLOCK // len(q))
    for start in range(0, len(q), step):
        for i, similarity in enumerate(q[start : start + step] @ p, start=start):
            own = similarity[near[i]]
            best = own.max()
            tied, found = (np.abs(x - best) <= _TIE for x in (similarity, own))
            # Of `tied` entries in random order, `found` of them hits, the first hit stands here on average.
            ranks[i] = (similarity > best + _TIE).sum() + (tied.sum() + 1) / (found.sum() + 1)
    return ranks, np.array([len(hits) for hits in near])


def near_chance(hits: np.ndarray, k: int, pool: int) -> float:
    """Share of queries that guessing answers within k, when each has `hits` right answers in the pool.

    Examples
    --------
    >>> round(near_chance(np.array([1, 2]), 1, 4), 3)
    0.375
    """
    if k >= pool:
        return 1.0
    left = pool - np.asarray(hits, dtype=float)
    # C(pool - hits, k) / C(pool, k): no right answer among k drawn without replacement.
    missed = np.where(
        left >= k,
        np.exp(gammaln(left + 1) - gammaln(np.maximum(left - k, 0) + 1) - gammaln(pool + 1) + gammaln(pool - k + 1)),
        0.0,
    )
    return float(1 - missed.mean())


def near_recall(ranks: np.ndarray, hits: np.ndarray, ks: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Recall and its chance level by k."""
    return {k: (float((ranks <= k).mean()), near_chance(hits, k, len(ranks))) for k in ks}
