from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from sealst._core.scores import slide_curves


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.4
    # Rounded, so that there are ties.
    return truth, np.round(truth + rng.normal(0, 1, 60), 1)


def test_area_under_the_curves_is_the_score(scored):
    truth, score = scored
    curve = slide_curves.roc(truth, score)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(roc_auc_score(truth, score))
    steps = slide_curves.precision_recall(truth, score)
    assert np.sum(np.diff(steps.x) * steps.y[1:]) == pytest.approx(average_precision_score(truth, score))
    # One height per recall, and no drop to 0 where the strictest call is wrong.
    assert (np.diff(steps.x) > 0).all()
    assert steps.y[0] == steps.y[1] > 0


def test_steps_have_the_precision_of_the_strictest_threshold_that_reaches_a_recall():
    curve = slide_curves.precision_recall(np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0]))
    np.testing.assert_allclose(
        slide_curves.height_at(curve, np.array([0.2, 0.5, 0.51, 1]), steps=True), [1, 1, 2 / 3, 2 / 3]
    )


def test_band_draws_patients_not_slides(scored):
    truth, score = scored
    alone = np.arange(60).astype(str)
    options = {"steps": False, "n": 100, "seed": 1}
    one = slide_curves.band(slide_curves.roc, truth, score, groups=alone, **options)
    same = slide_curves.band(slide_curves.roc, truth, score, groups=alone, **options)
    np.testing.assert_array_equal(one.low, same.low)
    assert (one.low <= one.high).all()
    assert ((one.low <= one.y + 1e-9) & (one.y <= one.high + 1e-9)).mean() > 0.9
    # Four copies of every slide under their patient's name tell no more than one.
    copies = [np.repeat(a, 4) for a in (truth, score, alone)]
    wide = slide_curves.band(slide_curves.roc, *copies[:2], groups=copies[2], **options)
    naive = slide_curves.band(slide_curves.roc, *copies[:2], groups=np.arange(240).astype(str), **options)
    assert (wide.high - wide.low).mean() == pytest.approx((one.high - one.low).mean(), rel=0.02)
    assert (naive.high - naive.low).mean() < 0.7 * (wide.high - wide.low).mean()


def test_band_without_both_classes_in_any_draw_is_unknown():
    truth, score = np.array([True, False]), np.array([1.0, 0.0])
    band = slide_curves.band(slide_curves.roc, truth, score, groups=np.array(["a", "b"]), steps=False, n=1, seed=1)
    wanted = np.random.default_rng(1).integers(2, size=2)
    assert np.isnan(band.low).all() == (len(set(wanted)) == 1)


def test_reliability_counts_every_slide_once():
    probability = np.array([0.0, 0.05, 0.15, 0.95, 1.0])
    bins = slide_curves.reliability(np.array([0, 1, 0, 1, 1], dtype=bool), probability, 10)
    np.testing.assert_array_equal(bins.counts, [2, 1, 2])
    np.testing.assert_allclose(bins.observed, [0.5, 0, 1])
    np.testing.assert_allclose(bins.predicted, [0.025, 0.15, 0.975])
    assert (bins.low <= bins.observed).all()
    # Wilson's interval of 2 of 2: 1 / (1 + z² / n) to 1.
    assert bins.low[-1] == pytest.approx(1 / (1 + 1.959964**2 / 2), abs=1e-4)


def test_survival_curve_and_test_by_hand():
    pytest.importorskip("sksurv")
    time, event = np.array([1.0, 2, 3, 4, 5]), np.array([True, False, True, False, True])
    curve = slide_curves.survival_curve(time, event)
    steps = {1: 4 / 5, 2: 4 / 5, 3: 4 / 5 * 2 / 3, 4: 4 / 5 * 2 / 3, 5: 0.0}
    assert curve.time[0] == 0
    assert curve.share[0] == 1
    np.testing.assert_allclose(curve.share[1:], list(steps.values()))
    np.testing.assert_array_equal(slide_curves.at_risk(time, np.array([0, 2, 2.5, 6])), [5, 4, 3, 0])
    # Log-rank by hand: observed and expected events of the first group at every time of an event.
    group = np.array([True, True, False, False, False])
    observed, expected, variance = 0.0, 0.0, 0.0
    for t in time[event]:
        n, n1 = (time >= t).sum(), (time[group] >= t).sum()
        d1 = (event & (time == t) & group).sum()
        observed, expected = observed + d1, expected + n1 / n
        variance += n1 / n * (1 - n1 / n)
    from scipy.stats import chi2

    assert slide_curves.log_rank(time, event, group) == pytest.approx(chi2.sf((observed - expected) ** 2 / variance, 1))


def test_nothing_happened():
    time, event = np.array([1.0, 2, 3]), np.zeros(3, dtype=bool)
    pytest.importorskip("sksurv")
    assert np.isnan(slide_curves.log_rank(time, event, np.array([True, False, False])))
    # Neither can a group differ where the only event is the last time, nor where one group is over before.
    for times, events in (
        ([1.0, 2, 3, 4], [0, 0, 0, 1]),
        ([1.0, 1, 1, 1], [1, 1, 1, 1]),
        ([1.0, 5, 2, 6], [0, 1, 0, 1]),
    ):
        degenerate = np.array(times), np.array(events, dtype=bool)
        assert np.isnan(slide_curves.log_rank(*degenerate, np.array([True, False, True, False])))
    curve = slide_curves.survival_curve(time, event)
    np.testing.assert_array_equal(curve.share, [1, 1])
    assert np.isnan(curve.low).all()


def test_only_one_group_is_observed_at_the_event():
    pytest.importorskip("sksurv")
    time, event = np.array([1.0, 2, 3, 4]), np.array([False, False, False, True])
    assert np.isnan(slide_curves.log_rank(time, event, np.array([True, False, True, False])))
