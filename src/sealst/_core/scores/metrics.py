"""Metrics of predicted expression and of retrieval, on plain arrays.

Expression metrics are per gene over all rows given: pass one section for the per-section variant, stacked sections for
the pooled one. They follow one rule for constants. Where the *truth* of a gene does not vary there is nothing to
predict: NaN, leave it out of means with `numpy.nanmean`. Where only the *prediction* does not vary, its correlation is
counted as 0, so that a model that collapses on a gene pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from scipy.special import gammaln

from sealst._core.rows import unit_rows
from sealst._errors import DataError
from sealst._validate import check_count

# Values per temporary array: 32 MB of float64.
_BLOCK = 2**22
# A column whose range is this small a part of its values varies by rounding only.
_ROUNDING = 1e-13
# Cosines of equal vectors differ by this much at most, depending on where a matrix product blocks them.
_TIE = 1e-12


def gene_pearson(pred: ArrayLike, true: ArrayLike, *, mask: np.ndarray | None = None) -> np.ndarray:
    """Pearson correlation of prediction and truth, per gene.

    Parameters
    ----------
    pred, true
        Expression (n, G) in the same unit, rows are spots; finite, n >= 2.
    mask
        bool (n, G), True where the gene was measured; the correlation runs over these spots. None when all were.

    Returns
    -------
    float64 (G,): NaN where the truth is constant or measured in fewer than two spots, 0 where only the prediction is
    constant.

    Raises
    ------
    DataError
        When shapes differ, there are fewer than two rows, or values are not finite.

    Examples
    --------
    >>> gene_pearson([[1, 0], [2, 0], [3, 0]], [[2, 1], [4, 1], [6, 1]])
    array([ 1., nan])
    """
    if mask is None or mask.all():
        return _by_gene(_pearson, pred, true, correlation=True)
    p, t = np.asarray(pred), np.asarray(true)
    result = np.full(mask.shape[1], np.nan)
    # Genes that share their spots, as those of one panel do, are scored together.
    patterns, which = np.unique(np.packbits(mask, axis=0), axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        genes = np.flatnonzero(which.ravel() == i)
        rows = np.flatnonzero(mask[:, genes[0]])
        if len(rows) >= 2:
            result[genes] = _by_gene(_pearson, p[np.ix_(rows, genes)], t[np.ix_(rows, genes)], correlation=True)
    return result


def gene_spearman(pred: ArrayLike, true: ArrayLike) -> np.ndarray:
    """Spearman correlation of prediction and truth, per gene; ties take their mean rank.

    Parameters
    ----------
    pred, true
        Expression (n, G), rows are spots; finite, n >= 2.

    Returns
    -------
    float64 (G,): NaN where the truth is constant, 0 where only the prediction is.

    Raises
    ------
    DataError
        When shapes differ, there are fewer than two rows, or values are not finite.

    Examples
    --------
    >>> gene_spearman([[1.0], [2.0], [9.0]], [[0.0], [1.0], [2.0]])
    array([1.])
    """
    from scipy.stats import rankdata

    return _by_gene(lambda p, t: _pearson(rankdata(p, axis=0), rankdata(t, axis=0)), pred, true, correlation=True)


def gene_r2(pred: ArrayLike, true: ArrayLike) -> np.ndarray:
    """Coefficient of determination (R²) of the prediction, per gene.

    1 is perfect, 0 the mean of the rows given, below 0 worse than that mean.

    Parameters
    ----------
    pred, true
        Expression (n, G) in the same unit, rows are spots; finite, n >= 2.

    Returns
    -------
    float64 (G,): NaN where the truth is constant. A constant prediction has an R² like any other.

    Raises
    ------
    DataError
        When shapes differ, there are fewer than two rows, or values are not finite.

    Examples
    --------
    >>> gene_r2([[2.0], [2.0], [2.0]], [[1.0], [2.0], [3.0]])
    array([0.])
    """
    from sklearn.metrics import r2_score

    return _by_gene(lambda p, t: r2_score(t, p, multioutput="raw_values"), pred, true, correlation=False)


def _by_gene(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], pred: ArrayLike, true: ArrayLike, *, correlation: bool
) -> np.ndarray:
    p, t = np.asarray(pred), np.asarray(true)
    if p.ndim != 2 or p.shape != t.shape or len(p) < 2:
        raise DataError(f"`pred` and `true` must have one shape (n >= 2, genes), found {p.shape} and {t.shape}.")
    result = np.empty(p.shape[1])
    step = max(1, _BLOCK // len(p))
    for start in range(0, p.shape[1], step):
        part = slice(start, start + step)
        # float64 block by block: whole sections of float32 would double twice.
        a, b = _finite(p[:, part], "pred"), _finite(t[:, part], "true")
        values = np.where(_constant(a), 0.0, kernel(a, b)) if correlation else kernel(a, b)
        result[part] = np.where(_constant(b), np.nan, values)
    return result


def _finite(x: np.ndarray, name: str) -> np.ndarray:
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        rows = (~np.isfinite(x)).any(axis=tuple(range(1, x.ndim))).sum()
        raise DataError(
            f"`{name}` holds NaN or infinite values in {rows} of {len(x)} rows. Keep the spots that have a crop, "
            "e.g. `table.obs['crop_ok']`."
        )
    return x


def _constant(x: np.ndarray) -> np.ndarray:
    # By range: the sum of many equal values is rounded, so their deviations from the mean are not 0.
    return np.ptp(x, axis=0) <= _ROUNDING * np.abs(x[0])


def _pearson(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    # Columns without spread are divided by 0 here and overruled by the rule for constants.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.einsum("ng,ng->g", _unit_columns(pred), _unit_columns(true)), -1, 1)


def _unit_columns(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=0)
    return centred / np.sqrt(np.einsum("ng,ng->g", centred, centred))


def retrieval_ranks(
    query: ArrayLike,
    pool: ArrayLike,
    target_index: ArrayLike,
    *,
    chunk: int | None = None,
    left_out: ArrayLike | None = None,
) -> np.ndarray:
    """Rank of every query's target among the pool, by cosine similarity.

    Parameters
    ----------
    query
        Embeddings (n, d). They are L2-normalised inside; a row of zeros has similarity 0 to everything.
    pool
        Embeddings (m, d) that are ranked.
    target_index
        Row in `pool` of each query's target, (n,) int.
    chunk
        Queries per block; default as many as keep the similarities of a block at 32 MB.
    left_out
        Row in `pool` that a query is not ranked against, (n,) int: itself, where queries and pool are the same.

    Returns
    -------
    float64 (n,): 1 is best, m worst. Entries as similar as the target (within 1e-12) are ties, and the target takes
    the mean of the ranks they share: in a pool of equal embeddings every rank is (m + 1) / 2, not 1.

    Raises
    ------
    DataError
        When shapes do not fit, values are not finite, or an index lies outside the pool.

    Examples
    --------
    >>> retrieval_ranks([[1, 0], [0, 1]], [[0, 1], [1, 0], [1, 0]], [1, 0])
    array([1.5, 1. ])
    """
    q, p, target = np.asarray(query), np.asarray(pool), np.asarray(target_index)
    if q.ndim != 2 or p.ndim != 2 or q.shape[1] != p.shape[1] or not len(p):
        raise DataError(f"`query` and `pool` must be (n, d) and (m >= 1, d), found {q.shape} and {p.shape}.")
    if target.shape != (len(q),) or not np.issubdtype(target.dtype, np.integer):
        raise DataError(f"`target_index` must hold {len(q)} whole numbers, found {target.dtype} {target.shape}.")
    if len(q) and (target.min() < 0 or target.max() >= len(p)):
        raise DataError(
            f"`target_index` must lie in 0 … {len(p) - 1} (rows of `pool`), found {target.min()} … {target.max()}."
        )
    if chunk is not None:
        check_count("chunk", chunk)
    unit, own = unit_rows(_finite(p, "pool")).T, None if left_out is None else np.asarray(left_out)
    if own is not None and (own.shape != target.shape or np.any(own == target)):
        raise DataError("`left_out` must hold one row of `pool` per query, none of them its target.")
    ranks, step = np.empty(len(q)), chunk or max(1, _BLOCK // len(p))
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        similarity = unit_rows(_finite(q[part], "query")) @ unit
        similarity -= np.take_along_axis(similarity, target[part, None], axis=1)
        if own is not None:
            np.put_along_axis(similarity, own[part, None], -np.inf, axis=1)
        better = (similarity > _TIE).sum(axis=1)
        tied = (similarity >= -_TIE).sum(axis=1) - better
        ranks[part] = better + (tied + 1) / 2
    return ranks


def recall_at_k(ranks: ArrayLike, ks: Sequence[int], pool: int) -> dict[str, float]:
    """Recall at k, each beside its chance level, and the median rank.

    A query is a hit at k when its rank is at most k. Ranks with ties are means (see `retrieval_ranks`): a target that
    shares ranks 1 and 2 has rank 1.5, a hit at 2 and not at 1.

    Parameters
    ----------
    ranks
        Ranks from `retrieval_ranks`, (n,).
    ks
        Values of k, whole numbers from 1.
    pool
        Number of entries that were ranked.

    Returns
    -------
    dict with ``"pool"``, for every k ``"R@<k>"`` (fraction of queries) and ``"chance@<k>"`` (k / pool, at most 1: the
    expectation for random embeddings), and ``"median_rank"``.

    Raises
    ------
    DataError
        When there are no ranks, a rank lies outside 1 … `pool`, or a k is not a whole number from 1.

    Examples
    --------
    >>> recall_at_k([1, 1.5, 4, 9], [1, 2], 10)
    {'pool': 10, 'R@1': 0.25, 'chance@1': 0.1, 'R@2': 0.5, 'chance@2': 0.2, 'median_rank': 2.75}
    """
    values = np.asarray(ranks, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise DataError(f"`ranks` must be one rank per query, (n >= 1,), found shape {values.shape}.")
    if not ((values >= 1) & (values <= pool)).all():
        raise DataError(f"`ranks` must lie in 1 … {pool} (`pool`), found {values.min():g} … {values.max():g}.")
    result: dict[str, float] = {"pool": int(pool)}
    for k in ks:
        if k < 1 or k != int(k):
            raise DataError(f"`ks` must be whole numbers from 1, found {k!r}.")
        result[f"R@{int(k)}"] = float((values <= k).mean())
        result[f"chance@{int(k)}"] = float(min(k / pool, 1.0))
    result["median_rank"] = float(np.median(values))
    return result


def signature_auroc(similarity: ArrayLike, measured: ArrayLike, *, top_fraction: float = 0.1) -> float:
    """Area under the ROC curve of a query's similarity against the spots that score highest by measurement.

    Parameters
    ----------
    similarity
        Similarity of every spot to the query, (n,).
    measured
        Measured score of the queried gene, signature or pathway, (n,).
    top_fraction
        Share of spots, by measured score, that count as positive. Spots tied with the last of them are positive too,
        except at the lowest score of all: of a score that is 0 in most spots, the positives are those above 0.

    Returns
    -------
    float in [0, 1], 0.5 at chance; NaN where the measured score is constant.

    Raises
    ------
    DataError
        When shapes differ, values are not finite, or `top_fraction` does not lie between 0 and 1.

    Examples
    --------
    >>> signature_auroc([0.9, 0.1, 0.2, 0.3], [5.0, 1.0, 0.0, 2.0], top_fraction=0.25)
    1.0
    """
    from sklearn.metrics import roc_auc_score

    score, positive = _top_spots(similarity, measured, top_fraction)
    return float(roc_auc_score(positive, score)) if positive.any() else float("nan")


def signature_average_precision(similarity: ArrayLike, measured: ArrayLike, *, top_fraction: float = 0.1) -> float:
    """Average precision of a query's similarity against the spots that score highest by measurement.

    Arguments, rule for ties and errors as in `signature_auroc`. Chance is the share of positives, about `top_fraction`.

    Examples
    --------
    >>> signature_average_precision([0.9, 0.1, 0.2, 0.3], [5.0, 1.0, 0.0, 2.0], top_fraction=0.25)
    1.0
    """
    from sklearn.metrics import average_precision_score

    score, positive = _top_spots(similarity, measured, top_fraction)
    return float(average_precision_score(positive, score)) if positive.any() else float("nan")


def _top_spots(similarity: ArrayLike, measured: ArrayLike, top_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    score, truth = np.asarray(similarity), np.asarray(measured)
    if score.ndim != 1 or score.shape != truth.shape or not score.size:
        raise DataError(f"`similarity` and `measured` must have one shape (n,), found {score.shape}, {truth.shape}.")
    if not 0 < top_fraction < 1:
        raise DataError(f"`top_fraction` must lie between 0 and 1, both excluded, found {top_fraction!r}.")
    score, truth = _finite(score, "similarity"), _finite(truth, "measured")
    k = max(1, round(top_fraction * len(truth)))
    last = np.partition(truth, -k)[-k]
    return score, (truth >= last if last > truth.min() else truth > last)


def bootstrap_interval(values: ArrayLike, *, n: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Parameters
    ----------
    values
        One value per unit, (units,), e.g. the paired difference of two models' correlation per gene; or (sections,
        genes), where sections and genes are drawn anew, each with replacement, and the mean is over all pairs. NaN
        (constant genes) is left out.
    n
        Number of bootstrap samples.
    seed
        Seed of the draws.
    level
        Coverage.

    Returns
    -------
    Lower and upper bound; both NaN when no value is finite.

    Raises
    ------
    DataError
        When `values` is neither (units,) nor (sections, genes), or `n` or `level` is out of range.

    References
    ----------
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993; both factors drawn anew: Owen, *The pigeonhole
    bootstrap*, Annals of Applied Statistics 2007.

    Examples
    --------
    >>> bootstrap_interval([0.5, 0.5, 0.5])
    (0.5, 0.5)
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or not table.size:
        raise DataError(f"`values` must be (units,) or (sections, genes), found shape {table.shape}.")
    check_count("n", n)
    if not 0 < level < 1:
        raise DataError(f"`level` must lie between 0 and 1, both excluded, found {level!r}.")
    table = np.atleast_2d(table[np.isfinite(table)] if table.ndim == 1 else table)
    measured = np.isfinite(table)
    if not measured.any():
        return float("nan"), float("nan")
    rng, filled, weight = np.random.default_rng(seed), np.where(measured, table, 0.0), measured.astype(float)
    rows, columns = table.shape
    means, step = np.empty(n), max(1, _BLOCK // columns)
    # A sample is how often every row and every column was drawn.
    drawn_rows = rng.multinomial(rows, np.full(rows, 1 / rows), size=n).astype(float)
    for start in range(0, n, step):
        row = drawn_rows[start : start + step]
        column = rng.multinomial(columns, np.full(columns, 1 / columns), size=len(row))
        with np.errstate(invalid="ignore"):
            total = np.einsum("ic,ic->i", row @ filled, column)
            means[start : start + step] = total / np.einsum("ic,ic->i", row @ weight, column)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
    q, p = unit_rows(np.asarray(query, np.float64)), unit_rows(np.asarray(pool, np.float64)).T
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
