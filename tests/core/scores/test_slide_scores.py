"""Scores of slides on cases with known answers, and intervals over patients."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from sealst._core.scores.slides import (
    HeldOut,
    bootstrap_scores,
    calibration_error,
    classification_scores,
    regression_scores,
    survival_scores,
)


def held(truth: np.ndarray, *, patients: np.ndarray | None = None, fold: np.ndarray | None = None) -> HeldOut:
    n = len(truth)
    patients = np.arange(n).astype(str) if patients is None else patients
    fold = np.full(n, "0") if fold is None else fold
    return HeldOut(truth, fold, patients, {"0": np.array([[9.0, 1]]), "1": np.array([[9.0, 1]])})


def two(p: np.ndarray) -> np.ndarray:
    return np.column_stack([1 - p, p])


def test_binary_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    # Rounded, so that scores tie.
    truth, p = rng.integers(0, 2, 50), rng.random(50).round(1)
    found, best = classification_scores(two(p), held(truth)), two(p).argmax(axis=1)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, p))
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(truth, p))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, best))
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, best, average="macro"))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(truth, p))


def test_three_classes_are_averaged_one_against_rest() -> None:
    rng = np.random.default_rng(1)
    truth, p = np.arange(30) % 3, rng.dirichlet(np.ones(3), 30)
    expected = metrics.roc_auc_score(truth, p, multi_class="ovr", average="macro")
    found, best = classification_scores(p, held(truth)), p.argmax(axis=1)
    assert found["auroc"] == pytest.approx(expected)
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, best, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, best))


def test_perfect_and_constant_predictions() -> None:
    truth = np.array([0, 0, 1, 1])
    perfect = classification_scores(two(truth.astype(float)), held(truth))
    assert {perfect[m] for m in ("auroc", "average_precision", "balanced_accuracy", "f1")} == {1.0}
    assert perfect["ece"] == perfect["brier"] == 0
    assert classification_scores(two(np.full(4, 0.5)), held(truth))["auroc"] == 0.5
    assert np.isnan(classification_scores(two(np.full(2, 0.5)), held(truth[:2]))["auroc"])


def test_calibration_error_is_the_gap() -> None:
    truth = np.array([1] * 7 + [0] * 3)
    assert calibration_error(two(np.full(10, 0.7)), truth) == pytest.approx(0)
    assert calibration_error(two(np.full(10, 0.95)), truth) == pytest.approx(0.25)


def test_regression_scores() -> None:
    truth = np.array([1.0, 2, 3, 4])
    found = regression_scores(2 * truth, held(truth))
    assert found["pearson"] == pytest.approx(1)
    assert found["r2"] < 0
    assert regression_scores(np.full(4, 2.5), held(truth)) == {"pearson": 0, "spearman": 0, "r2": 0, "mae": 1}
    assert np.isnan(regression_scores(truth, held(np.ones(4)))["pearson"])


def test_risks_of_two_folds_are_not_compared() -> None:
    pytest.importorskip("sksurv")
    truth = np.array([[1.0, 1], [2, 1], [1, 1], [2, 1]])
    fold = np.array(["0", "0", "1", "1"])
    # Right within each fold; the second fold's risks are on another scale.
    assert survival_scores(np.array([1.0, 0, 101, 100]), held(truth, fold=fold))["c_index"] == 1


def test_folds_of_one_slide_do_not_stop_the_scores() -> None:
    pytest.importorskip("sksurv")
    truth = np.array([[1.0, 1], [2, 1], [3, 0], [4, 1], [5, 1]])
    parts, risk = held(truth, fold=np.array(["0", "0", "0", "0", "1"])), -np.arange(5.0)
    assert survival_scores(risk, parts)["c_index"] == 1
    # Draws of patients leave folds with one slide, too.
    low, high = bootstrap_scores({"a": risk}, parts, survival_scores, n=30, seed=0)["a", "c_index"]
    assert low == high == 1


def test_scores_without_a_class_are_not_those_of_the_others() -> None:
    # The third class is never found; without its two slides everything would be perfect.
    truth = np.array([0] * 14 + [1] * 14 + [2] * 2)
    p = np.full((30, 3), 0.05)
    p[np.arange(30), np.where(truth == 2, 0, truth)] = 0.9
    p[truth == 2, 2] = 0.001
    found = classification_scores(p[:28], held(truth[:28]))
    assert all(np.isnan(found[m]) for m in ("auroc", "average_precision", "balanced_accuracy", "f1"))
    assert np.isfinite([found["brier"], found["ece"]]).all()
    whole = classification_scores(p, held(truth))
    intervals = bootstrap_scores({"a": p}, held(truth), classification_scores, n=200, seed=0)
    for metric in ("auroc", "balanced_accuracy", "f1"):
        low, high = intervals["a", metric]
        assert low <= whole[metric] <= high < 0.8
    # Two classes: the same rule.
    assert np.isnan(classification_scores(two(np.array([0.1, 0.2])), held(np.zeros(2)))["balanced_accuracy"])


def test_intervals_are_over_patients_and_differences_paired() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat(np.arange(40) % 2, 3)
    patients = np.repeat(np.arange(40), 3).astype(str)
    # Slides of a patient say the same: they must not count as three.
    p = np.repeat(np.clip(0.5 + 0.2 * (np.arange(40) % 2 - 0.5) + rng.normal(0, 0.2, 40), 0, 1), 3)
    by_patient = bootstrap_scores({"a": two(p)}, held(truth, patients=patients), classification_scores, n=200, seed=0)
    alone = bootstrap_scores({"a": two(p)}, held(truth), classification_scores, n=200, seed=0)
    width = {name: found["a", "auroc"][1] - found["a", "auroc"][0] for name, found in (("p", by_patient), ("s", alone))}
    assert width["p"] > 1.3 * width["s"]
    same = bootstrap_scores({"a": two(p), "b": two(p)}, held(truth), classification_scores, n=20, seed=0)
    assert same["a - b", "auroc"] == (0, 0)
    assert bootstrap_scores({"a": two(p)}, held(truth), classification_scores, n=0, seed=0) == {}
