"""How well the expression of a single spot could be predicted at all, at the depth it was measured with."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from sealst._core.scores.metrics import gene_pearson
from sealst._errors import DataError
from sealst._validate import check_count, check_positive

#: values of a block of genes that are dense at a time
_BLOCK = 2**24


def half_correlation(
    counts: Any, columns: np.ndarray, *, target_sum: float = 1e4, seed: int = 0, n_splits: int = 4
) -> np.ndarray:
    """Correlation over spots of two halves of their counts, per gene.

    Every transcript goes to one half or the other by a fair coin (binomial thinning). Where counts are Poisson around
    what a spot expresses, the halves are independent given that, each of a spot of half the depth; both are brought to
    log1p of counts per `target_sum` by their own totals.

    Parameters
    ----------
    counts
        Counts (n, all genes), sparse or dense; what is not a whole number is rounded.
    columns
        Columns of the genes that are wanted, (G,).
    target_sum
        Counts per spot after normalisation.
    seed
        Seed of the coin.
    n_splits
        How often spots are split; the mean over splits is returned.

    Returns
    -------
    float64 (G,): NaN where a half is constant, as of a gene without counts.

    References
    ----------
    Batson, Royer and Webber, *Molecular cross-validation for single-cell RNA-seq*, bioRxiv 2019; Neufeld et al.,
    *Inference after latent variable estimation for single-cell RNA sequencing data*, Biostatistics 2024.

    Examples
    --------
    >>> rate = np.repeat([[1.0, 50.0], [40.0, 50.0]], 100, axis=0)
    >>> half_correlation(np.random.default_rng(0).poisson(rate), np.arange(2))[0].round(1)
    0.9
    """
    check_count("n_splits", n_splits)
    check_positive("target_sum", target_sum)
    x = sp.csr_matrix(counts)
    if x.data.size and x.data.min() < 0:
        raise DataError(f"`counts` must not be negative, found {x.data.min():g}.")
    whole, rng = np.rint(x.data).astype(np.int64), np.random.default_rng(seed)
    found = np.zeros(len(columns))
    for _ in range(n_splits):
        first = rng.binomial(whole, 0.5)
        a, b = (sp.csr_matrix((part, x.indices, x.indptr), shape=x.shape) for part in (first, whole - first))
        found += _agreement(a, b, columns, target_sum) / n_splits
    return found


def _agreement(a: sp.csr_matrix, b: sp.csr_matrix, columns: np.ndarray, target_sum: float) -> np.ndarray:
    found, step = np.empty(len(columns)), max(1, _BLOCK // max(1, a.shape[0]))
    scales = [target_sum / np.asarray(half.sum(axis=1), dtype=np.float64).clip(min=1) for half in (a, b)]
    columnwise = [half.tocsc() for half in (a, b)]
    for start in range(0, len(columns), step):
        part = columns[start : start + step]
        x, y = (np.log1p(half[:, part].toarray() * scale) for half, scale in zip(columnwise, scales, strict=True))
        # A gene that only one of the halves has counts of correlates with nothing.
        r = gene_pearson(x, y)
        found[start : start + step] = np.where(np.ptp(x, axis=0) == 0, np.nan, r)
    return found


def noise_ceiling(half: np.ndarray) -> np.ndarray:
    """Highest Pearson correlation with single spots that a prediction can reach, from `half_correlation`.

    Of two halves that correlate by h the whole has the reliability 2 h / (1 + h) (Spearman-Brown), and what a spot
    truly expresses correlates with what was counted by the square root of that.

    Parameters
    ----------
    half
        Correlation of halves, of any shape.

    Returns
    -------
    float64, 0 to 1; 0 where halves do not correlate, NaN where the correlation is not known.

    References
    ----------
    Spearman 1910; Brown 1910. The bound: Lord and Novick, *Statistical Theories of Mental Test Scores*, 1968.

    Examples
    --------
    >>> noise_ceiling(np.array([1.0, 0.5, -0.1])).round(2)
    array([1.  , 0.82, 0.  ])
    """
    h = np.clip(half, 0, 1)
    return np.sqrt(2 * h / (1 + h))
