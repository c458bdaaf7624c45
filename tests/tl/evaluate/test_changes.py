"""What an alignment changed beside prediction."""

from __future__ import annotations

import numpy as np
import pytest

import sealst as sl


@pytest.fixture
def sections(ready):
    made = [ready(section=name, patient=f"p-{name}", seed=i) for i, name in enumerate("abcd")]
    for i, sdata in enumerate(made):
        table = sdata.tables["table"]
        x = table.obsm["spatial"][:, 0]
        table.obs["side"] = np.where(x > np.median(x), "right", "left")
        table.obs["centre"] = "north" if i % 2 else "south"
        table.obs["rare"] = [None] * (table.n_obs - 1) + ["seen"]
    return made


@pytest.fixture
def found(sections, model, ready):
    return sl.tl.evaluate(
        sections[2:], model, test=sections[:2], allow_shared_patients=True, labels=["side", "patient"],
        confounder="centre",
    ).table  # fmt: skip


def of(table, metric):
    return table[table["metric"] == metric]


def test_neighbours_that_stay(found, sections, model):
    from sealst._core.scores.neighbourhoods import neighbours_kept

    rows = of(found, "neighbours_kept")
    assert list(rows["section"]) == ["a", "b"]
    assert set(rows["method"]) == {"adapted"}
    for name, sdata in zip("ab", sections, strict=False):
        sl.tl.embed(sdata, model, views=8)
        with model.frozen_encoder():
            sl.tl.embed(sdata, model.encoder, views=8, key_added="before")
        table = sdata.tables["table"]
        expected = neighbours_kept(table.obsm["before"], table.obsm["X_seal"])
        row = rows[rows["section"] == name].iloc[0]
        assert row["value"] == pytest.approx(expected, abs=0.02)
        assert row["chance"] == pytest.approx(10 / (table.n_obs - 1))


def test_labels_are_told_by_both_encoders(found):
    rows = of(found, "label_accuracy")
    region = rows[rows["genes"] == "side"]
    assert sorted(zip(region["method"], region["section"], strict=True)) == [
        ("adapted", "a"), ("adapted", "b"), ("frozen", "a"), ("frozen", "b"),
    ]  # fmt: skip
    assert (region["chance"] == 0.5).all()
    assert region["value"].between(0, 1).all()
    # One patient a section: told from spot to spot, of all sections together.
    patient = rows[rows["genes"] == "patient"]
    assert list(patient["section"]) == ["", ""]
    assert (patient["chance"] == 0.25).all()


def test_the_index_is_over_the_confounder(found):
    rows = of(found, "robustness_index over centre")
    assert set(rows["method"]) == {"frozen", "adapted"}
    assert set(rows["genes"]) == {"side"}
    assert rows["value"].between(0, 1).all()


def test_without_labels_there_are_no_such_rows(sections, model):
    table = sl.tl.evaluate(sections[2:], model, test=sections[:1], allow_shared_patients=True).table
    assert len(of(table, "neighbours_kept")) == 1
    assert not table["metric"].str.contains("label|robust").any()


def test_an_encoder_alone_has_labels_and_kept_none(sections, model):
    table = sl.tl.evaluate(sections[2:], model.encoder, test=sections[:1], labels=["side"]).table
    assert set(of(table, "label_accuracy")["method"]) == {"frozen"}
    assert not len(of(table, "neighbours_kept"))


def test_a_column_that_says_nothing_is_named_and_left_out(sections, model):
    with pytest.warns(sl.SealstWarning, match="1 value\\(s\\) of label 'rare'"):
        table = sl.tl.evaluate(
            sections[2:], model, test=sections[:1], allow_shared_patients=True, labels=["rare", "side"]
        ).table
    assert set(of(table, "label_accuracy")["genes"]) == {"side"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": "side"}, "say `labels=\\['side'\\]`"),
        ({"labels": ["sied"]}, "'sied'"),
        ({"labels": ["side"], "confounder": "scanner"}, "'scanner'"),
    ],
)
def test_wrong_columns_are_named_before_anything_is_embedded(sections, model, monkeypatch, given, message):
    monkeypatch.setattr(type(model), "embed_both", lambda *a, **k: pytest.fail("embedded"))
    with pytest.raises(sl.SealstError, match=message):
        sl.tl.evaluate(sections[2:], model, test=sections[:1], allow_shared_patients=True, **given)
