"""Scores of held-out slides and their intervals over patients, and the loss of survival; on plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score

from sealst._validate import need

_WHAT = "Concordance of survival"


def cox_loss(risk: torch.Tensor, time: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """Negative log partial likelihood of Cox's model, divided by the number of events; ties after Breslow.

    Parameters
    ----------
    risk
        Log hazard of every slide (n,).
    time
        Time of the event or of censoring (n,).
    event
        Whether the event was seen (n,), bool.

    Returns
    -------
    Scalar; 0 (with a gradient of 0) where no event was seen.

    References
    ----------
    Cox, *Regression models and life-tables*, Journal of the Royal Statistical Society B 1972; Breslow, *Covariance
    analysis of censored survival data*, Biometrics 1974.

    Examples
    --------
    >>> float(cox_loss(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([True, False])))  # log 2
    0.6931471824645996
    """
    events = event.bool()
    if not events.any():
        return risk.sum() * 0.0
    # Latest first, so that the first rows up to a slide are those still at risk at its time.
    order = torch.argsort(time, descending=True, stable=True)
    ordered, sums = time[order].contiguous(), torch.logcumsumexp(risk[order], dim=0)
    # Slides of equal time are at risk together: the sum of the last of them counts for all.
    last = len(ordered) - 1 - torch.searchsorted(ordered.flip(0), ordered, side="left")
    return -(risk[order] - sums[last])[events[order]].mean()


class Concordance(NamedTuple):
    """Pairs of slides of which it is known who had the event first."""

    #: pairs ordered as the risk orders them; pairs of equal risk count half
    concordant: float
    #: pairs that can be compared
    pairs: int

    @property
    def share(self) -> float:
        """Share of concordant pairs, NaN without pairs."""
        return self.concordant / self.pairs if self.pairs else float("nan")


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> Concordance:
    """Count the pairs behind Harrell's c-index, by scikit-survival.

    Parameters
    ----------
    risk
        Higher is worse (n,).
    time, event
        Time (n,) and whether the event was seen (n,), bool.

    Returns
    -------
    Concordant and comparable pairs; none where no pair can be compared.

    References
    ----------
    Harrell et al., *Multivariable prognostic models*, Statistics in Medicine 1996.
    """
    metrics = _metrics()
    if len(time) < 2 or not event.any():
        return Concordance(0.0, 0)
    try:
        with _without_pairs():
            _, right, wrong, tied, _ = metrics.concordance_index_censored(event, time, risk)
    except need("sksurv.exceptions", extra="slide", what=_WHAT).NoComparablePairException:
        return Concordance(0.0, 0)
    return Concordance(float(right + 0.5 * tied), int(right + wrong + tied))


def ipcw_index(
    risk: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    train_time: np.ndarray,
    train_event: np.ndarray,
) -> float:
    """Concordance weighted by the inverse probability of censoring, by scikit-survival.

    Pairs are weighted by the censoring seen in training, up to the last time at which that is known.

    Parameters
    ----------
    risk, time, event
        Held-out slides, as in `concordance`.
    train_time, train_event
        Training slides, which censoring is estimated on.

    Returns
    -------
    float in [0, 1]; NaN where it is not defined (no comparable pair within the time that training covers).

    References
    ----------
    Uno et al., *On the C-statistics for evaluating overall adequacy of risk prediction procedures with censored
    survival data*, Statistics in Medicine 2011.
    """
    metrics = _metrics()
    # Last time at which somebody of the training side was neither censored nor had the event before.
    longest = float(train_time.max())
    # Where the longest times end in censoring, nobody is left to say what happened after them.
    until = longest if train_event[train_time == longest].all() else float(np.nextafter(longest, -np.inf))
    if len(time) < 2 or not (event & (time < until)).any():
        return float("nan")
    train, test = (
        np.array(list(zip(e, t, strict=True)), dtype=[("event", bool), ("time", float)])
        for e, t in ((train_event, train_time), (event, time))
    )
    try:
        with _without_pairs():
            return float(metrics.concordance_index_ipcw(train, test, risk, tau=until)[0])
    except need("sksurv.exceptions", extra="slide", what=_WHAT).NoComparablePairException:
        return float("nan")


def _without_pairs() -> np.errstate:
    """Quiet where scikit-survival divides 0 pairs by 0, which is NaN as it should be."""
    return np.errstate(invalid="ignore")


def _metrics() -> Any:
    return need("sksurv.metrics", extra="slide", what=_WHAT)


#: bins of confidence behind the expected calibration error
_BINS = 10
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out slides of one target, and what is needed to score predictions of them.

    Truth is a class number (int), a number (float), or (time, event) in two columns; a prediction is (n, classes)
    probabilities, (n,) numbers, or (n,) log risks.
    """

    truth: np.ndarray
    #: fold of every slide (n,); pairs for concordance are only made within a fold
    fold: np.ndarray
    patients: np.ndarray
    #: per fold the (time, event) of its training side, for survival
    train: Mapping[str, np.ndarray] = field(default_factory=dict)

    def take(self, rows: np.ndarray) -> HeldOut:
        """Some of the slides."""
        return HeldOut(self.truth[rows], self.fold[rows], self.patients[rows], self.train)


Scorer = Callable[[np.ndarray, HeldOut], dict[str, float]]


def classification_scores(p: np.ndarray, held: HeldOut) -> dict[str, float]:
    """AUROC, average precision, balanced accuracy, F1, calibration error and Brier score.

    Parameters
    ----------
    p
        Probability of every class (n, classes).
    held
        Slides, with class numbers as truth.

    Returns
    -------
    ``auroc`` and ``average_precision`` (of the last of two classes; of more, the mean over one-against-rest),
    ``balanced_accuracy``, ``f1`` (mean over classes), ``ece`` (confidence against accuracy, ten bins), ``brier`` (two
    classes: squared error of the last one's probability; more: its sum over classes). The first four are NaN where no
    slide is of one of the classes: a mean over the others would be another score.
    """
    truth = held.truth.astype(int)
    n_classes = p.shape[1]
    scored = [n_classes - 1] if n_classes == 2 else range(n_classes)
    positive = [(truth == c, p[:, c]) for c in scored]
    both_sides = all(is_class.any() and not is_class.all() for is_class, _ in positive)
    found = {
        name: float(np.mean([function(*one) for one in positive])) if both_sides else NAN
        for name, function in {"auroc": auroc, "average_precision": average_precision}.items()
    }
    best = p.argmax(axis=1)
    counts = np.bincount(truth * n_classes + best, minlength=n_classes**2).reshape(n_classes, n_classes)
    right, real, called = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    every = bool((real > 0).all())
    found["balanced_accuracy"] = float((right / real).mean()) if every else NAN
    found["f1"] = float((2 * right / (real + called)).mean()) if every else NAN
    error = ((p - np.eye(n_classes)[truth]) ** 2).sum(axis=1).mean()
    found |= {"ece": calibration_error(p, truth), "brier": float(error / 2 if n_classes == 2 else error)}
    return found


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve from ranks; what scikit-learn computes, in the time that thousands of draws need.

    Parameters
    ----------
    positive
        bool (n,), some True and some False.
    score
        Score (n,).
    """
    n = int(positive.sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """Average precision; what scikit-learn computes, in the time that thousands of draws need.

    Parameters
    ----------
    positive
        bool (n,), some True.
    score
        Score (n,).
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(positive[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def calibration_error(p: np.ndarray, truth: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over ten bins of confidence, weighted by slides.

    References
    ----------
    Naeini et al., *Obtaining well calibrated probabilities using Bayesian binning*, AAAI 2015.
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == truth
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    sums = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return float(np.abs(sums).sum() / len(truth))


def regression_scores(value: np.ndarray, held: HeldOut) -> dict[str, float]:
    """Pearson, Spearman, R² and mean absolute error.

    Parameters
    ----------
    value
        Predictions (n,).
    held
        Slides, with numbers as truth.

    Returns
    -------
    ``pearson``, ``spearman`` (0 where only the prediction is constant, NaN where the truth is), ``r2``, ``mae``.
    """
    truth = held.truth.astype(float)
    found = {"pearson": NAN, "spearman": NAN, "r2": NAN, "mae": float(mean_absolute_error(truth, value))}
    if len(truth) < 2 or np.ptp(truth) == 0:
        return found
    constant = np.ptp(value) <= 1e-12 * max(1.0, float(np.abs(value).max()))
    found["pearson"] = 0.0 if constant else float(pearsonr(value, truth)[0])
    found["spearman"] = 0.0 if constant else float(spearmanr(value, truth)[0])
    found["r2"] = float(r2_score(truth, value))
    return found


def survival_scores(risk: np.ndarray, held: HeldOut) -> dict[str, float]:
    """Harrell's c-index, and the one weighted by the probability of censoring.

    Parameters
    ----------
    risk
        Log risk (n,), higher is worse.
    held
        Slides, with (time, event) as truth.

    Returns
    -------
    ``c_index`` over pairs within folds, as risks of two models are on two scales; ``c_index_ipcw``, mean over folds
    weighted by slides, NaN where no fold defines it.
    """
    pairs = Concordance(0.0, 0)
    weighted: list[tuple[float, int]] = []
    for name in np.unique(held.fold):
        rows = np.flatnonzero(held.fold == name)
        time, event = held.truth[rows, 0], held.truth[rows, 1].astype(bool)
        found = concordance(risk[rows], time, event)
        pairs = Concordance(pairs.concordant + found.concordant, pairs.pairs + found.pairs)
        train = held.train[str(name)]
        index = ipcw_index(risk[rows], time, event, train_time=train[:, 0], train_event=train[:, 1].astype(bool))
        if np.isfinite(index):
            weighted.append((index, len(rows)))
    total = sum(n for _, n in weighted)
    ipcw = sum(index * n for index, n in weighted) / total if weighted else NAN
    return {"c_index": pairs.share, "c_index_ipcw": ipcw}


SCORERS: dict[str, Scorer] = {
    "classification": classification_scores,
    "regression": regression_scores,
    "survival": survival_scores,
}


def bootstrap_scores(
    predicted: Mapping[str, np.ndarray], held: HeldOut, score: Scorer, *, n: int, seed: int, level: float = 0.95
) -> dict[tuple[str, str], tuple[float, float]]:
    """Percentile intervals over patients, of every method's scores and of their differences to the first one's.

    All methods are scored on the same draws, so differences are paired.

    Parameters
    ----------
    predicted
        Predictions of the same slides by method; the first is the one that others are taken from.
    held
        Slides.
    score
        Function that scores a prediction.
    n
        Number of draws of patients, with replacement.
    seed
        Seed of the draws.
    level
        Coverage.

    Returns
    -------
    Lower and upper bound by (method, metric); for differences the method is ``"first - other"``. Draws in which a score
    is not defined, such as those that lack a class, are left out; NaN without any other.
    """
    rng = np.random.default_rng(seed)
    names, which = np.unique(held.patients, return_inverse=True)
    rows_of = [np.flatnonzero(which == i) for i in range(len(names))]
    drawn: dict[tuple[str, str], list[float]] = {}
    first = next(iter(predicted))
    for _ in range(n):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(names), len(names))])
        sample = held.take(rows)
        found = {method: score(values[rows], sample) for method, values in predicted.items()}
        for method, scores in found.items():
            for metric, value in scores.items():
                drawn.setdefault((method, metric), []).append(value)
                if method != first:
                    key = (f"{first} - {method}", metric)
                    drawn.setdefault(key, []).append(found[first][metric] - value)
    bounds = {}
    for name, values in drawn.items():
        finite = np.array(values)[np.isfinite(values)]
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]) if len(finite) else (NAN, NAN)
        bounds[name] = float(low), float(high)
    return bounds
