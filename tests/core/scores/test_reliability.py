from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from scipy import stats

from sealst._core.scores.ceiling import half_correlation, noise_ceiling
from sealst._core.scores.genes import slopes
from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.reliability import above_zero, reliability_table, score_section, slope_of
from sealst._errors import DataError


def log_cp10k(counts):
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


# -- the ceiling ------------------------------------------------------------------------------------------------------
def drawn(rate, seed=0, rest=4000.0):
    """Counts around rates, with a last column of all other genes, which brings every spot to one depth."""
    whole = np.column_stack([rate, rest - rate.sum(axis=1)])
    return whole, np.random.default_rng(seed).poisson(whole)


@given(st.floats(2, 20), st.floats(0.4, 0.8), st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_the_ceiling_is_what_the_truth_itself_reaches(depth, spread, seed):
    rate, counts = drawn(depth * np.exp(np.random.default_rng(seed).normal(0, spread, (600, 15))), seed)
    reached = gene_pearson(log_cp10k(rate), log_cp10k(counts))[:15]
    ceiling = noise_ceiling(half_correlation(counts, np.arange(15), seed=seed))
    assert ceiling.mean() == pytest.approx(reached.mean(), abs=0.05)


def test_the_ceiling_rises_with_depth_and_is_low_without_differences():
    rate = np.exp(np.random.default_rng(0).normal(0, 0.7, (600, 30)))
    rate[:, :10] = 1.0
    found = [noise_ceiling(half_correlation(drawn(rate * depth)[1], np.arange(30))) for depth in (1, 5, 25)]
    assert (np.diff([one[10:].mean() for one in found]) > 0.1).all()
    assert max(one[:10].mean() for one in found) < 0.25


def test_halves_of_sparse_counts_are_those_of_dense_ones_and_the_seed_decides():
    counts, columns = np.random.default_rng(0).poisson(2.0, (60, 5)), np.array([3, 0])
    found = half_correlation(counts, columns, seed=1)
    np.testing.assert_array_equal(half_correlation(sp.csr_matrix(counts, dtype=np.float32), columns, seed=1), found)
    assert (half_correlation(counts, columns, seed=2) != found).all()
    counts[:, 0] = 0
    assert np.isnan(half_correlation(counts, columns)).tolist() == [False, True]
    with pytest.raises(DataError, match="must not be negative, found -1"):
        half_correlation(-np.ones((4, 2)), columns[1:])


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_the_ceiling_lies_between_0_and_1_and_rises_with_the_agreement_of_halves(a, b):
    low, high = noise_ceiling(np.array(sorted((a, b))))
    assert 0 <= low <= high <= 1


# -- better than chance -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("alike", [True, False])
def test_p_values_of_noise_are_uniform(n, alike):
    rng = np.random.default_rng(n)
    spread = np.full(5000, 0.1) if alike else 0.1 * np.sqrt(4 / rng.chisquare(4, 5000))
    found = above_zero(np.tanh(rng.normal(0, spread, (n, 5000))))
    for level, off in ((0.5, 0.1), (0.05, 0.2), (0.01, 0.6)):
        assert (found < level).mean() == pytest.approx(level, rel=off)


def test_a_single_row_is_tested_as_ever():
    r = np.array([[0.3], [0.1], [0.25]])
    expected = stats.ttest_1samp(np.arctanh(r[:, 0]), 0, alternative="greater").pvalue
    assert above_zero(r)[0] == pytest.approx(expected)


def test_genes_share_what_they_know_of_differences_between_patients():
    """A gene that two patients happen to agree on is not thereby certain."""
    rng = np.random.default_rng(0)
    r = np.tanh(rng.normal(0, 0.2, (2, 500)))
    r[:, 0] = 0.05, 0.0501
    assert stats.ttest_1samp(np.arctanh(r[:, 0]), 0, alternative="greater").pvalue < 0.001
    assert above_zero(r)[0] > 0.1


def test_below_two_patients_nothing_is_tested():
    assert np.isnan(above_zero(np.array([[0.9, 0.9], [np.nan, 0.8]]))).tolist() == [True, False]
    assert above_zero(np.zeros((3, 4))).tolist() == [0.5] * 4


# -- the table --------------------------------------------------------------------------------------------------------
def cohort(sections, *, n=80, genes=6, seed=0):
    """Held-out sections by patient: the first gene predicted well, the others not at all; (predicted, measured)."""
    rng, values, scores = np.random.default_rng(seed), {}, []
    for name, patient in sections.items():
        measured = rng.normal(size=(n, genes))
        predicted = rng.normal(size=(n, genes))
        predicted[:, 0] += measured[:, 0]
        values[name] = predicted, measured
        scores.append(score_section(predicted, measured, section=name, patient=patient))
    return values, scores


SECTIONS = {"a1": "A", "a2": "A", "b": "B", "c": "C", "d": "D"}
NAMES = [f"G{i}" for i in range(6)]


def test_patients_count_alike_however_many_sections_they_have():
    values, scores = cohort(SECTIONS)
    table = reliability_table(scores, NAMES, sets={"first two": np.array([0, 1])})
    r = {name: gene_pearson(*pair) for name, pair in values.items()}
    expected = np.mean([(r["a1"] + r["a2"]) / 2, r["b"], r["c"], r["d"]], axis=0)
    np.testing.assert_allclose(table["pearson"][:6], expected)
    assert table["pearson"].iloc[6] == pytest.approx(expected[:2].mean())
    assert table["kind"].tolist() == ["gene"] * 6 + ["genes"]
    assert table[["n_patients", "n_sections", "n_spots"]].drop_duplicates().to_numpy().tolist() == [[4, 5, 400]]
    assert (table["low"] < table["pearson"]).all()
    assert (table["pearson"] < table["high"]).all()
    assert table["better_than_chance"][:6].tolist() == [True] + [False] * 5
    by_section = reliability_table(scores, NAMES, by="section")
    np.testing.assert_allclose(by_section["pearson"], np.mean(list(r.values()), axis=0))


def test_slopes_are_within_sections():
    """Sections at other levels do not tilt the line."""
    values, _ = cohort({"b": "B", "c": "C"})
    moved = [
        score_section(p + 7 * i, t - 3 * i, section=name, patient=name)
        for i, (name, (p, t)) in enumerate(values.items())
    ]
    centred = [np.concatenate([pair[k] - pair[k].mean(axis=0) for pair in values.values()]) for k in (0, 1)]
    np.testing.assert_allclose(slope_of(moved), slopes(*centred))
    flat = score_section(np.ones((9, 1)), np.arange(9.0)[:, None], section="s", patient="p")
    assert np.isnan(slope_of([flat]))[0]


def test_a_gene_counts_where_it_is_measured():
    values, scores = cohort({"b": "B", "c": "C", "d": "D"})
    known = np.array([False, True, True, True, True, True])
    p, t = values["d"]
    scores[-1] = score_section(p, t, section="d", patient="D", known=known)
    scores = [one._replace(pearson=np.where(np.arange(6) == 5, np.nan, one.pearson)) for one in scores]
    scores = [one._replace(drawn=np.where(np.arange(6) == 5, np.nan, one.drawn)) for one in scores]
    table = reliability_table(scores, NAMES).set_index("name")
    assert table.loc["G0", ["n_patients", "n_spots"]].tolist() == [2, 160]
    assert table.loc["G5", ["pearson", "low", "pvalue", "padj"]].isna().all()
    assert not table.loc["G5", "better_than_chance"]
    assert table.loc["G5", "n_patients"] == 0


def test_the_explained_part_is_of_the_ceiling():
    values, _ = cohort({"b": "B", "c": "C"})
    half = np.array([0.5, 0.5, 0.5, 0.0, np.nan, 1.0])
    scores = [score_section(*pair, section=name, patient=name, half=half) for name, pair in values.items()]
    table = reliability_table(scores, NAMES)
    np.testing.assert_allclose(table["ceiling"], noise_ceiling(half))
    np.testing.assert_allclose(table["explained"][:3], table["pearson"][:3] / noise_ceiling(half)[:3])
    assert table["explained"].isna().tolist() == [False, False, False, True, True, False]


def test_intervals_hold_patients_and_spots():
    """Patients that differ make them wide, and so do few spots."""
    rng, widths = np.random.default_rng(0), []
    for strengths, n in (((1, 1, 1, 1), 500), ((1, 1, 1, 1), 30), ((3, 1, 0.3, 0), 500)):
        scores = []
        for i, strength in enumerate(strengths):
            measured = rng.normal(size=(n, 20))
            predicted = strength * measured + rng.normal(size=(n, 20))
            scores.append(score_section(predicted, measured, section=str(i), patient=str(i), seed=i))
        table = reliability_table(scores, [f"G{i}" for i in range(20)])
        widths.append((table["high"] - table["low"]).mean())
    assert widths[1] > 2 * widths[0]
    assert widths[2] > 4 * widths[0]


def test_draws_of_spots_are_of_the_correlation_itself():
    values, _ = cohort({"b": "B"}, n=400)
    one = score_section(*values["b"], section="b", patient="B")
    np.testing.assert_allclose(one.drawn.mean(axis=0), one.pearson, atol=0.02)
    assert one.drawn[:, 1:].std(axis=0) == pytest.approx(1 / np.sqrt(400), rel=0.25)


def test_without_sections_there_is_no_table():
    with pytest.raises(DataError, match="no held-out section"):
        reliability_table([], ["G"])
