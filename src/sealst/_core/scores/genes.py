"""Scores of predicted expression by gene and by set of genes, and tests of scores between groups of spots."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.neighbors import kneighbors_graph

from sealst._core.scores.metrics import bootstrap_interval, gene_pearson, gene_r2, gene_spearman
from sealst._errors import DataError
from sealst._validate import listed

#: neighbours of a spot in the graph that Moran's I is computed on: a hexagonal array's
N_NEIGHBOURS = 6
#: deviations below this, in training deviations, are rounding
_ROUNDING = 1e-5


def gene_scores(predicted: np.ndarray, measured: np.ndarray, graph: Any) -> pd.DataFrame:
    """Scores of every gene over the spots of one section.

    Parameters
    ----------
    predicted, measured
        Expression (n, G) in one unit.
    graph
        Neighbour graph of the spots, see `spatial_graph`; None leaves Moran's I empty.

    Returns
    -------
    One row per gene: `pearson`, `spearman`, `r2`, `slope` (of measured on predicted; 1 is calibrated, NaN for constant
    predictions), and Moran's I of the measured, the predicted and the residual map.
    """
    maps = {"measured": measured, "predicted": predicted, "residual": measured - predicted}
    moran = {f"moran_{name}": morans_i(graph, values) for name, values in maps.items()}
    return pd.DataFrame(
        {
            "pearson": gene_pearson(predicted, measured),
            "spearman": gene_spearman(predicted, measured),
            "r2": gene_r2(predicted, measured),
            "slope": slopes(predicted, measured),
            **moran,
        }
    )


def slopes(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Slope of measured on predicted expression, per gene; NaN where the prediction is constant."""
    p = np.asarray(predicted, np.float64)
    p = p - p.mean(axis=0)
    variance = np.einsum("ng,ng->g", p, p)
    constant = variance <= 1e-12 * len(p)
    covariance = np.einsum("ng,ng->g", p, np.asarray(measured, np.float64))
    return np.where(constant, np.nan, covariance / np.where(constant, 1, variance))


def spatial_graph(xy: np.ndarray) -> Any:
    """Symmetric graph of the nearest spots, from positions (n, 2); None where there are too few or no positions."""
    if len(xy) <= N_NEIGHBOURS or not np.isfinite(xy).all():
        return None
    graph = kneighbors_graph(xy, N_NEIGHBOURS)
    return graph.maximum(graph.T).tocsr()


def morans_i(graph: Any, values: np.ndarray) -> np.ndarray:
    """Moran's I of every column of values (n, G) on a graph of its rows; NaN for constant columns."""
    if graph is None:
        return np.full(values.shape[1], np.nan)
    import scanpy as sc

    varies = np.ptp(values, axis=0) > 0
    out = np.full(values.shape[1], np.nan)
    if varies.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out[varies] = sc.metrics.morans_i(graph, np.ascontiguousarray(values[:, varies].T, dtype=np.float64))
    return out


#: scores of a prediction that a gene, or with rows and columns interchanged a spot, may be reported by
CORE_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "pearson": gene_pearson,
    "spearman": gene_spearman,
    "r2": gene_r2,
}


def pooled_scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, np.ndarray]:
    """By metric, the score (G,) of every gene over all rows given; one NaN where there is no gene."""
    if not predicted.shape[1]:
        return {metric: np.array([np.nan]) for metric in CORE_METRICS}
    return {metric: score(predicted, measured) for metric, score in CORE_METRICS.items()}


def spot_scores(
    predicted: np.ndarray, measured: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> dict[str, np.ndarray]:
    """By metric, the score (n,) over genes of every spot, of deviations from the training mean in training deviations.

    Without that, all spots correlate with any profile of tissue: some genes are high everywhere.
    """
    p, t = ((np.asarray(x, np.float64) - mean) / std for x in (predicted, measured))
    # A prediction of the mean differs from it by rounding only, and correlates with nothing.
    p = np.where(np.abs(p) < _ROUNDING, 0.0, p)
    if p.shape[1] < 2:
        return {metric: np.full(len(p), np.nan) for metric in CORE_METRICS}
    return pooled_scores(p.T, t.T)


Reduced = tuple[float, float, float]


def mean_with_interval(values: np.ndarray, seed: int) -> Reduced:
    """Mean of finite values, and its 95 % bootstrap interval; values (units,) or (sections, units)."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.nan, np.nan, np.nan
    low, high = bootstrap_interval(values, seed=seed) if finite.size > 1 else (np.nan, np.nan)
    return float(finite.mean()), low, high


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else np.nan


def _agreement(scores: pd.DataFrame) -> float:
    pair = scores[["moran_measured", "moran_predicted"]].to_numpy()
    pair = pair[np.isfinite(pair).all(axis=1)]
    if len(pair) < 3:
        return np.nan
    return float(gene_pearson(pair[:, 1:], pair[:, :1])[0])


#: what a set of genes is reported by: metric → value and interval from the rows of `gene_scores`
SET_METRICS: dict[str, Callable[[pd.DataFrame, int], Reduced]] = {
    "pearson": lambda s, seed: mean_with_interval(s["pearson"].to_numpy(), seed),
    "spearman": lambda s, seed: mean_with_interval(s["spearman"].to_numpy(), seed),
    "r2": lambda s, seed: mean_with_interval(s["r2"].to_numpy(), seed),
    # A slope explodes where a prediction hardly varies.
    "calibration_slope": lambda s, seed: (_median(s["slope"].to_numpy()), np.nan, np.nan),
    "moran_agreement": lambda s, seed: (_agreement(s), np.nan, np.nan),
    "residual_moran": lambda s, seed: mean_with_interval(s["moran_residual"].to_numpy(), seed),
}


#: fewest rows a correlation is given for: through two points it is always 1 or -1
MIN_ROWS = 3


def agreement(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Correlation of measured and predicted values over the rows where both are known.

    Parameters
    ----------
    measured, predicted
        One row per spot, one column per pathway (or gene); NaN where unknown. Rows and columns are matched by name;
        what only one of the two has is left out.

    Returns
    -------
    DataFrame indexed by shared column, in the order of `measured`: ``pearson`` and ``spearman`` (float64; NaN below 3
    rows or where the measured values are constant, 0 where only the predicted ones are, as `gene_pearson` counts them)
    and ``n`` (int64, rows compared).

    Raises
    ------
    DataError
        When no row or column is shared, or names of rows occur twice and are not the same on both sides.

    Examples
    --------
    >>> measured = pd.DataFrame({"hypoxia": [1.0, 2.0, 3.0, np.nan], "other": 0.0})
    >>> agreement(measured, pd.DataFrame({"hypoxia": [2.0, 4.0, 9.0, 1.0]})).round(2)
             pearson  spearman  n
    hypoxia     0.97       1.0  3
    """
    a, b = _match(measured, predicted)
    x, y = a.to_numpy(dtype=np.float64), b.to_numpy(dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    n = known.sum(axis=0)
    values = np.full((x.shape[1], 2), np.nan)
    # Columns that share their rows, as those of one scoring do, are correlated together.
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        rows, columns = np.flatnonzero(patterns[:, i]), np.flatnonzero(which.ravel() == i)
        if len(rows) >= MIN_ROWS:
            p, t = y[np.ix_(rows, columns)], x[np.ix_(rows, columns)]
            values[columns] = np.column_stack([gene_pearson(p, t), gene_spearman(p, t)])
    frame = pd.DataFrame(values, index=a.columns, columns=["pearson", "spearman"])
    return frame.assign(n=n.astype(np.int64))


def _match(measured: pd.DataFrame, predicted: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    for name, frame in (("measured", measured), ("predicted", predicted)):
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"`{name}` must be a DataFrame with named rows and columns, found {type(frame).__name__}.")
        if not frame.columns.is_unique:
            raise DataError(f"Columns of `{name}` occur twice: {listed(frame.columns[frame.columns.duplicated()])}.")
    columns = [c for c in measured.columns if c in predicted.columns]
    if not columns:
        raise DataError(
            f"`measured` and `predicted` share no column; they begin {listed(measured.columns[:3])} and "
            f"{listed(predicted.columns[:3])}. Score both with the same gene sets."
        )
    if measured.index.equals(predicted.index):
        return measured[columns], predicted[columns]
    for name, frame in (("measured", measured), ("predicted", predicted)):
        if not frame.index.is_unique:
            raise DataError(
                f"Rows of `{name}` cannot be matched, their names occur twice: "
                f"{listed(frame.index[frame.index.duplicated()], 3)}."
            )
    rows = measured.index[measured.index.isin(predicted.index)]
    if not len(rows):
        raise DataError(
            f"`measured` and `predicted` share no row; they begin {listed(measured.index[:3])} and "
            f"{listed(predicted.index[:3])}."
        )
    return measured.loc[rows, columns], predicted.loc[rows, columns]


#: fewest replicates a test can be made of
MIN_REPLICATES = 2


class ReplicateTest(NamedTuple):
    """Test of means over replicates, one value per column."""

    #: t-values; 0 where nothing differs
    score: np.ndarray
    #: p-values, two-sided
    pval: np.ndarray
    #: difference of the replicates' means
    difference: np.ndarray
    #: means of both sides over replicates
    means: tuple[np.ndarray, np.ndarray]
    #: replicates on either side
    n: tuple[int, int]
    #: ``"paired"`` or ``"unpaired"``
    design: str


def replicate_test(
    group: pd.DataFrame, reference: pd.DataFrame, *, of_group: np.ndarray, of_reference: np.ndarray, name: str
) -> ReplicateTest:
    """Compare two groups of spots by the means of their replicates (sections, patients).

    Where at least two replicates hold spots of both sides, the paired t-test of their differences: what a replicate
    adds to all of its spots cancels. Where no replicate holds both, Welch's t-test of the replicates' means.

    Parameters
    ----------
    group, reference
        Scores of the spots of both sides, the same columns; finite.
    of_group, of_reference
        Replicate of every row.
    name
        Name of the group, for errors.

    Raises
    ------
    DataError
        When there are too few replicates for either test.

    Examples
    --------
    >>> a, b = pd.DataFrame({"p": [3.0, 5.0, 8.0]}), pd.DataFrame({"p": [1.0, 2.0, 4.0]})
    >>> which = np.array(["s1", "s2", "s3"])
    >>> result = replicate_test(a, b, of_group=which, of_reference=which, name="tumour")
    >>> result.design, result.difference, result.score.round(2)
    ('paired', array([3.]), array([5.2]))
    """
    x, y = group.groupby(of_group).mean(), reference.groupby(of_reference).mean()
    both = x.index.intersection(y.index)
    if len(both) >= MIN_REPLICATES:
        x, y, design = x.loc[both], y.loc[both], "paired"
    elif not len(both) and min(len(x), len(y)) >= MIN_REPLICATES:
        design = "unpaired"
    else:
        raise DataError(
            f"Group {name!r} lies in replicate(s) {listed(x.index)}, its reference in {listed(y.index)}: {len(both)} "
            "hold both. At least 2 with both are needed for a paired test, or at least 2 on either side and none with "
            "both for an unpaired one. Without `replicate`, spots are compared."
        )
    a, b = x.to_numpy(), y.to_numpy()
    # Columns that do not vary between replicates divide by 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        if design == "paired":
            score = (a - b).mean(axis=0) / ((a - b).std(axis=0, ddof=1) / np.sqrt(len(a)))
            pval = 2 * stats.t.sf(np.abs(score), len(a) - 1)
        else:
            score, pval = stats.ttest_ind(a, b, equal_var=False)
    unknown = np.isnan(score)
    score, pval = np.where(unknown, 0.0, score), np.where(unknown, 1.0, pval)
    means = a.mean(axis=0), b.mean(axis=0)
    return ReplicateTest(score, pval, means[0] - means[1], means, (len(a), len(b)), design)
