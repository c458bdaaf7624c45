"""Scores of predicted expression gene by gene, and what they say about a set of genes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import kneighbors_graph

from sealst._core.scores.metrics import bootstrap_interval, gene_pearson, gene_r2, gene_spearman

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

_NOTHING: Reduced = (np.nan, np.nan, np.nan)


def mean_with_interval(values: np.ndarray, seed: int) -> Reduced:
    """Mean of finite values, and its 95 % bootstrap interval; values (units,) or (sections, units)."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return _NOTHING
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
