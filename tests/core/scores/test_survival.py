"""Cox's loss against separate computations, and concordance where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.scores.slides import concordance, cox_loss, ipcw_index

pytest.importorskip("sksurv")


def draw(seed: int, n: int = 30, *, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    time = rng.integers(1, 12, n).astype(float) if ties else rng.permutation(n) + 1.0
    return rng.normal(size=n), time, rng.random(n) < 0.6


def by_loop(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    terms = [risk[i] - np.log(np.exp(risk[time >= time[i]]).sum()) for i in np.flatnonzero(event)]
    return -float(np.mean(terms))


def loss_of(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    return float(cox_loss(*(torch.as_tensor(v) for v in (risk, time, event))))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 25), st.booleans())
def test_cox_loss_is_the_loop(seed: int, n: int, ties: bool) -> None:
    risk, time, event = draw(seed, n, ties=ties)
    expected = by_loop(risk, time, event) if event.any() else 0.0
    assert loss_of(risk, time, event) == pytest.approx(expected, abs=1e-9)


def test_cox_loss_is_that_of_statsmodels() -> None:
    phreg = pytest.importorskip("statsmodels.duration.hazard_regression")
    risk, time, event = draw(3, 60)
    fitted = phreg.PHReg(time, risk[:, None], status=event.astype(int), ties="breslow")
    assert loss_of(risk, time, event) == pytest.approx(-fitted.loglike(np.array([1.0])) / event.sum(), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_cox_loss_ignores_order_and_level_of_risk(seed: int, shift: float) -> None:
    risk, time, event = draw(seed)
    order = np.random.default_rng(seed).permutation(len(risk))
    assert loss_of(risk[order] + shift, time[order], event[order]) == pytest.approx(
        loss_of(risk, time, event), abs=1e-8
    )


def test_cox_gradient_pushes_early_events_up() -> None:
    risk = torch.zeros(3, requires_grad=True)
    cox_loss(risk, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])).backward()
    assert risk.grad is not None
    assert risk.grad[0] < risk.grad[1] < risk.grad[2]


def test_cox_without_events_is_zero_with_a_gradient() -> None:
    risk = torch.randn(4, requires_grad=True)
    loss = cox_loss(risk, torch.arange(4.0), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert risk.grad is not None
    assert not risk.grad.any()


def test_cox_survives_large_risks() -> None:
    assert np.isfinite(loss_of(np.array([800.0, -800.0, 0.0]), np.array([1.0, 2, 3]), np.array([True, True, True])))


def test_concordance_of_known_orders() -> None:
    time, event = np.array([1.0, 2, 3, 4]), np.array([True, True, False, True])
    assert concordance(-time, time, event).share == 1
    assert concordance(time, time, event).share == 0
    assert concordance(np.zeros(4), time, event).share == 0.5
    # Pairs: 1 before 2, 3, 4; 2 before 3, 4; the censored third has none of its own.
    assert concordance(-time, time, event).pairs == 5


def test_concordance_without_pairs() -> None:
    assert concordance(np.zeros(2), np.array([1.0, 2.0]), np.array([False, False])).pairs == 0
    assert np.isnan(concordance(np.zeros(2), np.array([1.0, 2.0]), np.array([False, True])).share)
    # A draw of patients may leave a fold with a single slide.
    one, seen = np.array([5.0]), np.array([True])
    assert concordance(np.zeros(1), one, seen).pairs == 0
    assert np.isnan(ipcw_index(np.zeros(1), one, seen, train_time=np.arange(1.0, 9.0), train_event=np.ones(8, bool)))


def test_one_slide_makes_no_pair() -> None:
    for event in (True, False):
        one = np.array([1.0]), np.array([2.0]), np.array([event])
        assert concordance(*one).pairs == 0
        train = {"train_time": np.array([1.0, 3.0, 5.0]), "train_event": np.array([True, True, True])}
        assert np.isnan(ipcw_index(*one, **train))


def test_ipcw_is_harrell_without_censoring() -> None:
    risk, time, _ = draw(5, ties=False)
    seen = np.ones(len(time), dtype=bool)
    kept = time < time.max()
    found = ipcw_index(risk, time, seen, train_time=time, train_event=seen)
    assert found == pytest.approx(concordance(risk, time, seen).share, abs=0.02)
    assert np.isnan(ipcw_index(risk[kept], time[kept], ~seen[kept], train_time=time, train_event=seen))


def test_ipcw_copes_with_times_that_training_does_not_cover() -> None:
    risk, time, event = draw(6, ties=False)
    train = np.array([2.0, 5.0, 9.0])
    found = ipcw_index(-time, time, event, train_time=train, train_event=np.array([True, True, False]))
    assert found == pytest.approx(1)
    assert np.isnan(ipcw_index(risk, time + 100, event, train_time=train, train_event=np.array([True, True, False])))
