"""Agreement of scores, and votes for labels: equal to what scipy and a loop over spots say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from sealst._core.scores.genes import agreement
from sealst._core.search.queries import nearest_votes
from sealst._errors import DataError


@pytest.fixture
def scores() -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    spots, names = [f"s{i}" for i in range(30)], ["A", "B", "C"]
    measured = pd.DataFrame(rng.normal(size=(30, 3)), index=spots, columns=names)
    return measured, measured + rng.normal(size=(30, 3))


def test_equals_scipy_over_known_rows(scores: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    measured, predicted = scores
    measured.iloc[:4, 1], predicted.iloc[10:13] = np.nan, np.nan
    found = agreement(measured, predicted)
    assert list(found.index) == ["A", "B", "C"]
    assert found["n"].tolist() == [27, 23, 27]
    for name in found.index:
        pair = pd.DataFrame({"m": measured[name], "p": predicted[name]}).dropna()
        assert found.loc[name, "pearson"] == pytest.approx(pearsonr(pair["m"], pair["p"])[0])
        assert found.loc[name, "spearman"] == pytest.approx(spearmanr(pair["m"], pair["p"])[0])


def test_rows_and_columns_match_by_name(scores: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    measured, predicted = scores
    shuffled = predicted.sample(frac=1, random_state=1)[["C", "A"]].assign(OTHER=1.0)
    pd.testing.assert_frame_equal(agreement(measured, shuffled), agreement(measured, predicted).loc[["A", "C"]])
    part = agreement(measured.iloc[:20], shuffled)
    pd.testing.assert_frame_equal(part, agreement(measured.iloc[:20], predicted.iloc[:20]).loc[["A", "C"]])


def test_constants_and_few_rows(scores: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    measured, predicted = scores
    measured["A"], predicted["B"] = 1.0, 2.0
    measured.iloc[2:, 2] = np.nan
    found = agreement(measured, predicted)
    assert np.isnan(found.loc["A", "pearson"])
    assert found.loc["B", ["pearson", "spearman"]].tolist() == [0, 0]
    assert np.isnan(found.loc["C", "spearman"])
    assert found.loc["C", "n"] == 2


def test_what_cannot_be_matched(scores: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    measured, predicted = scores
    with pytest.raises(DataError, match=r"share no column; they begin 'A', 'B', 'C' and 'X'"):
        agreement(measured, predicted[["A"]].rename(columns={"A": "X"}))
    with pytest.raises(DataError, match=r"share no row; they begin 's0'.* and 'x0'"):
        agreement(measured, predicted.set_axis([f"x{i}" for i in range(30)]))
    with pytest.raises(DataError, match=r"Rows of `predicted` cannot be matched.*'s0'"):
        agreement(measured, pd.concat([predicted, predicted.iloc[:1]]))
    with pytest.raises(DataError, match=r"Columns of `measured` occur twice: 'A'"):
        agreement(measured[["A", "A"]], predicted)
    with pytest.raises(TypeError, match="`predicted` must be a DataFrame with named rows and columns, found ndarray"):
        agreement(measured, predicted.to_numpy())  # type: ignore[arg-type]


# -- votes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("balance", [False, True])
def test_votes_are_the_formula(balance: bool) -> None:
    rng = np.random.default_rng(0)
    query, pool, codes = rng.normal(size=(7, 4)), rng.normal(size=(40, 4)), np.r_[np.arange(3), rng.choice(3, 37)]
    found = nearest_votes(query, pool, codes, n_labels=3, n_neighbors=9, temperature=0.2, balance=balance)
    size = np.bincount(codes) if balance else np.ones(3)
    for i, q in enumerate(query):
        s = pool @ q / np.linalg.norm(pool, axis=1) / np.linalg.norm(q)
        votes = np.zeros(3)
        for j in np.argsort(-s)[:9]:
            votes[codes[j]] += np.exp(s[j] / 0.2) / size[codes[j]]
        np.testing.assert_allclose(found[i], votes / votes.sum())


def test_blocks_and_order_of_the_reference_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from sealst._core.search import queries

    rng = np.random.default_rng(0)
    query, pool, codes = rng.normal(size=(9, 4)), rng.normal(size=(20, 4)), np.arange(20) % 2
    # Equal rows with different labels: all that are as near as the last of k vote.
    pool[10:] = pool[:10]
    codes[10:] = 1 - codes[:10]
    options = {"n_labels": 2, "n_neighbors": 3, "temperature": 1e-3}
    whole = nearest_votes(query, pool, codes, **options)
    np.testing.assert_allclose(whole, 0.5)
    monkeypatch.setattr(queries, "_BLOCK", 45)
    order = rng.permutation(20)
    np.testing.assert_allclose(nearest_votes(query, pool[order], codes[order], **options), whole)


def test_bad_votes() -> None:
    z, codes = np.eye(3), np.array([0, 1, 1])
    with pytest.raises(DataError, match="`n_neighbors` must be a whole number from 1 to the 3 labelled"):
        nearest_votes(z, z, codes, n_labels=2, n_neighbors=4, temperature=1)
    with pytest.raises(DataError, match="`temperature` must be a positive number, found 0"):
        nearest_votes(z, z, codes, n_labels=2, n_neighbors=1, temperature=0)
    with pytest.raises(DataError, match=r"must be \(n, d\) and \(m, d\), found \(3, 2\), \(3, 3\)"):
        nearest_votes(z[:, :2], z, codes, n_labels=2, n_neighbors=1, temperature=1)
    with pytest.raises(DataError, match=r"one label for each of 3 rows, found \(2,\)"):
        nearest_votes(z, z, codes[:2], n_labels=2, n_neighbors=1, temperature=1)
