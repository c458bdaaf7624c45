"""Survival: the partial likelihood as a loss, and concordance by scikit-survival."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

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
