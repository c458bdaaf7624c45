"""Curves of held-out slides: ROC, precision and recall, reliability, and survival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from sealst._errors import DataError


class Curve(NamedTuple):
    """A curve of y over x; with bounds where these were computed."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


class Bins(NamedTuple):
    """What was predicted and what happened, by bin of the predicted probability; empty bins are left out."""

    #: mean predicted probability
    predicted: np.ndarray
    #: share of slides that are of the class, with the bounds of Wilson's 95 % interval
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


class Survival(NamedTuple):
    """A Kaplan-Meier curve from time 0 on, with pointwise 95 % bounds."""

    time: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc(truth: np.ndarray, score: np.ndarray) -> Curve:
    """Sensitivity over the rate of false positives."""
    false_positive, true_positive, _ = roc_curve(truth, score)
    return Curve(false_positive, true_positive)


def precision_recall(truth: np.ndarray, score: np.ndarray) -> Curve:
    """Precision over recall, as steps: at a recall, that of the strictest threshold which reaches it."""
    precision, recall, _ = precision_recall_curve(truth, score)
    # From the strictest threshold on; looser ones that find nothing more only add mistakes.
    reached, first = np.unique(recall[::-1], return_index=True)
    height = precision[::-1][first]
    # Nothing is found at recall 0: the curve starts at the height of its first step.
    height[0] = height[1]
    return Curve(reached, height)


def height_at(curve: Curve, grid: np.ndarray, *, steps: bool) -> np.ndarray:
    """Height of a curve at some x: along straight lines, or as steps that rise at the next point."""
    if not steps:
        return np.interp(grid, curve.x, curve.y)
    places = np.searchsorted(curve.x, grid - 1e-12, side="left")
    return curve.y[np.minimum(places, len(curve.x) - 1)]


def band(
    draw: Callable[[np.ndarray, np.ndarray], Curve],
    truth: np.ndarray,
    score: np.ndarray,
    *,
    groups: np.ndarray,
    steps: bool,
    n: int,
    seed: int,
    n_points: int = 101,
) -> Curve:
    """Pointwise 95 % interval of a curve, from drawing groups (patients) with all their slides anew.

    Draws without both classes are left out; without any that has them, the bounds are NaN.
    """
    grid = np.linspace(0, 1, n_points)
    members = [np.flatnonzero(groups == one) for one in np.unique(groups)]
    rng = np.random.default_rng(seed)
    heights = []
    for _ in range(n):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if 0 < truth[rows].sum() < len(rows):
            heights.append(height_at(draw(truth[rows], score[rows]), grid, steps=steps))
    bounds = np.quantile(heights, [0.025, 0.975], axis=0) if heights else np.full((2, n_points), np.nan)
    return Curve(grid, height_at(draw(truth, score), grid, steps=steps), *bounds)


def reliability(truth: np.ndarray, probability: np.ndarray, n_bins: int) -> Bins:
    """Share of slides of a class by bins of equal width of the probability that was predicted."""
    places = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    counts = np.bincount(places, minlength=n_bins)
    full = counts > 0
    hits = np.bincount(places, weights=truth, minlength=n_bins)[full]
    sums = np.bincount(places, weights=probability, minlength=n_bins)[full]
    tests = [binomtest(int(k), int(m)).proportion_ci(method="wilson") for k, m in zip(hits, counts[full], strict=True)]
    low, high = np.array([[one.low, one.high] for one in tests]).reshape(-1, 2).T
    return Bins(sums / counts[full], hits / counts[full], low, high, counts[full])


def survival_curve(time: np.ndarray, event: np.ndarray) -> Survival:
    """Kaplan-Meier estimate with 95 % bounds (log-log, Kalbfleisch and Prentice 2002)."""
    estimator = _sksurv("nonparametric").kaplan_meier_estimator
    if not event.any():
        # No bounds can be had where nothing happened.
        ends = np.array([0.0, time.max()])
        return Survival(ends, np.ones(2), np.full(2, np.nan), np.full(2, np.nan))
    x, y, (low, high) = estimator(event, time, conf_type="log-log")
    start = np.concatenate([[0.0], x])
    return Survival(start, *(np.concatenate([[1.0], one]) for one in (y, low, high)))


def log_rank(time: np.ndarray, event: np.ndarray, group: np.ndarray) -> float:
    """Two-sided p-value of the log-rank test between groups; NaN where nothing happened that could differ.

    At a time at which one slide is left, or all that are left have the event, nothing can differ.
    """
    times, seen = np.unique(time[event], return_counts=True)
    sides = np.stack([at_risk(time[group == one], times) for one in np.unique(group)])
    # Without a time at which several sides are at risk and somebody stays, the test's variance is 0.
    if not ((at_risk(time, times) > seen) & ((sides > 0).sum(axis=0) > 1)).any():
        return float("nan")
    outcome = np.array(list(zip(event, time, strict=True)), dtype=[("event", bool), ("time", float)])
    return float(_sksurv("compare").compare_survival(outcome, group)[1])


def at_risk(time: np.ndarray, when: np.ndarray) -> np.ndarray:
    """How many are still observed, without an event before, at some times."""
    return (time[:, None] >= when[None, :]).sum(0)


def _sksurv(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sksurv.{name}")
    except ImportError as error:
        raise DataError(
            'Survival curves need scikit-survival, which is not installed: `pip install "sealst[slide]"`.'
        ) from error
