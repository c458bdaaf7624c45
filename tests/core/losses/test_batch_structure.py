from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sealst._core.losses.registry import mmd, pls
from sealst._errors import DataError

check = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def pairs(draw):
    """Prediction, truth and mask of one shape, with more spots than genes or fewer."""
    shape = draw(st.integers(2, 9)), draw(st.integers(1, 9))
    seed = draw(seeds)
    return randn(seed, *shape), randn(seed + 1, *shape), randn(seed + 2, *shape) > -0.7


# --- distribution of profiles -----------------------------------------------------------------------------------------


@check
@given(pairs(), st.sampled_from([(1.0,), (0.25, 0.5, 1, 2, 4)]))
def test_mmd_equals_loop(data, bandwidths):
    pred, target, mask = data
    p, t = (np.where(mask, x, 0) for x in (pred, target))
    distances = sorted(((a - b) ** 2).sum() for a, b in itertools.combinations(t, 2))
    median = max(distances[(len(distances) - 1) // 2], 0.02 * max(mask.numpy().sum() / len(p), 1))

    def kernel(a, b):
        return np.mean([np.exp(-((a - b) ** 2).sum() / (m * median)) for m in bandwidths])

    total = sum(kernel(a, b) for a in p for b in p) + sum(kernel(a, b) for a in t for b in t)
    total -= 2 * sum(kernel(a, b) for a in p for b in t)
    found = mmd(pred, target, mask, bandwidths=bandwidths)
    np.testing.assert_allclose(found.item(), total / len(p) ** 2, rtol=1e-9, atol=1e-12)


@check
@given(pairs())
def test_mmd_lies_between_0_and_2(data):
    assert -1e-12 <= mmd(*data).item() <= 2


def test_mmd_does_not_depend_on_which_spot_is_which():
    pred, target = randn(0, 12, 5), randn(1, 12, 5)
    torch.testing.assert_close(mmd(pred.flip(0), target), mmd(pred, target))
    assert mmd(target.flip(0), target).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("change", [lambda x: 0.3 * x, lambda x: 3 * x, lambda x: x + 1], ids=["shrunk", "wide", "off"])
def test_mmd_sees_that_predictions_are_shrunk_wide_or_off(change):
    target, other = randn(0, 128, 20), randn(1, 128, 20)
    assert mmd(change(other), target) > 3 * mmd(other, target)


def test_mmd_spreads_predictions_that_have_collapsed_onto_the_mean():
    target = randn(0, 64, 10)
    pred = (0.05 * randn(1, 64, 10)).requires_grad_()
    mmd(pred, target).backward()
    # A step against the gradient moves every spot away from the centre.
    assert (-(pred.grad * pred).sum(1) > 0).double().mean() > 0.9


def test_mmd_follows_the_units_of_the_truth():
    pred, target = randn(0, 12, 5), randn(1, 12, 5)
    torch.testing.assert_close(mmd(7 * pred, 7 * target), mmd(pred, target))


def test_mmd_of_a_constant_truth_still_pulls_a_prediction_near_it():
    pred = (0.05 * randn(0, 6, 5)).requires_grad_()
    mmd(pred, torch.zeros(6, 5, dtype=torch.float64)).backward()
    assert ((pred.grad * pred).sum(1) > 0).all()


@pytest.mark.parametrize(
    ("bandwidths", "message"),
    [((), "`bandwidths` must hold at least one multiple"), ((1, 0), "`bandwidths` must be a positive number, found 0")],
)
def test_mmd_refuses_bandwidths_that_are_none_or_not_positive(bandwidths, message):
    with pytest.raises(DataError, match=message):
        mmd(randn(0, 4, 3), randn(1, 4, 3), bandwidths=bandwidths)


# --- leading axes -----------------------------------------------------------------------------------------------------


@check
@given(pairs(), st.integers(1, 10))
def test_pls_equals_singular_value_decomposition(data, n_axes):
    pred, target, mask = (x.numpy() for x in data)

    def centred(x):
        means = [x[m, g].mean() if m.any() else 0.0 for g, m in enumerate(mask.T)]
        return np.where(mask, x - means, 0)

    p, t = centred(pred), centred(target)
    values, axes = np.linalg.svd(t, full_matrices=False)[1:]
    values, axes = values[:n_axes] ** 2, axes[:n_axes]
    expected = 0.0
    for value, axis in zip(values, axes, strict=True):
        if value > 1e-9 * values[0]:
            r = np.corrcoef(p @ axis, t @ axis)[0, 1]
            expected += value / values.sum() * (1 - r)
    np.testing.assert_allclose(pls(*data, n_axes=n_axes).item(), expected, rtol=1e-6, atol=1e-6)


def test_pls_counts_an_axis_by_what_it_explains():
    # Two programs that explain 90 % and 10 % of the variance; the prediction gets one of them right.
    scores = torch.linalg.qr(randn(0, 30, 4) - randn(0, 30, 4).mean(0)).Q * 30**0.5
    genes = torch.linalg.qr(randn(1, 8, 2)).Q.T
    first, second = 3 * scores[:, :1] @ genes[:1], scores[:, 1:2] @ genes[1:]
    noise = scores[:, 2:3] @ genes[:1], scores[:, 3:] @ genes[1:]
    assert pls(first + noise[1], first + second).item() == pytest.approx(0.1, abs=1e-6)
    assert pls(noise[0] + second, first + second).item() == pytest.approx(0.9, abs=1e-6)
    assert pls(noise[0] + second, first + second, n_axes=1).item() == pytest.approx(1, abs=1e-6)


def test_pls_is_the_same_for_a_prediction_that_is_scaled_and_shifted():
    pred, target = randn(0, 12, 5), randn(1, 12, 5)
    torch.testing.assert_close(pls(0.1 * pred + randn(2, 5), target), pls(pred, target))


def test_pls_is_2_for_the_opposite_and_0_for_a_constant_truth():
    x = randn(0, 12, 5)
    assert pls(-x, x).item() == pytest.approx(2)
    pred = x.clone().requires_grad_()
    found = pls(pred, torch.ones_like(x))
    found.backward()
    assert found.item() == 0
    assert (pred.grad == 0).all()


def test_pls_gradient_is_bounded_where_axes_coincide():
    # Every axis of this truth explains the same, where the derivative of the decomposition is infinite.
    target = torch.linalg.qr(randn(0, 8, 8)).Q.requires_grad_()
    pred = randn(1, 8, 8).requires_grad_()
    pls(pred, target).backward()
    for x in (pred, target):
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().max() < 10


def test_pls_in_float32_is_that_in_float64():
    factors = randn(0, 64, 12) * 0.8 ** torch.arange(12)
    target = factors @ randn(1, 12, 300) + 0.5 * randn(2, 64, 300)
    pred = 0.5 * target + randn(3, 64, 300)
    for p, t in ((pred, target), (pred.T, target.T)):
        torch.testing.assert_close(pls(p.float(), t.float()).double(), pls(p, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_axes", [0, -1, 2.5])
def test_pls_refuses_a_number_of_axes_that_is_none(n_axes):
    with pytest.raises(DataError, match="`n_axes` must be a whole number, 1 or more"):
        pls(randn(0, 4, 3), randn(1, 4, 3), n_axes=n_axes)
