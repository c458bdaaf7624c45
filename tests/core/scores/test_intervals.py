"""Intervals of single spots: what they hold on patients that nothing was learned from, however few were held out."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from sealst._core.scores.intervals import LEVELS, MIN_UNITS, Residuals, Spread, counting_noise, fit_intervals
from sealst._errors import DataError

G = 40


def cohort(seed, n_patients, *, n=60, between=0.2, noise=0.0, depth=5000.0):
    """Sections of patients whose genes are at other levels: predicted by what the others' mean level lets expect.

    `noise` is how much patients differ in depth.
    """
    rng = np.random.default_rng(seed)
    rate = np.exp(np.random.default_rng(99).normal(-7.5, 1.2, G))
    shift = between * rng.normal(size=(n_patients, G))
    found = []
    for i in range(n_patients):
        signal = rng.normal(0, 0.6, (n, G)) * (np.arange(G) < G // 2)
        own = depth * np.exp(noise * rng.normal()) * rng.lognormal(0, 0.3, (n, 1))
        counts = rng.poisson(rate * np.exp(signal + shift[i]) * own)
        others = np.delete(shift, i, axis=0).mean(axis=0)
        predicted = np.log1p(1e4 * rate * np.exp(signal + others))
        measured = np.log1p(1e4 * counts / own)
        found.append(one(f"s{i}", f"p{i}", predicted, measured))
    return found


def one(section, patient, predicted, measured, known=None):
    p, y = (np.asarray(values, dtype=np.float32) for values in (predicted, measured))
    return Residuals(section, patient, p, y, np.ones(p.shape[1], dtype=bool) if known is None else known)


def held(spread, others, level):
    """Share of the values that lie inside, by gene, of each of some sections."""
    return np.array([inside(spread, part, level).mean(axis=0) for part in others])


def inside(spread, part, level):
    low, high = spread.limits(part.predicted, level)
    return (part.measured >= low) & (part.measured <= high)


def test_many_patients_are_held_as_often_as_is_said():
    spread = fit_intervals(cohort(0, 40))
    found = [held(spread, cohort(1, 60), level) for level in LEVELS]
    np.testing.assert_allclose([one.mean() for one in found], LEVELS, atol=0.03)
    # Not of all genes: of those that are seldom seen one count more decides.
    assert np.quantile(found[2].mean(axis=0), 0.1) > 0.85


@pytest.mark.parametrize("n_patients", [3, 4, 6])
@pytest.mark.parametrize(("noise", "more"), [(0.0, 0.03), (0.4, 0.06)])
def test_few_patients_are_enough_on_average(n_patients, noise, more):
    """Over cohorts: where patients differ much, intervals of few hold more."""
    found = []
    for seed in range(6):
        spread = fit_intervals(cohort(seed, n_patients, noise=noise))
        others = cohort(100 + seed, 6, noise=noise)
        found.append([held(spread, others, level).mean() for level in (0.8, 0.9)])
    beyond = np.mean(found, axis=0) - (0.8, 0.9)
    assert beyond.min() > -0.03
    assert beyond.max() < more


def test_three_patients_that_differ_reach_further_than_twelve():
    few, many = (
        np.mean([fit_intervals(cohort(seed, n, noise=0.8)).reach[2].mean() for seed in range(4)]) for n in (3, 12)
    )
    assert few > 1.3 * many


def test_coverage_does_not_depend_on_the_prediction():
    """Where counting noise is all there is, it is far larger at some predictions than at others."""
    spread = fit_intervals(cohort(0, 20, n=150, between=0.0))
    parts = cohort(1, 20, n=150, between=0.0)
    often = np.median(np.concatenate([part.predicted for part in parts]), axis=0)
    seen = np.flatnonzero((often[: G // 2] > 1) & (often[: G // 2] < 3))
    assert len(seen) > 4
    values = np.concatenate([part.predicted for part in parts])[:, seen]
    ok = np.concatenate([inside(spread, part, 0.9) for part in parts])[:, seen]
    low = values < np.quantile(values, 0.3, axis=0)
    high = values > np.quantile(values, 0.7, axis=0)
    assert ok[low].mean() == pytest.approx(0.9, abs=0.04)
    assert ok[high].mean() == pytest.approx(0.9, abs=0.04)
    assert (spread.slope[seen] > 0).mean() > 0.8


@given(st.integers(0, 100), st.integers(MIN_UNITS, 7), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_higher_shares_reach_further_and_nothing_is_below_0(seed, n_patients, between):
    spread = fit_intervals(cohort(seed, n_patients, n=20, between=between))
    assert (spread.constant > 0).all()
    assert (spread.slope >= 0).all()
    assert (np.diff(spread.reach, axis=0) >= 0).all()
    p = cohort(seed + 1, 2, n=5)[0].predicted
    sides = [spread.limits(p, level) for level in LEVELS]
    for (low, high), (lower, higher) in zip(sides, sides[1:], strict=False):
        assert (lower >= 0).all()
        assert (lower <= low).all()
        assert (low <= p).all()
        assert (p <= high).all()
        assert (high <= higher).all()
    assert high.dtype == np.float32


@given(st.permutations(range(5)))
@settings(max_examples=5, deadline=None)
def test_the_order_of_sections_does_not_matter(order):
    parts = cohort(0, 5, n=20)
    a, b = fit_intervals(parts), fit_intervals([parts[i] for i in order])
    np.testing.assert_allclose(a.reach, b.reach, rtol=1e-9)
    np.testing.assert_allclose(a.slope, b.slope, rtol=1e-9)


def test_patients_count_alike_and_their_sections_are_one():
    """A patient with many spots, or many sections, decides no more than another."""
    parts = cohort(0, 4, n=40)
    cut = [one(f"{p.section}{i}", p.patient, p.predicted[i::2], p.measured[i::2]) for p in parts for i in (0, 1)]
    np.testing.assert_allclose(fit_intervals(cut).reach, fit_intervals(parts).reach, rtol=1e-9)
    often = [
        parts[0]._replace(predicted=np.tile(parts[0].predicted, (9, 1)), measured=np.tile(parts[0].measured, (9, 1)))
    ]
    np.testing.assert_allclose(fit_intervals(often + parts[1:]).reach, fit_intervals(parts).reach, rtol=1e-6)
    # By section they are eight.
    assert not np.allclose(fit_intervals(cut, by="section").reach, fit_intervals(parts).reach)


def test_a_gene_is_known_where_three_measure_it():
    parts = cohort(0, 5)
    known = [np.arange(G) != i for i in range(5)]
    for gene, n in ((10, 3), (11, 2)):
        for mask in known[n:]:
            mask[gene] = False
    spread = fit_intervals([part._replace(known=mask) for part, mask in zip(parts, known, strict=True)])
    assert np.isnan(spread.reach[:, 11]).all()
    assert np.isfinite(np.delete(spread.reach, 11, axis=1)).all()
    assert np.isnan(spread.limits(parts[0].predicted, 0.9)[1]).any(axis=0).nonzero()[0].tolist() == [11]
    # What is not measured says nothing, whatever stands there.
    odd = [
        part._replace(measured=np.where(mask, part.measured, 99), known=mask)
        for part, mask in zip(parts, known, strict=True)
    ]
    np.testing.assert_array_equal(fit_intervals(odd).reach, spread.reach)


def test_a_gene_that_never_varies_is_no_trouble():
    parts = [part._replace(predicted=part.predicted.copy(), measured=part.measured.copy()) for part in cohort(0, 4)]
    for part in parts:
        part.predicted[:, :2] = 0
        part.measured[:, 0] = 0
    spread = fit_intervals(parts)
    assert np.isfinite(spread.reach).all()
    low, high = spread.limits(np.zeros((1, G), dtype=np.float32), 0.95)
    assert high[0, 0] < 1e-3 < high[0, 1]
    assert (low == 0).all()


@pytest.mark.parametrize(
    ("n", "by", "said"), [(2, "patient", r"2 held-out patient\(s\)"), (1, "section", "1 held-out section")]
)
def test_two_say_nothing_of_a_third(n, by, said):
    with pytest.raises(DataError, match=said):
        fit_intervals(cohort(0, n), by=by)
    alone = [part._replace(known=np.full(G, i < 2)) for i, part in enumerate(cohort(0, 4))]
    with pytest.raises(DataError, match="No gene is measured in 3"):
        fit_intervals(alone)


def test_blocks_of_genes_change_nothing(monkeypatch):
    parts = cohort(0, 4)
    whole = fit_intervals(parts)
    monkeypatch.setattr("sealst._core.scores.intervals._BLOCK", 7 * 240)
    np.testing.assert_allclose(fit_intervals(parts).reach, whole.reach, rtol=1e-12)


def test_counting_noise_is_that_of_counts():
    """Simulated: the variance of log1p of Poisson counts, by the depth."""
    rng, depth = np.random.default_rng(0), 20_000.0
    for rate in (10.0, 100.0, 1000.0):
        cp10k = rng.poisson(rate * depth / 1e4, 100_000) / depth * 1e4
        expected = 1e4 / depth * counting_noise(np.log1p(np.array(rate)))
        assert np.log1p(cp10k).var() == pytest.approx(expected, rel=0.1)
    assert counting_noise(np.array([-1.0, 0.0])).tolist() == [0, 0]
    np.testing.assert_allclose(Spread(np.ones(1), np.zeros(1), np.ones((4, 1))).deviation(np.ones((2, 1))), 1)
