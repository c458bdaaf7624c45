"""How well genes are predicted on patients that took no part in training: estimates, intervals, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from sealst._core.scores.ceiling import noise_ceiling
from sealst._core.scores.metrics import gene_pearson
from sealst._errors import DataError

#: what a row of a table is about: a gene, the mean over a set of genes, the activity of a gene set
GENE, MEAN_OF, ACTIVITY = KINDS = ("gene", "genes", "pathway")
#: columns of a table after `name` and `kind`
NUMBERS = ("pearson", "low", "high", "ceiling", "explained", "slope", "pvalue", "padj")
COUNTS = ("n_patients", "n_sections", "n_spots")
BETTER = "better_than_chance"
#: what may be held out, by what folds are made of
PATIENTS, SECTIONS = "patients", "sections"
HELD_OUT = {"patient": PATIENTS, "section": SECTIONS}
#: expected share of genes called better than chance that are not
FALSE_DISCOVERIES = 0.05
#: a section with fewer spots says nothing: two always correlate by 1 or -1
LEAST_SPOTS = 10
#: samples of spots of every section, and of patients
_DRAWS, _PATIENT_DRAWS = 200, 1000
_LEVEL = 0.95
#: a correlation of 1 has no Fisher transform
_ALMOST_ONE = 1 - 1e-6
#: with so low a ceiling a share of it is noise divided by noise
_LEAST_CEILING = 0.1
#: values of a block of weights or genes
_BLOCK = 2**24


class SectionScores(NamedTuple):
    """What is kept of the held-out spots of a section; arrays have a value per column (gene, then gene set)."""

    section: str
    patient: str
    n_spots: int
    #: Pearson over the spots; NaN where unknown
    pearson: np.ndarray
    #: the same over spots drawn anew, with replacement, (draws, columns)
    drawn: np.ndarray
    #: sums over spots of products of deviations: measured with predicted, predicted with itself
    covariance: np.ndarray
    variance: np.ndarray
    #: correlation of two halves of the counts, see `half_correlation`; NaN where unknown
    half: np.ndarray


def score_section(
    predicted: np.ndarray,
    measured: np.ndarray,
    *,
    section: str,
    patient: str,
    known: np.ndarray | None = None,
    half: np.ndarray | None = None,
    seed: int = 0,
) -> SectionScores:
    """Scores of a section whose patient took no part in training.

    Parameters
    ----------
    predicted, measured
        Values (n, columns) in one unit.
    section, patient
        Names.
    known
        bool (columns,): which columns were measured; None for all.
    half
        Correlation of halves of counts (columns,); None where it is unknown.
    seed
        Seed of the draws of spots.
    """
    known = np.ones(predicted.shape[1], dtype=bool) if known is None else known
    p, t = (np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64) for x in (predicted, measured))
    lost = np.where(known, 0.0, np.nan)
    return SectionScores(
        section=section,
        patient=patient,
        n_spots=len(p),
        pearson=gene_pearson(predicted, measured) + lost,
        drawn=_drawn(p, t, np.random.default_rng(seed)) + lost.astype(np.float32),
        covariance=np.einsum("ng,ng->g", p, t) * known,
        variance=np.einsum("ng,ng->g", p, p) * known,
        half=np.full(len(known), np.nan) if half is None else half + lost,
    )


def _drawn(p: np.ndarray, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pearson over spots drawn with replacement, float32 (draws, columns); of centred values (n, columns)."""
    n, width = p.shape
    found = np.empty((_DRAWS, width), dtype=np.float32)
    rows, columns = max(1, _BLOCK // n), max(1, _BLOCK // (8 * n))
    for start in range(0, _DRAWS, rows):
        weight = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, _DRAWS - start)) / n
        for left in range(0, width, columns):
            a, b = p[:, left : left + columns], t[:, left : left + columns]
            x, y = weight @ a, weight @ b
            spread = (weight @ a**2 - x**2).clip(0) * (weight @ b**2 - y**2).clip(0)
            with np.errstate(divide="ignore", invalid="ignore"):
                r = (weight @ (a * b) - x * y) / np.sqrt(spread)
            found[start : start + rows, left : left + columns] = np.where(spread > 0, r.clip(-1, 1), 0)
    return np.where(np.ptp(t, axis=0) == 0, np.float32("nan"), found)


def reliability_table(
    scores: Sequence[SectionScores],
    genes: Sequence[str],
    *,
    sets: Mapping[str, np.ndarray] | None = None,
    activities: Sequence[str] = (),
    by: str = "patient",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per gene, set of genes and gene set: how well it is predicted where nothing was learned.

    Correlations are within sections; a patient counts by the mean of the sections, and all patients alike.

    Parameters
    ----------
    scores
        Held-out sections, each once. Their columns are the genes, then the activities.
    genes
        Names of the genes.
    sets
        Columns of sets of genes, whose mean is a row, by name.
    activities
        Names of the gene sets whose activity was predicted and measured.
    by
        What was held out: ``"patient"``, or ``"section"``, where patients were seen and sections count by themselves.
    seed
        Seed of the draws.

    Returns
    -------
    Columns `name`, `kind`; `pearson` with `low` and `high` (95 %, patients drawn anew and then spots); `ceiling` and
    `explained` (`pearson` / `ceiling`); `slope` of measured on predicted; `pvalue` and `padj` (Benjamini-Hochberg over
    the rows of a kind) that it is not above 0; `better_than_chance`; `n_patients`, `n_sections`, `n_spots`.

    Raises
    ------
    DataError
        When there is no section.
    """
    if not scores:
        raise DataError("There is no held-out section to score.")
    sets, n_genes = dict(sets or {}), len(genes)
    columns = [np.array([i]) for i in range(n_genes)]
    columns += [*sets.values(), *(np.array([n_genes + i]) for i in range(len(activities)))]
    unit = np.array([one.patient if by == "patient" else one.section for one in scores])
    units = [[one for one, name in zip(scores, unit, strict=True) if name == own] for own in np.unique(unit)]
    by_unit = np.array([_mean([one.pearson for one in own]) for own in units])
    drawn = np.array([_mean([one.drawn for one in own]) for own in units])
    half = _mean([_mean([one.half for one in own]) for own in units])
    r = _over(by_unit, columns)
    found: dict[str, np.ndarray] = {"pearson": _mean(r)}
    found["low"], found["high"] = _interval(_over(drawn, columns), np.random.default_rng(seed))
    found["ceiling"] = _over(noise_ceiling(half)[None], columns)[0]
    enough = found["ceiling"] >= _LEAST_CEILING
    found["explained"] = np.where(enough, found["pearson"] / np.where(enough, found["ceiling"], 1), np.nan)
    slope = slope_of(scores)
    found["slope"] = np.array([_median(slope[own]) for own in columns])
    found["pvalue"] = above_zero(r)
    kind = np.repeat(KINDS, [n_genes, len(sets), len(activities)])
    found["padj"] = np.full(len(kind), np.nan)
    for name in KINDS:
        rows = np.flatnonzero((kind == name) & np.isfinite(found["pvalue"]))
        if len(rows):
            from scipy import stats

            found["padj"][rows] = stats.false_discovery_control(found["pvalue"][rows], method="bh")
    frame = pd.DataFrame({"name": [*map(str, genes), *sets, *activities], "kind": kind} | found)
    frame[BETTER] = frame["padj"].to_numpy() < FALSE_DISCOVERIES
    scored = np.array([_over(one.pearson[None], columns)[0] for one in scores])
    return frame.assign(**_counts(scores, np.isfinite(scored)))[["name", "kind", *NUMBERS, BETTER, *COUNTS]]


def _counts(scores: Sequence[SectionScores], known: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers behind every row; `known` is (sections, rows)."""
    patients = np.array([one.patient for one in scores])
    spots = np.array([one.n_spots for one in scores])
    per_patient = [known[patients == name].any(axis=0) for name in np.unique(patients)]
    sums = (np.sum(per_patient, axis=0), known.sum(axis=0), (known * spots[:, None]).sum(axis=0))
    return {name: np.asarray(total, dtype=np.int64) for name, total in zip(COUNTS, sums, strict=True)}


def _mean(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    x = np.asarray(values, dtype=np.float64)
    n = np.isfinite(x).sum(axis=0)
    mean: np.ndarray = np.where(n > 0, np.nansum(x, axis=0) / np.maximum(n, 1), np.nan)
    return mean


def _median(values: np.ndarray) -> float:
    # Of a mean a slope that explodes, of a prediction that hardly varies, would make nonsense.
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def _over(values: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Means over groups of the last axis: (..., columns) to (..., groups)."""
    return np.stack([_mean(np.moveaxis(values[..., own], -1, 0)) for own in columns], axis=-1)


def _interval(drawn: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a mean over units, drawn anew, each of spots drawn anew; drawn (units, draws, rows)."""
    n, draws, _ = drawn.shape
    means = np.empty((_PATIENT_DRAWS, drawn.shape[2]), dtype=np.float32)
    for i in range(_PATIENT_DRAWS):
        # A unit that is drawn twice has other spots each time.
        means[i] = _mean(drawn[rng.integers(n, size=n), rng.integers(draws, size=n)])
    unknown = ~np.isfinite(means).any(axis=0)
    means[:, unknown] = 0
    low, high = np.nanquantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    low[unknown] = high[unknown] = np.nan
    return low, high


def slope_of(scores: Sequence[SectionScores]) -> np.ndarray:
    """Slope of measured on predicted within sections, all spots together; 1 is calibrated, NaN where constant."""
    covariance, variance = (sum(getattr(one, name) for one in scores) for name in ("covariance", "variance"))
    spots = sum(one.n_spots for one in scores)
    constant = variance <= 1e-12 * spots
    return np.where(constant, np.nan, covariance / np.where(constant, 1, variance))


def above_zero(r: np.ndarray) -> np.ndarray:
    """One-sided p-values that correlations of patients are above 0 on average, by a moderated t-test.

    Patients are what is repeated, not spots: neighbouring spots resemble each other, so that a test over spots finds
    anything. Few patients tell little about how much a single gene varies between them. The genes share what they
    know: the variance of each is drawn towards that of all, as far as the variances themselves say (Smyth 2004).
    Correlations are Fisher-transformed.

    Parameters
    ----------
    r
        Correlations (patients, rows); NaN where unknown.

    Returns
    -------
    float64 (rows,): NaN below two patients.

    References
    ----------
    Smyth, *Linear models and empirical Bayes methods for assessing differential expression in microarray experiments*,
    Statistical Applications in Genetics and Molecular Biology 3 (2004).

    Examples
    --------
    >>> above_zero(np.array([[0.4, 0.1], [0.5, -0.1], [0.45, 0.0]])) < 0.05
    array([ True, False])
    """
    z = np.arctanh(np.clip(r, -_ALMOST_ONE, _ALMOST_ONE))
    n = np.isfinite(z).sum(axis=0)
    tested = n >= 2
    out = np.full(r.shape[1], np.nan)
    if not tested.any():
        return out
    z, n = z[:, tested], n[tested]
    mean, df = _mean(z), n - 1.0
    variance = np.nansum((z - mean) ** 2, axis=0) / df
    prior_df, prior = _prior(variance, df)
    # Its share in the variance of a row: all of it where the rows do not differ.
    share = 1.0 if np.isinf(prior_df) else prior_df / (prior_df + df)
    pooled = share * prior + (1 - share) * variance
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(mean == 0, 0.0, mean / np.sqrt(pooled / n))
    from scipy import stats

    # No more than all rows together have.
    out[tested] = stats.t.sf(score, np.minimum(df + prior_df, df.sum()))
    return out


def _prior(variance: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and value of the prior of variances with `df` degrees of freedom each, by moments of logs."""
    # Of a constant prediction, which varies nowhere.
    own = variance > 0
    if own.sum() < 2:
        return 0.0, 0.0
    v, half = variance[own], df[own] / 2
    e = np.log(v) - special.digamma(half) + np.log(half)
    centre = float(e.mean())
    spread = float(e.var(ddof=1) - special.polygamma(1, half).mean())
    if spread <= 0:
        return float("inf"), float(np.exp(centre))
    from scipy import optimize

    # Trigamma falls from infinity to 0.
    half_prior = float(optimize.brentq(lambda x: special.polygamma(1, np.exp(x)) - spread, -30, 30))
    k = np.exp(half_prior)
    return float(2 * k), float(np.exp(centre + special.digamma(k) - np.log(k)))
