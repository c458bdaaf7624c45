"""Limits beside predictions: what is written, what is refused, and that they are never those of other predictions."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest

import sealst as sl
from sealst._core.scores.intervals import Residuals
from sealst.models._intervals import intervals_of

LOW, HIGH = "seal_expression_low", "seal_expression_high"


@pytest.fixture
def limited(model, monkeypatch):
    """The small model, with intervals of all genes but the last."""
    rng, n = np.random.default_rng(0), len(model.panel)
    parts = []
    for i in range(3):
        p = rng.uniform(2, 7, (30, n)).astype(np.float32)
        y = p + rng.normal(size=p.shape).astype(np.float32)
        parts.append(Residuals(f"s{i}", f"p{i}", p, y, np.arange(n) < n - 1))
    options = {"by": "patient", "readout": model.readouts[0], "views": 8}
    monkeypatch.setattr(model, "intervals", intervals_of(model.fingerprint, parts, model.panel.genes, **options))
    return model


def test_limits_stand_beside_the_prediction_and_go_through_a_file(ready, limited, tmp_path, caplog):
    sdata = ready(section="t", patient="p9")
    with sl.settings.override(verbosity="info"), caplog.at_level(logging.INFO, logger="sealst"):
        sl.tl.predict(sdata, limited, intervals=0.9)
    assert "between them 90% of single spots of further patients are expected, by 3 held out in turn" in caplog.text
    table = sdata.tables["table"]
    predicted, low, high = (table.obsm[key] for key in ("seal_expression", LOW, HIGH))
    assert list(low.columns) == list(high.columns) == list(predicted.columns)
    assert (low.index == predicted.index).all()
    assert {*low.dtypes, *high.dtypes} == {np.dtype("float32")}
    genes = list(limited.panel.genes[:-1])
    assert (low[genes] >= 0).all(axis=None)
    assert (low[genes] < predicted[genes]).all(axis=None)
    assert (predicted[genes] < high[genes]).all(axis=None)
    assert low[limited.panel.genes[-1]].isna().all()
    expected = limited.intervals.limits(predicted[list(limited.panel.genes)].to_numpy(), 0.9)
    np.testing.assert_array_equal(high[list(limited.panel.genes)], expected[1])
    table.write_h5ad(tmp_path / "t.h5ad")
    for one in (table, ad.read_h5ad(tmp_path / "t.h5ad")):
        made = one.uns["sealst"]["predict"]["seal_expression"]["intervals"]
        assert (made["coverage"], made["held_out"], made["n_held_out"]) == (0.9, "patients", 3)
        taken = sl.get.expression(one, key=HIGH)
        np.testing.assert_array_equal(taken.X, high.to_numpy())
        assert list(taken.var_names) == list(high.columns)


def test_genes_that_are_asked_for_and_names_with_a_slash(ready, limited, monkeypatch):
    gene = limited.panel.genes[0]
    sdata = ready(section="t", patient="p9")
    wanted = [gene, limited.panel.genes[2]]
    sl.tl.predict(sdata, limited, intervals=0.5, genes=wanted, key_added="mine")
    table = sdata.tables["table"]
    assert list(table.obsm["mine_low"].columns) == list(table.obsm["mine_high"].columns) == wanted
    assert LOW not in table.obsm
    monkeypatch.setattr("sealst.tl._embed.predict.as_columns", lambda names, what: [f"{n}_x" for n in names])
    sl.tl.predict(sdata, limited, intervals=0.5, genes=wanted)
    assert list(table.obsm[LOW].columns) == [f"{n}_x" for n in wanted]
    assert list(sl.get.expression(sdata, key=LOW).var_names) == wanted


def test_limits_of_an_earlier_prediction_do_not_stay(ready, limited):
    sdata = ready(section="t", patient="p9")
    table = sdata.tables["table"]
    table.obsm["other_low"] = np.zeros((table.n_obs, 2))
    sl.tl.predict(sdata, limited, intervals=0.9)
    sl.tl.predict(sdata, limited, key_added="other")
    sl.tl.predict(sdata, limited)
    assert LOW not in table.obsm
    assert HIGH not in table.obsm
    assert "other_low" in table.obsm
    assert set(table.uns["sealst"]["predict"]) == {"seal_expression", "other"}
    assert "intervals" not in table.uns["sealst"]["predict"]["seal_expression"]


def test_the_frozen_copy_leaves_what_was_given(ready, limited):
    sdata = ready(section="t", patient="p9")
    made = sl.tl.predict(sdata, limited, intervals=0.8, copy=True)
    assert LOW in made.tables["table"].obsm
    assert LOW not in sdata.tables["table"].obsm


def test_what_was_not_measured_is_refused_before_anything_is_embedded(ready, limited, model, monkeypatch):
    sdata = ready(section="t", patient="p9")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: pytest.fail("crops were embedded"))
        for wrong in (0.85, 1, 90, True, "high", float("nan")):
            with pytest.raises(
                sl.DataError, match="`intervals` is a share of spots, one of 0.5, 0.8, 0.9, 0.95; found"
            ):
                sl.tl.predict(sdata, limited, intervals=wrong)
        with pytest.raises(sl.DataError, match=r"measured for the readout '\w+', not for 'head'"):
            sl.tl.predict(sdata, limited, intervals=0.9, readout="head")
        with pytest.raises(sl.DataError, match="means over 8 views of each crop, and these are over 2"):
            sl.tl.predict(sdata, limited, intervals=0.9, views=2)
        tiles = ready(section="u", patient="p9")
        tiles.tables["table"] = tiles.tables["table"][:, :0].copy()
        with pytest.raises(sl.DataError, match="tiles of a slide are none"):
            sl.tl.predict(tiles, limited, intervals=0.9)
    sl.tl.embed(sdata, limited, views=1)
    with pytest.raises(sl.DataError, match="these are over 1. Say `views=8`"):
        sl.tl.predict(sdata, limited, intervals=0.9)
    assert "seal_expression" not in sdata.tables["table"].obsm
    sl.tl.predict(sdata, limited, intervals=0.9, views=8)
    monkeypatch.setattr(model, "intervals", None)
    with pytest.raises(sl.DataError, match=r"this model has none. Train on three patients or more"):
        sl.tl.predict(sdata, limited, intervals=0.9)


def test_an_evaluation_scores_them(ready, limited):
    sections = [ready(section=name, patient=f"p{i + 1}", seed=i) for i, name in enumerate("ab")]
    others = [ready(section=f"o{i}", patient=f"o{i}", seed=5 + i) for i in range(2)]
    genes = list(limited.panel.genes)
    found = sl.tl.evaluate(sections, limited, test=others, genes={"panel": genes})
    rows = found.table[found.table["metric"].isin(["coverage", "width"])].set_index(["section", "metric"])["value"]
    assert sorted(rows.index) == [(s, m) for s in ("o0", "o1") for m in ("coverage", "width")]
    for sdata in others:
        sl.tl.predict(sdata, limited, intervals=0.9)
        table = sdata.tables["table"]
        # Of the last gene nothing is known.
        low, high = (table.obsm[key][genes[:-1]].to_numpy() for key in (LOW, HIGH))
        measured = table[:, genes[:-1]].layers["lognorm"].toarray()
        name = table.obs["section"].iloc[0]
        assert rows[name, "coverage"] == pytest.approx(((low <= measured) & (measured <= high)).mean(), abs=1e-3)
        assert rows[name, "width"] == pytest.approx((high - low).mean(), rel=1e-3)
    plain = sl.tl.evaluate(sections, limited, test=others, preset="plain")
    assert not plain.table["metric"].isin(["coverage", "width"]).any()
