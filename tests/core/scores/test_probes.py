from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sealst._core.scores.probes import ALPHAS, knn_impute, mean_baseline, ridge_probe
from sealst._errors import DataError

#: more rows than features, and fewer
SHAPES = [(60, 8), (40, 70)]


def toy(n=60, d=8, genes=5, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 4))
    x = latent @ rng.normal(size=(4, d)) + rng.normal(size=(n, d))
    y = latent @ rng.normal(size=(4, genes)) + noise * rng.normal(size=(n, genes))
    # Offsets and scales that standardisation has to remove.
    return x * rng.uniform(0.1, 10, d) + rng.uniform(-5, 5, d), y + 3


def sklearn_ridge(alpha, n_components=None):
    steps = [StandardScaler()]
    if n_components is not None:
        steps.append(PCA(n_components, svd_solver="full"))
    return make_pipeline(*steps, Ridge(alpha=alpha, solver="svd"))


def sklearn_scores(x, y, alphas, splits, n_components=None):
    """Mean over folds of the mean Pearson over genes, one sklearn fit for each fold and penalty."""
    scores = np.zeros((len(splits), len(alphas)))
    for i, (train, held) in enumerate(splits):
        for j, alpha in enumerate(alphas):
            pred = sklearn_ridge(alpha, n_components).fit(x[train], y[train]).predict(x[held])
            scores[i, j] = np.mean([pearsonr(p, t).statistic for p, t in zip(pred.T, y[held].T, strict=True)])
    return scores.mean(axis=0)


def sklearn_stretch(x, y, alpha, splits, n_components=None):
    """Slope of held-out targets over their predictions through the origin, both centred and in held-out deviations."""
    found, wanted = [], []
    for train, held in splits:
        pred = sklearn_ridge(alpha, n_components).fit(x[train], y[train]).predict(x[held])
        found.append(((pred - pred.mean(0)) / y[held].std(0)).ravel())
        wanted.append(((y[held] - y[held].mean(0)) / y[held].std(0)).ravel())
    return LinearRegression(fit_intercept=False).fit(np.concatenate(found)[:, None], np.concatenate(wanted)).coef_[0]


# --- ridge ------------------------------------------------------------------------------------------------------------


def test_a_penalty_chosen_by_correlation_does_not_flatten_predictions():
    x, y = toy(400, 20, genes=30, noise=2.0)
    new_x, new_y = x[200:], y[200:]
    # Under either of these nothing is left of the predictions' spread.
    probe = ridge_probe(x[:200], y[:200], new_x, alphas=[1e6, 1e7], groups=np.arange(200) % 4)
    flat = ridge_probe(x[:200], y[:200], new_x, alphas=[probe.alpha])
    assert flat.stretch == 1
    assert probe.stretch > 1000
    # The same predictions but for one factor.
    expected = flat.intercept + probe.stretch * (flat.predictions.astype(float) - flat.intercept)
    np.testing.assert_allclose(probe.predictions, expected, atol=2e-3)
    for prediction, low, high in ((probe.predictions, 0.8, 1.25), (flat.predictions, 1000, np.inf)):
        slopes = [np.polyfit(p, t, 1)[0] for p, t in zip(prediction.T.astype(float), new_y.T, strict=True)]
        assert low < np.median(slopes) < high


def test_predictions_that_run_against_the_targets_are_not_stretched():
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(80, 3)), np.repeat([0, 1], 40)
    y = x[:, :2] * np.where(group == 0, 1.0, -1.0)[:, None]
    assert ridge_probe(x, y, groups=group).stretch == 1


@pytest.mark.parametrize("n_components", [None, 1, 6])
@pytest.mark.parametrize("alpha", [0.1, 30.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_equal_sklearn(shape, alpha, n_components):
    x, y = toy(*shape)
    test, _ = toy(15, shape[1], seed=1)
    probe = ridge_probe(x, y, test, alphas=[alpha], n_components=n_components)
    expected = sklearn_ridge(alpha, n_components).fit(x, y).predict(test)
    np.testing.assert_allclose(probe.predictions, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(probe.predict(test), probe.predictions)
    assert probe.predictions.dtype == np.float32
    assert probe.alpha == alpha


@pytest.mark.parametrize("n_components", [None, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_penalty_is_chosen_as_sklearn_would_leaving_one_group_out(shape, n_components):
    x, y = toy(*shape, noise=3.0)
    groups = np.random.default_rng(2).choice(["a", "b", "c", "d"], shape[0])
    splits = list(LeaveOneGroupOut().split(x, groups=groups))
    expected = sklearn_scores(x, y, ALPHAS, splits, n_components)
    probe = ridge_probe(x, y, groups=groups, n_components=n_components)
    np.testing.assert_allclose(probe.scores, expected, atol=1e-5)
    assert probe.alpha == pytest.approx(ALPHAS[int(np.argmax(expected))])
    np.testing.assert_allclose(probe.alphas, ALPHAS)
    refitted = sklearn_ridge(probe.alpha, n_components).fit(x, y).predict(x)
    stretch = sklearn_stretch(x, y, probe.alpha, splits, n_components)
    assert probe.stretch == pytest.approx(stretch, rel=1e-4)
    expected = y.mean(axis=0) + stretch * (refitted - y.mean(axis=0))
    np.testing.assert_allclose(probe.predict(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [None, ["one"] * 60])
def test_random_folds_without_groups(groups):
    x, y = toy(noise=3.0)
    splits = list(KFold(5, shuffle=True, random_state=7).split(x))
    probe = ridge_probe(x, y, groups=groups, seed=7)
    np.testing.assert_allclose(probe.scores, sklearn_scores(x, y, ALPHAS, splits), atol=1e-5)
    np.testing.assert_array_equal(ridge_probe(x, y, groups=groups, seed=7).scores, probe.scores)
    assert not np.array_equal(ridge_probe(x, y, groups=groups, seed=8).scores, probe.scores)


def test_many_groups_are_dealt_to_max_folds():
    x, y = toy(noise=3.0)
    groups = np.arange(60) // 5
    splits = list(GroupKFold(4).split(x, groups=groups))
    assert all(not set(groups[a]) & set(groups[b]) for a, b in splits)
    probe = ridge_probe(x, y, groups=groups, max_folds=4)
    np.testing.assert_allclose(probe.scores, sklearn_scores(x, y, ALPHAS, splits), atol=1e-5)


def test_groups_matter():
    # Features that name the section, and a target with a section effect and no signal: only random folds reward it.
    rng = np.random.default_rng(0)
    section = np.repeat(np.arange(6), 20)
    x = np.eye(6)[section] + 0.01 * rng.normal(size=(120, 6))
    y = rng.normal(size=(6, 30))[section] + rng.normal(size=(120, 30))
    assert ridge_probe(x, y).scores.max() > 0.5
    assert abs(ridge_probe(x, y, groups=section).scores).max() < 0.15


def test_noise_asks_for_a_larger_penalty():
    clean, noisy = (ridge_probe(*toy(noise=s, d=30), groups=np.arange(60) % 4).alpha for s in (0.01, 10.0))
    assert clean < noisy


def test_of_equal_penalties_the_largest_is_taken():
    # One feature: every penalty predicts the same up to a factor, so every correlation is equal.
    x, y = toy(d=1)
    x, y = np.round(x * 4) / 4, np.round(y * 4) / 4
    probe = ridge_probe(x, y[:, :1], groups=np.arange(60) % 3, alphas=[8.0, 1.0, 2.0])
    assert probe.scores.max() - probe.scores.min() < 1e-6
    np.testing.assert_array_equal(probe.alphas, [1, 2, 8])
    assert probe.alpha == probe.alphas[np.flatnonzero(probe.scores == probe.scores.max())[-1]]
    constant = ridge_probe(x, np.ones((60, 2)), alphas=[1.0, 8.0, 2.0])
    assert constant.alpha == 8
    assert np.isnan(constant.scores).all()


def test_nothing_of_the_held_out_rows_leaks_into_scaling():
    # A feature that is constant but for one group: scaled with all rows it would not explode there, and r would differ.
    x, y = toy(d=3)
    groups = np.arange(60) % 3
    x[:, 0] = np.where(groups == 0, np.arange(60.0), 1.0)
    splits = list(LeaveOneGroupOut().split(x, groups=groups))
    expected = sklearn_scores(x, y, ALPHAS, splits)
    np.testing.assert_allclose(ridge_probe(x, y, groups=groups).scores, expected, atol=1e-4)


def test_constant_features_and_genes_are_harmless():
    x, y = toy()
    x[:, 2], y[:, 1] = 4.2, 0.7
    probe = ridge_probe(x, y, groups=np.arange(60) % 3)
    prediction = probe.predict(x)
    np.testing.assert_allclose(prediction[:, 1], 0.7, rtol=1e-5)
    assert np.isfinite(prediction).all()
    without = ridge_probe(np.delete(x, 2, axis=1), np.delete(y, 1, axis=1), groups=np.arange(60) % 3)
    np.testing.assert_allclose(probe.scores, without.scores, atol=1e-5)


def test_a_fold_in_which_no_gene_varies_is_left_out():
    x, y = toy()
    groups = np.arange(60) % 3
    y[groups == 0] = 1.0
    splits = [s for s in LeaveOneGroupOut().split(x, groups=groups) if not (groups[s[1]] == 0).all()]
    np.testing.assert_allclose(ridge_probe(x, y, groups=groups).scores, sklearn_scores(x, y, ALPHAS, splits), atol=1e-5)


def test_groups_too_small_to_score_still_train():
    x, y = toy()
    groups = np.array(["big"] * 30 + ["other"] * 28 + ["pair"] * 2)
    splits = [s for s in LeaveOneGroupOut().split(x, groups=groups) if len(s[1]) > 2]
    assert len(splits) == 2
    np.testing.assert_allclose(ridge_probe(x, y, groups=groups).scores, sklearn_scores(x, y, ALPHAS, splits), atol=1e-5)


def test_lists_of_sections_are_predicted_one_by_one():
    x, y = toy()
    parts = ridge_probe(x, y, [x[:10], x[10:13]], alphas=[1.0]).predictions
    assert [p.shape for p in parts] == [(10, 5), (3, 5)]
    np.testing.assert_allclose(np.concatenate(parts), ridge_probe(x, y, x[:13], alphas=[1.0]).predictions, rtol=1e-5)
    assert ridge_probe(x, y, alphas=[1.0]).predictions is None
    assert ridge_probe(x, y, x[:2].tolist(), alphas=[1.0]).predictions.shape == (2, 5)


def test_input_is_left_alone_and_result_is_frozen():
    x, y = toy()
    before = x.copy(), y.copy()
    probe = ridge_probe(x, y, x, groups=np.arange(60) % 3)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe.alpha = 1.0


def test_more_components_than_rank_keeps_all():
    x, y = toy(40, 70)
    capped, full = (ridge_probe(x, y, x, alphas=[5.0], n_components=k).predictions for k in (500, None))
    np.testing.assert_allclose(capped, full, rtol=1e-5)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"train_y": np.ones((59, 5))}, "`train_x` has 60 rows and `train_y` 59; expected the same number"),
        ({"train_x": np.ones(60)}, r"`train_x` must be a matrix \(rows, columns >= 1\), found shape \(60,\)"),
        ({"train_x": np.full((60, 8), np.nan)}, "`train_x` holds NaN or infinite values in 60 of 60 rows"),
        ({"groups": ["a", "b"]}, r"`groups` must name one group for each of 60 training rows, found shape \(2,\)"),
        ({"alphas": [1.0, 0.0]}, r"`alphas` must be positive numbers, found \[0\.0, 1\.0\]"),
        ({"alphas": []}, "`alphas` must be positive numbers"),
        ({"n_components": 0}, "`n_components` must be a positive number"),
        ({"max_folds": 1}, "`max_folds` must be at least 2"),
        ({"groups": np.arange(60) // 2, "max_folds": 60}, r"60 training rows in 30 group\(s\) leave no fold with 3"),
        ({"train_x": np.ones((5, 8)), "train_y": np.ones((5, 5))}, r"5 training rows in 1 group\(s\) leave no fold"),
    ],
)
def test_ridge_checks_its_input(kw, message):
    x, y = toy()
    with pytest.raises(DataError, match=message):
        ridge_probe(**({"train_x": x, "train_y": y} | kw))


def test_predict_checks_the_features():
    probe = ridge_probe(*toy(), alphas=[1.0])
    with pytest.raises(DataError, match="The probe was fitted on 8 features, `x` has 7"):
        probe.predict(np.ones((2, 7)))


# --- baselines --------------------------------------------------------------------------------------------------------


def test_mean_baseline():
    y = np.random.default_rng(0).normal(size=(30, 4))
    found = mean_baseline(y, 7)
    assert found.shape == (7, 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.repeat(y.mean(0)[None], 7, axis=0), rtol=1e-6)
    with pytest.raises(DataError, match="`train_y` has no rows"):
        mean_baseline(np.empty((0, 4)), 2)


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csr_array])
def test_knn_impute_equals_brute_force(form, k):
    rng = np.random.default_rng(0)
    query, reference, y = rng.normal(size=(12, 6)), rng.normal(size=(30, 6)), rng.poisson(1.0, (30, 4)).astype(float)
    expected = []
    for q in query:
        cosine = [q @ r / np.linalg.norm(q) / np.linalg.norm(r) for r in reference]
        expected.append(y[np.argsort(cosine)[::-1][:k]].mean(axis=0))
    found = knn_impute(query, reference, form(y), k=k)
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_knn_impute_with_small_references_takes_them_all():
    y = np.arange(6.0).reshape(3, 2)
    found = knn_impute(np.ones((2, 4)), np.random.default_rng(0).normal(size=(3, 4)), y)
    np.testing.assert_allclose(found, [y.mean(0)] * 2)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 5), (4, 2)), "`query_z` has 3 dimensions, `ref_z` 5"),
        (((2, 3), (4, 3), (5, 2)), r"`ref_z` has 4 rows, `ref_y` the shape \(5, 2\)"),
        (((2, 3), (0, 3), (0, 2)), "`ref_z` has 0 rows"),
    ],
)
def test_knn_impute_checks_its_input(shapes, message):
    with pytest.raises(DataError, match=message):
        knn_impute(*(np.ones(s) for s in shapes))
    with pytest.raises(DataError, match="`k` must be a positive number"):
        knn_impute(np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 2)), k=0)
