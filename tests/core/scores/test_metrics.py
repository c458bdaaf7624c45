from __future__ import annotations

import subprocess
import sys
import warnings

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from sealst._core.scores import metrics
from sealst._core.scores.metrics import (
    bootstrap_interval,
    gene_pearson,
    gene_r2,
    gene_spearman,
    recall_at_k,
    retrieval_ranks,
    signature_auroc,
    signature_average_precision,
)
from sealst._errors import DataError

BY_GENE = (gene_pearson, gene_spearman, gene_r2)
check = settings(max_examples=40, deadline=None)


@st.composite
def matrices(draw, n=2):
    """`n` matrices of one shape, in steps of 1/4, with constant columns and ties."""
    shape = (draw(st.integers(3, 8)), draw(st.integers(1, 5)))
    return [draw(hnp.arrays(np.float64, shape, elements=st.integers(-8, 8))) / 4 for _ in range(n)]


def reference(kind, pred, true):
    if np.ptp(true) == 0:
        return np.nan
    if kind is gene_r2:
        return r2_score(true, pred)
    if np.ptp(pred) == 0:
        return 0.0
    return (stats.pearsonr if kind is gene_pearson else stats.spearmanr)(pred, true).statistic


# --- per gene ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", BY_GENE)
@check
@given(pair=matrices())
def test_metric_of_every_gene_equals_reference(metric, pair):
    pred, true = pair
    expected = [reference(metric, p, t) for p, t in zip(pred.T, true.T, strict=True)]
    np.testing.assert_allclose(metric(pred, true), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", BY_GENE)
def test_float32_is_computed_in_float64(metric):
    rng = np.random.default_rng(0)
    # A spread that float32 sums would lose beside the mean.
    true = (1000 + rng.normal(size=(300, 4)) / 10).astype(np.float32)
    pred = (true + rng.normal(size=(300, 4)) / 10).astype(np.float32)
    expected = [reference(metric, p, t) for p, t in zip(pred.T.astype(float), true.T.astype(float), strict=True)]
    found = metric(pred, true)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("metric", BY_GENE)
def test_blocks_of_genes_change_nothing(metric, monkeypatch):
    rng = np.random.default_rng(0)
    pred, true = rng.normal(size=(20, 7)), rng.normal(size=(20, 7))
    whole = metric(pred, true)
    monkeypatch.setattr(metrics, "_BLOCK", 40)
    np.testing.assert_allclose(metric(pred, true), whole, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, -1e6])
@pytest.mark.parametrize("n", [5, 100_000])
def test_constants_follow_the_rule(value, n):
    # Several columns: numpy sums these row by row, which rounds more than a single column.
    varies, constant = np.tile(np.linspace(0, 1, n)[:, None], 3), np.full((n, 3), value)
    by_rounding = constant.copy()
    by_rounding[::2] = np.nextafter(value, np.inf) if value else 0
    for metric in BY_GENE:
        assert np.isnan(metric(varies, constant)).all()
        assert np.isnan(metric(constant, constant)).all()
        assert np.isnan(metric(varies, by_rounding)).all()
    for prediction in (constant, by_rounding):
        np.testing.assert_array_equal(gene_pearson(prediction, varies), np.zeros(3))
        np.testing.assert_array_equal(gene_spearman(prediction, varies), np.zeros(3))
        assert (gene_r2(prediction, varies) <= 1e-9).all()


def test_no_warnings_for_constants_and_small_values():
    tiny = np.array([[1e-160], [2e-160], [4e-160]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gene_pearson(np.zeros((3, 1)), np.zeros((3, 1)))
        assert gene_pearson(1e-100 * np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [3.0]])) == 1
        gene_spearman(tiny, tiny)


def test_spearman_sees_order_only():
    x = np.random.default_rng(0).normal(size=(30, 3))
    np.testing.assert_allclose(gene_spearman(np.exp(3 * x), x), 1)
    assert (gene_pearson(np.exp(3 * x), x) < 0.9).all()


@pytest.mark.parametrize("metric", BY_GENE)
@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4,), (4,)), ((1, 3), (1, 3))])
def test_shapes_are_checked(metric, shapes):
    with pytest.raises(DataError, match=r"`pred` and `true` must have one shape \(n >= 2, genes\), found \("):
        metric(*(np.zeros(s) for s in shapes))


@pytest.mark.parametrize("metric", BY_GENE)
def test_spots_without_prediction_are_refused(metric):
    pred, true = np.ones((4, 3)), np.ones((4, 3))
    pred[[1, 2]] = np.nan
    with pytest.raises(DataError, match=r"`pred` holds NaN or infinite values in 2 of 4 rows\. Keep the spots"):
        metric(pred, true)


# --- retrieval --------------------------------------------------------------------------------------------------------


def brute_force_ranks(query, pool, target):
    """Rank by rank: cosines compared one by one, ties at their mean rank."""

    def cosine(a, b):
        return 0.0 if not a.any() or not b.any() else round(a @ b / np.linalg.norm(a) / np.linalg.norm(b), 10)

    ranks = []
    for q, t in zip(query, target, strict=True):
        similarity = np.array([cosine(q, p) for p in pool])
        ranks.append(stats.rankdata(-similarity, method="average")[t])
    return ranks


@check
@given(st.data())
def test_ranks_equal_brute_force_with_ties(data):
    d, n, m = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    # Few values in few dimensions: many equal and many parallel embeddings, some of them zero.
    element = st.integers(-1, 2)
    query = data.draw(hnp.arrays(np.float64, (n, d), elements=element))
    pool = data.draw(hnp.arrays(np.float64, (m, d), elements=element))
    target = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, m - 1)))
    found = retrieval_ranks(query, pool, target)
    np.testing.assert_array_equal(found, brute_force_ranks(query, pool, target))
    np.testing.assert_array_equal(retrieval_ranks(query, pool, target, chunk=2), found)


def test_ranks_of_random_embeddings_equal_brute_force():
    rng = np.random.default_rng(0)
    query, pool = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(70, 8)).astype(np.float32)
    target = rng.integers(0, 70, 40)
    np.testing.assert_array_equal(retrieval_ranks(query, pool, target), brute_force_ranks(query, pool, target))


@pytest.mark.parametrize("m", [1, 17, 257, 1000])
def test_equal_embeddings_share_the_mean_rank(m):
    # Wide and of many sizes, so that a blocked matrix product meets its edges.
    z = np.tile(np.random.default_rng(0).normal(size=193), (m, 1))
    np.testing.assert_array_equal(retrieval_ranks(z, z, np.arange(m)), np.full(m, (m + 1) / 2))


def test_perfect_embeddings_rank_first_whatever_their_length():
    z = np.random.default_rng(0).normal(size=(50, 16))
    scale = np.linspace(0.1, 30, 50)[:, None]
    np.testing.assert_array_equal(retrieval_ranks(scale * z, z[::-1] / scale, np.arange(50)[::-1]), np.ones(50))


@pytest.mark.parametrize(
    ("query", "pool", "target", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), [0, 1], r"must be \(n, d\) and \(m >= 1, d\), found \(2, 3\) and \(4, 2\)"),
        (np.ones((2, 3)), np.ones((0, 3)), [0, 1], r"must be \(n, d\) and \(m >= 1, d\)"),
        (np.ones((2, 3)), np.ones((4, 3)), [0], "`target_index` must hold 2 whole numbers"),
        (np.ones((2, 3)), np.ones((4, 3)), [0.0, 1.0], "`target_index` must hold 2 whole numbers, found float64"),
        (np.ones((2, 3)), np.ones((4, 3)), [0, 4], r"must lie in 0 … 3 \(rows of `pool`\), found 0 … 4"),
        (np.ones((2, 3)), np.ones((4, 3)), [-1, 2], r"must lie in 0 … 3 \(rows of `pool`\), found -1 … 2"),
        (np.full((2, 3), np.nan), np.ones((4, 3)), [0, 1], "`query` holds NaN or infinite values in 2 of 2 rows"),
        (np.ones((2, 3)), np.full((4, 3), np.inf), [0, 1], "`pool` holds NaN or infinite values in 4 of 4 rows"),
    ],
)
def test_ranks_check_their_input(query, pool, target, message):
    with pytest.raises(DataError, match=message):
        retrieval_ranks(query, pool, target)


def test_recall_counts_mean_ranks():
    found = recall_at_k([1, 1.5, 2, 2.5, 10], [1, 2, 5, 20], 10)
    assert found == {
        "pool": 10,
        "R@1": 0.2,
        "chance@1": 0.1,
        "R@2": 0.6,
        "chance@2": 0.2,
        "R@5": 0.8,
        "chance@5": 0.5,
        "R@20": 1.0,
        "chance@20": 1.0,
        "median_rank": 2.0,
    }
    assert all(type(v) in (int, float) for v in found.values())


def test_random_embeddings_reach_chance():
    rng = np.random.default_rng(0)
    n, ks = 1500, (1, 5, 10, 50)
    ranks = retrieval_ranks(rng.normal(size=(n, 32)), rng.normal(size=(n, 32)), np.arange(n))
    found = recall_at_k(ranks, ks, n)
    for k in ks:
        chance = found[f"chance@{k}"]
        # 4 standard errors of a proportion.
        assert found[f"R@{k}"] == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / n))
    assert found["median_rank"] == pytest.approx((n + 1) / 2, abs=4 * n / 2 / np.sqrt(n))


def test_a_collapsed_model_has_no_recall():
    z = np.ones((100, 4))
    found = recall_at_k(retrieval_ranks(z, z, np.arange(100)), [1, 10, 50, 51], 100)
    assert (found["R@1"], found["R@10"], found["R@50"], found["R@51"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("ranks", "ks", "pool", "message"),
    [
        ([], [1], 5, r"`ranks` must be one rank per query, \(n >= 1,\), found shape \(0,\)"),
        ([1, 6], [1], 5, r"`ranks` must lie in 1 … 5 \(`pool`\), found 1 … 6"),
        ([0, 1], [1], 5, "`ranks` must lie in 1 … 5"),
        ([np.nan, 1], [1], 5, "`ranks` must lie in 1 … 5"),
        ([1], [0], 5, "`ks` must be whole numbers from 1, found 0"),
        ([1], [1.5], 5, "`ks` must be whole numbers from 1, found 1.5"),
    ],
)
def test_recall_checks_its_input(ranks, ks, pool, message):
    with pytest.raises(DataError, match=message):
        recall_at_k(ranks, ks, pool)


# --- signatures -------------------------------------------------------------------------------------------------------


@check
@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.2, 0.5]))
def test_signature_metrics_equal_sklearn(seed, fraction):
    rng = np.random.default_rng(seed)
    similarity, measured = rng.normal(size=60), rng.normal(size=60)
    positive = np.zeros(60, dtype=bool)
    positive[np.argsort(measured)[-round(60 * fraction) :]] = True
    found = signature_auroc(similarity, measured, top_fraction=fraction)
    assert found == pytest.approx(roc_auc_score(positive, similarity))
    found = signature_average_precision(similarity, measured, top_fraction=fraction)
    assert found == pytest.approx(average_precision_score(positive, similarity))


def test_signature_ties_at_the_threshold():
    # Three spots share the score of the last one among the top fifth: all are positive.
    measured = np.array([9, 5, 5, 5, 0, 0, 0, 0, 0, 0])
    assert signature_auroc([4, 3, 3, 3, 1, 1, 1, 1, 1, 1], measured, top_fraction=0.2) == 1
    # Fewer expressing spots than the fraction: the positives are these, not the zeros too.
    assert signature_auroc([4, 3, 3, 3, 1, 1, 1, 1, 1, 1], measured, top_fraction=0.9) == 1
    assert np.isnan(signature_auroc(np.arange(5), np.ones(5)))
    assert np.isnan(signature_average_precision(np.arange(5), np.ones(5)))


def test_signature_metrics_check_their_input():
    with pytest.raises(
        DataError, match=r"`similarity` and `measured` must have one shape \(n,\), found \(3,\), \(2,\)"
    ):
        signature_auroc([1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="`top_fraction` must lie between 0 and 1, both excluded, found 1"):
        signature_average_precision([1, 2, 3], [1, 2, 3], top_fraction=1)
    with pytest.raises(DataError, match="`similarity` holds NaN or infinite values in 1 of 3 rows"):
        signature_auroc([1, np.nan, 3], [1, 2, 3])


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=80)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values, n=20_000), expected, atol=0.02)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", confidence_level=0.5
    ).confidence_interval
    np.testing.assert_allclose(bootstrap_interval(values, n=20_000, level=0.5), expected, atol=0.02)


def test_bootstrap_is_deterministic_and_ignores_block_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    found = bootstrap_interval(values, seed=3)
    monkeypatch.setattr(metrics, "_BLOCK", 500)
    assert bootstrap_interval(values, seed=3) == found
    assert bootstrap_interval(values, seed=4) != found


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(1000):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, size=60), n=300, seed=seed, level=0.8)
        covered += low <= 1.0 <= high
    # 4 standard errors of a proportion.
    assert covered / 1000 == pytest.approx(0.8, abs=0.05)


def test_bootstrap_leaves_out_nan():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(np.append(values, [np.nan, np.nan])) == bootstrap_interval(values)
    assert np.isnan(bootstrap_interval([np.nan, np.nan])).all()


def test_bootstrap_over_sections_is_wider_where_sections_differ():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 1)) + 0.01 * rng.normal(size=(6, 200))
    low, high = bootstrap_interval(values)
    pooled_low, pooled_high = bootstrap_interval(values.ravel())
    assert low < values.mean() < high
    # 1200 values of which only 6 are independent.
    assert high - low > 5 * (pooled_high - pooled_low)


def test_bootstrap_over_sections_equals_drawing_with_indices():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(5, 1)) + rng.normal(size=(1, 30)) + rng.normal(size=(5, 30))
    values[0, :10] = np.nan
    means = []
    for _ in range(10_000):
        drawn = values[rng.integers(0, 5, 5)][:, rng.integers(0, 30, 30)]
        means.append(np.nanmean(drawn))
    np.testing.assert_allclose(bootstrap_interval(values, n=10_000), np.quantile(means, [0.025, 0.975]), atol=0.05)


@pytest.mark.parametrize(
    ("values", "kw", "message"),
    [
        (np.zeros((2, 2, 2)), {}, r"`values` must be \(units,\) or \(sections, genes\), found shape \(2, 2, 2\)"),
        ([], {}, r"`values` must be \(units,\) or \(sections, genes\), found shape \(0,\)"),
        ([1.0], {"n": 0}, "`n` must be a positive number"),
        ([1.0], {"level": 95}, "`level` must lie between 0 and 1, both excluded, found 95"),
    ],
)
def test_bootstrap_checks_its_input(values, kw, message):
    with pytest.raises(DataError, match=message):
        bootstrap_interval(values, **kw)


def test_metrics_and_probes_need_no_torch():
    code = "import sys, sealst._core.scores.metrics, sealst._core.scores.probes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.integers(3, 12), st.integers(0, 9))
def test_ranks_among_others_leave_the_query_out(n, seed):
    rng = np.random.default_rng(seed)
    z = rng.integers(-1, 2, (n, 3)).astype(float)
    own, target = np.arange(n), (np.arange(n) + 1 + rng.integers(0, n - 1, n)) % n
    expected = [retrieval_ranks(z[[i]], np.delete(z, i, axis=0), [target[i] - (target[i] > i)])[0] for i in range(n)]
    np.testing.assert_array_equal(retrieval_ranks(z, z, target, left_out=own), expected)


def test_a_target_is_not_left_out():
    with pytest.raises(DataError, match="`left_out` must hold one row of `pool` per query, none of them its target"):
        retrieval_ranks(np.eye(3), np.eye(3), [0, 1, 2], left_out=[1, 1, 0])
