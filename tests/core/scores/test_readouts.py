"""Linear readouts behind a trained encoder, on arrays with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.probes import Spectral, ridge_probe, within_sections
from sealst._core.scores.readouts import best_readouts, fit_readout
from sealst._errors import DataError


def cohort(n_sections=4, n=60, d=8, genes=12, rank=None, noise=0.5, seed=0, level=5.0):
    """Embeddings and expression that agree within sections; sections differ in level and scale for no reason."""
    rng = np.random.default_rng(seed)
    section = np.repeat(np.arange(n_sections), n)
    x = rng.normal(size=(len(section), d))
    coef = rng.normal(size=(d, genes))
    if rank:
        coef = rng.normal(size=(d, rank)) @ rng.normal(size=(rank, genes))
    signal = x @ coef
    y = signal + noise * signal.std() * rng.normal(size=signal.shape)
    scale = rng.uniform(0.5, 2.0, (n_sections, 1))[section]
    shift = level * rng.normal(size=(n_sections, genes))[section]
    moved = x + level * rng.normal(size=(n_sections, d))[section]
    return moved, y * scale + shift, section, x, coef


def test_what_differs_between_sections_is_not_learned():
    x, y, section, inner, coef = cohort(noise=0.1)
    found = fit_readout(x, {"single": y}, y, groups=section, sections=section, ranks=())
    fresh = np.random.default_rng(1).normal(size=(200, x.shape[1]))
    assert gene_pearson(fresh @ found.coef, fresh @ coef).min() > 0.98
    # Fitted across sections, their levels drown it.
    across = ridge_probe(x, y, groups=section).predict(fresh)
    assert np.nanmean(gene_pearson(across, fresh @ coef)) < 0.9


def test_the_level_is_the_mean_over_sections():
    x, y, section, *_ = cohort()
    found = fit_readout(x, {"single": y}, y, groups=section, sections=section)
    centre = np.mean([x[section == s].mean(axis=0) for s in range(4)], axis=0)
    level = np.mean([y[section == s].mean(axis=0) for s in range(4)], axis=0)
    np.testing.assert_allclose(centre @ found.coef + found.intercept, level, atol=1e-8)


def test_the_target_that_predicts_single_spots_best_is_kept():
    x, y, section, inner, coef = cohort(noise=3.0)
    clean = inner @ coef
    found = fit_readout(x, {"noisy": y, "clean": clean}, clean, groups=section, sections=section, ranks=())
    assert found.target == "clean"
    assert found.scores["clean", None] > found.scores["noisy", None]


def test_a_target_is_left_for_one_that_is_clearly_better_alone():
    x, y, section, *_ = cohort(noise=1.0, genes=30)
    spoilt = y + 0.2 * y.std() * np.random.default_rng(5).normal(size=y.shape)
    found = fit_readout(x, {"spoilt": spoilt, "single": y}, y, groups=section, sections=section, ranks=())
    # A little better is not enough.
    assert found.scores["single", None] > found.scores["spoilt", None]
    assert found.target == "spoilt"
    useless = np.random.default_rng(6).normal(size=y.shape)
    assert fit_readout(x, {"useless": useless, "single": y}, y, groups=section, sections=section).target == "single"


@pytest.mark.parametrize(("hidden", "first"), [(0, "usual"), (7, "beside")])
def test_what_is_seen_is_the_usual_unless_something_is_clearly_better(hidden, first):
    x, y, section, *_ = cohort(d=8, noise=1.0)
    usual = np.array(x)
    usual[:, :hidden] = 0
    beside = x + 0.05 * np.random.default_rng(1).normal(size=x.shape)
    found = best_readouts(
        {"usual": usual, "beside": beside, "whole": x}, {"single": y}, y, groups=section, sections=section
    )
    assert next(iter(found)) == first
    rest = [one.score for one in list(found.values())[1:]]
    assert rest == sorted(rest, reverse=True)


def test_a_low_rank_is_found():
    x, y, section, *_ = cohort(d=40, genes=60, rank=2, noise=4.0)
    found = fit_readout(x, {"single": y}, y, groups=section, sections=section, ranks=(2, 20))
    assert found.rank == 2
    assert np.linalg.matrix_rank(found.coef, tol=1e-6 * np.abs(found.coef).max()) == 2


@settings(max_examples=15, deadline=None)
@given(noise=st.sampled_from([0.5, 1.0, 3.0]), wide=st.booleans(), seed=st.integers(0, 20))
def test_the_penalty_is_twice_the_ratio_of_variances(noise, wide, seed):
    rng = np.random.default_rng(seed)
    n, d, genes = 200, 250 if wide else 30, 100
    section = np.repeat(np.arange(4), n // 4)
    x = rng.normal(size=(n, d))
    y = x @ rng.normal(size=(d, genes)) + noise * np.sqrt(d) * rng.normal(size=(n, genes))
    found = fit_readout(x, {"single": y}, y, groups=section, sections=section, ranks=())
    assert len(np.unique(found.alphas)) == 1
    # Targets keep their common deviation, so the ratio of variances is noise² d; the grid is 1.8 times apart.
    assert 0.4 < found.alphas[0] / (2 * noise**2 * d) < 2.5


def test_noise_gets_the_strongest_penalty():
    x, y, section, *_ = cohort(genes=100)
    y = np.random.default_rng(5).normal(size=y.shape)
    found = fit_readout(x, {"single": y}, y, groups=section, sections=section, ranks=())
    assert found.alphas.min() > 1e3


def test_the_likelihood_is_that_of_the_mixed_model():
    rng = np.random.default_rng(0)
    for n, d in ((30, 6), (12, 40)):
        x, y = rng.normal(size=(n, d)), rng.normal(size=(n, 3))
        alphas = np.array([1.0, 10.0, 500.0])
        fit = Spectral(x, y, None)
        found = fit.likelihood(y, alphas, lost=1)
        z, centred = fit.scaler.transform(x), y - y.mean(axis=0)
        for alpha, row in zip(alphas, found, strict=True):
            covariance = np.eye(n) + z @ z.T / alpha
            left = np.einsum("ig,ij,jg->g", centred, np.linalg.inv(covariance), centred)
            expected = -0.5 * ((n - 1) * np.log(left) + np.linalg.slogdet(covariance)[1])
            np.testing.assert_allclose(row, expected, rtol=1e-8)


def test_a_gene_is_fitted_where_it_is_measured():
    x, y, section, *_ = cohort(noise=0.3)
    known = np.ones(y.shape, bool)
    known[:, :5] = (section < 3)[:, None]
    spoiled = np.where(known, y, 99.0)
    found = fit_readout(x, {"single": spoiled}, spoiled, groups=section, sections=section, known=known, ranks=())
    rows = section < 3
    alone = fit_readout(x[rows], {"single": y[rows]}, y[rows], groups=section[rows], sections=section[rows], ranks=())
    np.testing.assert_allclose(gene_pearson(x @ found.coef, x @ alone.coef)[:5], 1, atol=1e-3)


def test_genes_that_hardly_any_spot_measures_keep_their_mean():
    x, y, section, *_ = cohort()
    known = np.ones(y.shape, bool)
    known[4:, 0] = False
    found = fit_readout(x, {"single": y}, y, groups=section, sections=section, known=known, ranks=())
    assert not found.coef[:, 0].any()
    assert found.intercept[0] == pytest.approx(y[:4, 0].mean())
    assert np.isfinite(found.alphas[1:]).all()
    assert found.coef[:, 1:].any(axis=0).all()
    with pytest.raises(DataError, match="leave none to hold out"):
        fit_readout(x[:4], {"single": y[:4]}, y[:4], groups=section[:4], sections=section[:4])


def test_held_out_slopes_are_one():
    x, y, section, inner, coef = cohort(n_sections=6, n=200, noise=2.0, level=0.0)
    found = fit_readout(x[:1000], {"a": y[:1000]}, y[:1000], groups=section[:1000], sections=section[:1000], ranks=())
    p, truth = x[1000:] @ found.coef, y[1000:] / y[1000:].std() * y[:1000].std()
    slope = ((p - p.mean(0)) * (truth - truth.mean(0))).sum() / ((p - p.mean(0)) ** 2).sum()
    assert slope == pytest.approx(1, abs=0.15)


@settings(max_examples=20, deadline=None)
@given(st.booleans(), st.integers(1, 5))
def test_a_reduced_rank_is_the_best_of_its_rank(wide, rank):
    rng = np.random.default_rng(rank)
    x, y = rng.normal(size=(12 if wide else 60, 20)), rng.normal(size=(12 if wide else 60, 9))
    fit, alphas = Spectral(x, y, None), np.full(9, 3.0)
    full, leading = fit.coef(alphas), fit.directions(alphas, 7)[:rank]
    reduced = full @ leading.T @ leading
    z = fit.scaler.transform(x)
    # Eckart and Young: what is lost of the fitted values is the tail of their singular values.
    singular = np.linalg.svd(z @ full, compute_uv=False)
    assert np.linalg.norm(z @ (full - reduced)) == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), rel=1e-6)


@given(st.integers(2, 5), st.integers(0, 50))
def test_within_sections_takes_out_levels_and_scales(n_sections, seed):
    rng = np.random.default_rng(seed)
    section = np.repeat(np.arange(n_sections), rng.integers(2, 30, n_sections))
    values = rng.normal(size=(len(section), 3))
    moved = values + 9 * rng.normal(size=(n_sections, 3))[section]
    for out in (within_sections(moved, section), within_sections(moved, section, deviation=True)):
        means = np.array([out[section == s].mean(axis=0) for s in range(n_sections)])
        np.testing.assert_allclose(means, means[:1].repeat(n_sections, 0), atol=1e-9)
    np.testing.assert_allclose(
        np.diff(within_sections(moved, section)[section == 0], axis=0), np.diff(moved[section == 0], axis=0), atol=1e-9
    )


def test_scales_of_large_sections_become_alike_and_small_ones_borrow():
    rng = np.random.default_rng(0)
    section = np.repeat([0, 1, 2], [4000, 4000, 3])
    values = rng.normal(size=(8003, 2)) * np.array([1.0, 4.0, 50.0])[section][:, None]
    out = within_sections(values, section, deviation=True)
    large = [out[section == s].std() for s in (0, 1)]
    assert large[0] == pytest.approx(large[1], rel=0.05)
    assert out[section == 2].std() > 3 * large[0]
