from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.special import gammaln
from scipy.stats import nbinom, poisson
from torch.distributions import NegativeBinomial

from sealst._core.losses.registry import negative_binomial
from sealst._errors import DataError

check = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)


@st.composite
def sections(draw, dtype=torch.float64):
    """Prediction, counts, library, log dispersion and mask."""
    rng = np.random.default_rng(draw(seeds))
    n, genes = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pred, counts = rng.uniform(0.02, 8, (n, genes)), rng.poisson(rng.choice([0.2, 5, 300], (n, genes)))
    library, log_theta = rng.uniform(300, 3e4, n), rng.uniform(-3, 9, genes)
    arrays = [torch.tensor(x, dtype=dtype) for x in (pred, counts, library, log_theta)]
    return [*arrays, torch.tensor(rng.random((n, genes)) > 0.3)]


def mean_of(pred, library, target_sum=1e4):
    return torch.expm1(pred) * library[:, None] / target_sum


@check
@given(sections(), st.sampled_from([1e4, 1e6]))
def test_equals_scipy_on_measured_entries(data, target_sum):
    pred, counts, library, log_theta, mask = data
    theta = log_theta.exp()
    mu = mean_of(pred.clamp(min=np.log1p(1e-6 * target_sum)), library, target_sum)
    expected = -nbinom.logpmf(counts, theta, theta / (theta + mu))
    options = {"library": library, "log_theta": log_theta, "target_sum": target_sum}
    np.testing.assert_allclose(negative_binomial(pred, counts, **options), expected.mean(), rtol=1e-8)
    measured = expected[mask.numpy()].mean() if mask.any() else 0.0
    unmeasured = torch.where(mask, counts, torch.nan)
    np.testing.assert_allclose(negative_binomial(pred, unmeasured, mask, **options), measured, rtol=1e-8)


@check
@given(sections())
def test_gradients_are_those_of_torch_distributions(data):
    pred, counts, library, log_theta, _ = data
    found, expected = [], []
    for gradients in (found, expected):
        p, t = pred.clone().requires_grad_(), log_theta.clone().requires_grad_()
        if gradients is found:
            loss = negative_binomial(p, counts, library=library, log_theta=t)
        else:
            logits = mean_of(p, library).log() - t
            loss = -NegativeBinomial(t.exp(), logits=logits).log_prob(counts).mean()
        gradients += torch.autograd.grad(loss, (p, t))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@check
@given(sections(dtype=torch.float32))
def test_float32_has_the_value_and_the_gradients_of_float64(data):
    results = []
    for dtype in (torch.float32, torch.float64):
        pred, counts, library, log_theta = (x.to(dtype) for x in data[:4])
        pred.requires_grad_()
        log_theta = (log_theta + 5).requires_grad_()  # up to the bound, where differences of lgamma lose every digit
        loss = negative_binomial(pred, counts, library=library, log_theta=log_theta)
        results.append((loss, *torch.autograd.grad(loss, (pred, log_theta))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-3, atol=2e-3)


def test_series_meets_the_exact_form_at_the_seam():
    counts = torch.tensor([[0.0, 0.5, 1, 7, 300]], dtype=torch.float64)
    pred, library = torch.full_like(counts, 3.0), torch.tensor([2000.0], dtype=torch.float64)
    log_theta = torch.full((5,), np.log(20), dtype=torch.float64)
    below, above = (
        negative_binomial(pred, counts, library=library, log_theta=log_theta + step) for step in (-1e-12, 1e-12)
    )
    torch.testing.assert_close(below, above, rtol=1e-11, atol=0)


def test_large_dispersion_is_poisson():
    counts = torch.tensor([[0.0, 2, 9]])
    pred, library = torch.tensor([[1.0, 2, 3]]), torch.tensor([5000.0])
    expected = -poisson.logpmf(counts, mean_of(pred, library)).mean()
    for log_theta in (15.0, 80.0):
        found = negative_binomial(pred, counts, library=library, log_theta=torch.full((3,), log_theta))
        assert found.item() == pytest.approx(expected, rel=1e-4)


@check
@given(st.lists(st.floats(0.25, 50), min_size=2, max_size=8), st.floats(-2, 8))
def test_the_minimum_is_at_the_mean_of_the_counts(counts, log_theta):
    # Fractional counts too; libraries are equal, so that one level serves all spots.
    counts = torch.tensor(counts, dtype=torch.float64)[:, None]
    library, theta = torch.full((len(counts),), 4000.0, dtype=torch.float64), torch.tensor([log_theta]).double()

    def loss(level):
        return negative_binomial(level.expand(len(counts), 1), counts, library=library, log_theta=theta)

    best = torch.log1p(counts.mean() * 1e4 / 4000).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(best), best)
    assert abs(gradient.item()) < 1e-9
    for step in (-0.1, 0.1):
        assert loss(best + step) > loss(best)


def test_fractional_counts_equal_the_formula():
    x, mu, theta = 2.5, 4.0, 1.5
    expected = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    expected += theta * np.log(theta / (theta + mu)) + x * np.log(mu / (theta + mu))
    pred = torch.tensor([[mu]], dtype=torch.float64).log1p()
    library, log_theta = torch.tensor([1e4], dtype=torch.float64), torch.tensor([theta], dtype=torch.float64).log()
    found = negative_binomial(pred, torch.full_like(pred, x), library=library, log_theta=log_theta)
    assert found.item() == pytest.approx(-expected, rel=1e-12)


@pytest.mark.parametrize("level", [-50.0, -1.0, 0.0, 1e-6])
def test_below_the_floor_a_prediction_can_only_rise(level):
    pred = torch.full((2, 1), level).requires_grad_()
    log_theta = torch.zeros(1, requires_grad=True)
    counts, library = torch.tensor([[3.0], [0.0]]), torch.tensor([1000.0, 1000.0])
    found = negative_binomial(pred, counts, library=library, log_theta=log_theta)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(log_theta.grad).all()
    assert -1000 < pred.grad[0].item() < -1  # counts where none are expected
    assert pred.grad[1].item() == 0


@pytest.mark.parametrize(("outside", "sign"), [(-20.0, -1), (20.0, 1)])
def test_dispersion_outside_its_bounds_can_come_back(outside, sign):
    log_theta = torch.tensor([outside], requires_grad=True)
    # Counts that are more regular, or less, than this dispersion says.
    counts = torch.tensor([[4.0], [4.0], [4.0]]) if outside < 0 else torch.tensor([[0.0], [0.0], [3e4]])
    pred = torch.log1p(counts.mean()).expand(3, 1)
    negative_binomial(pred, counts, library=torch.full((3,), 1e4), log_theta=log_theta).backward()
    assert torch.isfinite(log_theta.grad).all()
    assert log_theta.grad.item() * sign > 0


def test_extremes_give_finite_values_and_gradients():
    pred = torch.tensor([[0.0, 200.0], [15.0, -200.0]]).requires_grad_()
    log_theta = torch.tensor([-100.0, 100.0], requires_grad=True)
    counts, library = torch.tensor([[0.0, 1e5], [3.0, 0.0]]), torch.tensor([1e6, 0.0])
    found = negative_binomial(pred, counts, library=library, log_theta=log_theta)
    found.backward()
    for x in (found, pred.grad, log_theta.grad):
        assert torch.isfinite(x).all()


def test_an_empty_spot_says_nothing():
    pred = torch.tensor([[2.0, 5.0]], requires_grad=True)
    found = negative_binomial(pred, torch.zeros(1, 2), library=torch.zeros(1), log_theta=torch.zeros(2))
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert pred.grad.abs().max() < 1e-6


def test_unmeasured_entries_get_no_gradient():
    pred = torch.tensor([[-1.0, 2.0], [1.0, -3.0]], requires_grad=True)
    log_theta = torch.zeros(2, requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    counts = torch.where(mask, 4.0, torch.nan)
    negative_binomial(pred, counts, mask, library=torch.full((2,), 1e4), log_theta=log_theta).backward()
    assert (pred.grad[:, 0] != 0).all()
    assert (pred.grad[:, 1] == 0).all()
    assert log_theta.grad[0] != 0
    assert log_theta.grad[1] == 0


def test_whole_numbers_half_precision_and_autocast_are_computed_in_float32():
    pred, counts = torch.tensor([[1.0, 2.5]]), torch.tensor([[3, 0]])
    options = {"library": torch.tensor([5000.0]), "log_theta": torch.tensor([0.5, 1.0])}
    expected = negative_binomial(pred, counts.float(), **options)
    assert torch.equal(negative_binomial(pred, counts, **options), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = negative_binomial(pred.bfloat16(), counts, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("library", "log_theta"), [((4, 1), (3,)), ((3,), (3,)), ((4,), (4,)), ((4,), ())])
def test_shapes_that_do_not_fit_are_refused(library, log_theta):
    x = torch.ones(4, 3)
    with pytest.raises(DataError, match=r"`library` must have the shape \(4,\) and `log_theta` \(3,\), found"):
        negative_binomial(x, x, library=torch.ones(library), log_theta=torch.zeros(log_theta))


def test_counts_mask_and_target_sum_that_do_not_fit_are_refused():
    x, options = torch.ones(4, 3), {"library": torch.ones(4), "log_theta": torch.zeros(3)}
    with pytest.raises(DataError, match=r"`pred` and `counts` must have one shape \(B, G\), found"):
        negative_binomial(x, torch.ones(4, 2), **options)
    with pytest.raises(DataError, match="`mask` must be bool"):
        negative_binomial(x, x, torch.ones(3), **options)
    with pytest.raises(DataError, match="`target_sum` must be a positive number, found 0"):
        negative_binomial(x, x, **options, target_sum=0)
