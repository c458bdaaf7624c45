"""Intervals for single spots of patients that were not seen: how far what is measured may lie from what is predicted.

Conformal prediction, with patients as what is exchangeable (Dunn, Wasserman and Ramdas 2023; Lee, Barber and Willett
2023). Scores are residuals in units of a deviation that is known when a spot is predicted, and a quantile of them, in
which every patient counts alike, is the reach of an interval. Whom the quantile was not taken from is further away than
whom it was, so every patient is left out of it once more, and what it then lacks is made good.

What was chosen by simulation (`docs/guide/intervals.md`): residuals taken as they are, not tail by tail, which is as
narrow where expression ends at 0 and needs no quantiles so far out; a deviation of two numbers per gene, where bins of
the predicted value took differences between patients for differences between spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from sealst._errors import DataError
from sealst._validate import check_choice

#: shares of spots that intervals are kept for
LEVELS = (0.5, 0.8, 0.9, 0.95)
#: of two the residuals are mirror images: each was predicted at the level of the other
MIN_UNITS = 3
#: units are left out one by one up to so many, then in as many groups
_MAX_FOLDS = 10
#: of the variance at a usual prediction, at least this part is taken for constant
_CONSTANT_PART = 0.1
#: added to the variance of counting noise over spots: where predictions hardly differ, no slope can be told
_LEAST_NOISE = 1e-3
#: deviations of genes that never vary, and reaches, which logarithms are taken of
_LEAST = 1e-6
#: what held-out spots need, relative to the quantile of the others, is counted by its logarithm: range and bins
_RANGE, _N_BINS = 8.0, 3200
_WIDTH = 2 * _RANGE / _N_BINS
#: further than this, as a logarithm, no interval is made wider, and no number of a spread is larger
_MOST, MOST = 20.0, 1e12
#: values of a block of genes
_BLOCK = 2**21


class Residuals(NamedTuple):
    """Held-out spots of a section."""

    section: str
    patient: str
    #: log1p-CP10k of single spots, float32 (n, genes)
    predicted: np.ndarray
    measured: np.ndarray
    #: bool (genes,): which genes the section measures
    known: np.ndarray


@dataclass(frozen=True, eq=False)
class Spread:
    """How far single spots of new patients may lie from their prediction, by gene; NaN where it is unknown.

    The deviation at a prediction p is that of ``constant + slope * counting_noise(p)``, and intervals reach so many
    deviations to either side.
    """

    #: (genes,), variances
    constant: np.ndarray
    slope: np.ndarray
    #: (levels, genes), of `LEVELS`
    reach: np.ndarray

    def limits(self, predicted: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits, float32 as `predicted` (n, genes), that hold the share `level` of spots.

        Expression is not negative, so a lower limit is not, either.
        """
        p = np.asarray(predicted, dtype=np.float32)
        around = self.deviation(p) * self.reach[LEVELS.index(level)].astype(np.float32)
        return np.maximum(p - around, 0), p + around

    def deviation(self, predicted: np.ndarray) -> np.ndarray:
        """Deviations of spots at predictions (n, genes)."""
        return _deviation(predicted, self.constant.astype(predicted.dtype), self.slope.astype(predicted.dtype))


def counting_noise(predicted: np.ndarray) -> np.ndarray:
    """Shape of the variance that counting alone gives log1p(x) where log1p-CP10k is `predicted`: x / (1 + x)².

    By the delta method, for counts whose variance is their mean. It rises while a gene is rarely seen, and falls where
    it is counted often.
    """
    p = np.maximum(predicted, 0)
    noise: np.ndarray = np.expm1(p) * np.exp(-2 * p)
    return noise


def _deviation(predicted: np.ndarray, constant: np.ndarray, slope: np.ndarray) -> np.ndarray:
    deviation: np.ndarray = np.sqrt(constant + slope * counting_noise(predicted))
    return deviation


def fit_intervals(residuals: Sequence[Residuals], *, by: str = "patient") -> Spread:
    """How far measured expression lies from predictions of patients that were held out.

    Parameters
    ----------
    residuals
        Held-out sections, each once.
    by
        What was held out: ``"patient"``, or ``"section"``, where patients were seen and sections count by themselves.

    Raises
    ------
    DataError
        When fewer than `MIN_UNITS` were held out, or measure a gene.

    References
    ----------
    Dunn, Wasserman and Ramdas, *Distribution-free prediction sets for two-layer hierarchical models*, JASA 118 (2023);
    Lee, Barber and Willett, *Distribution-free inference with hierarchical data*, arXiv 2306.06342 (2023); Barber et
    al., *Predictive inference with the jackknife+*, Annals of Statistics 49 (2021).
    """
    check_choice("by", by, ("patient", "section"))
    names, unit = np.unique([one.patient if by == "patient" else one.section for one in residuals], return_inverse=True)
    n_units = len(names)
    if n_units < MIN_UNITS:
        raise DataError(f"{n_units} held-out {by}(s) do not say how far others lie; at least {MIN_UNITS} are needed.")
    owner = np.repeat(unit, [len(one.predicted) for one in residuals])
    n_genes = len(residuals[0].known)
    constant, slope = np.full((2, n_genes), np.nan)
    reach = np.full((len(LEVELS), n_genes), np.nan)
    counts = np.zeros((n_units, len(LEVELS), _N_BINS))
    step = max(1, _BLOCK // max(1, len(owner)))
    for start in range(0, n_genes, step):
        own = slice(start, start + step)
        block = _Block.of(residuals, owner, n_units, own)
        everyone = np.arange(n_units)
        found = block.fitted(everyone)
        enough = np.where((block.n_known > 0).sum(axis=0) >= MIN_UNITS, 0.0, np.nan)
        constant[own], slope[own], reach[:, own] = (values + enough for values in found)
        for held in np.array_split(everyone, min(n_units, _MAX_FOLDS)):
            block.count(held, np.setdiff1d(everyone, held), counts)
    if (n := int((counts.sum(axis=(1, 2)) > 0).sum())) < MIN_UNITS:
        raise DataError(f"No gene is measured in {MIN_UNITS} of the held-out {by}s, but in {n}.")
    wider = np.array([_next_unit(counts[:, i], level) for i, level in enumerate(LEVELS)])
    # What a higher share needs is no less.
    reach = np.maximum.accumulate(reach * np.exp(wider)[:, None], axis=0).clip(max=MOST)
    return Spread(constant, slope, reach)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some genes of all held-out spots."""

    #: (n, genes): predictions, and distances of what was measured
    predicted: np.ndarray
    away: np.ndarray
    #: unit of every spot, (n,), and whether it measures the gene, (n, genes)
    owner: np.ndarray
    known: np.ndarray
    #: by unit, number of spots that measure the gene, (units, genes)
    n_known: np.ndarray

    @classmethod
    def of(cls, residuals: Sequence[Residuals], owner: np.ndarray, n_units: int, own: slice) -> _Block:
        predicted = np.concatenate([one.predicted[:, own] for one in residuals]).astype(np.float64)
        measured = np.concatenate([one.measured[:, own] for one in residuals])
        known = np.concatenate([np.broadcast_to(one.known[own], one.predicted[:, own].shape) for one in residuals])
        n_known = np.stack([known[owner == i].sum(axis=0) for i in range(n_units)])
        return cls(predicted, np.where(known, np.abs(measured - predicted), 0), owner, known, n_known)

    def weights(self, units: np.ndarray) -> np.ndarray:
        """Weights of spots, (n, genes): units count alike, and sum to 1; 0 where fewer than two measure a gene."""
        n_units = (self.n_known[units] > 0).sum(axis=0)
        share = np.zeros(self.n_known.shape)
        share[units] = np.where(n_units > 1, 1 / (np.maximum(n_units, 1) * np.maximum(self.n_known[units], 1)), 0)
        return np.where(self.known, share[self.owner], 0)

    def fitted(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Constant and slope of the variance, and quantiles of scores, by some units; NaN where two do not measure."""
        w = self.weights(units)
        constant, slope = self.variance(w, units)
        scores = self.away / np.maximum(_deviation(self.predicted, constant, slope), _LEAST)
        found = np.where(w.sum(axis=0) > 0, _quantiles(scores, w, LEVELS), np.nan)
        unknown = np.where(np.isnan(found[0]), np.nan, 0.0)
        return constant + unknown, slope + unknown, np.maximum(found, _LEAST)

    def variance(self, w: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Constant and slope: of squared residuals on counting noise, within units.

        Between units it would follow their levels: whose expression is high was predicted by those where it is low.
        """
        square, noise = self.away**2, counting_noise(self.predicted)
        mean_square, mean_noise = (w * square).sum(axis=0), (w * noise).sum(axis=0)
        covariance, spread = np.zeros((2, w.shape[1]))
        for i in units:
            part = w[self.owner == i]
            total = np.maximum(part.sum(axis=0), _LEAST)
            x, y = (values[self.owner == i] for values in (noise, square))
            x = x - (part * x).sum(axis=0) / total
            covariance += (part * x * y).sum(axis=0)
            spread += (part * x * x).sum(axis=0)
        slope = np.maximum(covariance, 0) / (spread + _LEAST_NOISE)
        slope = np.minimum(slope, (1 - _CONSTANT_PART) * mean_square / np.maximum(mean_noise, _LEAST))
        return mean_square - slope * mean_noise + _LEAST**2, slope

    def count(self, held: np.ndarray, others: np.ndarray, counts: np.ndarray) -> None:
        """Add to `counts` (units, levels, bins) what spots of `held` need, relative to the quantiles of `others`."""
        constant, slope, reach = self.fitted(others)
        for i in held:
            rows = self.owner == i
            scores = self.away[rows] / np.maximum(_deviation(self.predicted[rows], constant, slope), _LEAST)
            used = self.known[rows] & np.isfinite(reach[0])
            for j, own in enumerate(reach):
                needed = np.log(np.maximum(scores[used] / np.broadcast_to(own, used.shape)[used], np.exp(-_RANGE)))
                bins = ((needed + _RANGE) / _WIDTH).astype(np.int64).clip(0, _N_BINS - 1)
                counts[i, j] += np.bincount(bins, minlength=_N_BINS)


def _quantiles(scores: np.ndarray, weights: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Quantiles of every column, (levels, columns): the lowest score that so much of the weight does not exceed."""
    order = np.argsort(scores, axis=0, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=0)
    upto = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
    # Sums of weights are rounded.
    at = np.stack([(upto < level - 1e-9).sum(axis=0) for level in levels]).clip(max=len(scores) - 1)
    return np.take_along_axis(ordered, at, axis=0)


def _next_unit(counts: np.ndarray, level: float) -> float:
    """Logarithm of the factor by which quantiles must be wider to hold the share `level` of a further unit's spots.

    `counts` (units, bins) are those of logarithms. What a unit needs as a whole varies; what is expected of the next
    one is a t-distribution about the mean of those seen, wider by what their number leaves unknown. With many units
    it is the quantile of all, each counting alike.
    """
    counts = counts[counts.sum(axis=1) > 0]
    n, share = len(counts), counts / counts.sum(axis=1, keepdims=True)
    upper = np.linspace(-_RANGE, _RANGE, _N_BINS + 1)[1:]
    needed = np.array([np.interp(level, np.cumsum(one), upper) for one in share])
    mean, spread = needed.mean(), np.sqrt(needed.var(ddof=1) * (1 + 1 / n))
    within = upper - _WIDTH / 2 - needed[:, None]
    # No finer than the bins are.
    spread = max(spread, _WIDTH)

    def held(x: float) -> float:
        return float((share * special.stdtr(n - 1, (x - mean - within) / spread)).sum() / n)

    if held(_MOST) < level:
        return _MOST
    return float(optimize.brentq(lambda x: held(x) - level, -2 * _MOST, _MOST, xtol=1e-4))
