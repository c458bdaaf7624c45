"""Predictions carry how far they can be believed, and calls name what cannot be."""

from __future__ import annotations

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst._section import reliability_of
from sealst.models import Reliability

PREDICTABLE = ("EPCAM", "KRT8", "VIM")


@pytest.fixture
def trusted(model, monkeypatch):
    """The small model, of which three genes are known to be predictable."""
    genes = list(model.panel.genes)
    fine = [gene in PREDICTABLE for gene in genes]
    r = np.where(fine, 0.4, 0.02) + 0.01 * np.arange(len(genes))
    table = pd.DataFrame({"name": genes, "kind": "gene", "pearson": r})
    numbers = ("low", "high", "ceiling", "explained", "slope", "pvalue", "padj")
    table = table.assign(**dict.fromkeys(numbers, 0.5), better_than_chance=fine, n_patients=4, n_sections=4, n_spots=9)
    found = Reliability(table, model.fingerprint, "patients", ("A", "B", "C", "D"), ("a", "b", "c", "d"))
    monkeypatch.setattr(model, "reliability", found)
    return model


@pytest.fixture
def said(caplog):
    with sl.settings.override(verbosity="info"), caplog.at_level(logging.INFO, logger="sealst"):
        yield caplog


def test_predictions_carry_it_through_a_file(ready, trusted, tmp_path, said):
    sdata = ready(section="t", patient="p9")
    sl.tl.predict(sdata, trusted)
    r = trusted.reliability.of(trusted.panel.genes)["pearson"]
    assert f"3 of 8 genes predicted better than chance on unseen patients; median r {r.median():.2f}" in said.text
    table = sdata.tables["table"]
    made = table.uns["sealst"]["predict"]["seal_expression"]["reliability"]
    assert (made["held_out"], made["n_patients"], made["readout"]) == ("patients", 4, trusted.readouts[0])
    table.write_h5ad(tmp_path / "t.h5ad")
    for one in (table, ad.read_h5ad(tmp_path / "t.h5ad")):
        found = reliability_of(one, "seal_expression")
        assert list(found.index) == list(trusted.panel.genes)
        np.testing.assert_allclose(found["pearson"], r)
        assert set(found.index[found["better_than_chance"]]) == set(PREDICTABLE)


def test_without_it_the_model_says_unknown(ready, model, said):
    sdata = ready(section="t", patient="p9")
    sl.tl.predict(sdata, model)
    assert "reliability unknown: the model was not cross-fitted" in said.text
    table = sdata.tables["table"]
    assert table.uns["sealst"]["predict"]["seal_expression"]["reliability"] == "unknown"
    assert reliability_of(table, "seal_expression") is None
    with pytest.raises(sl.DataError, match="the reliability of this model is unknown"):
        sl.tl.predict(sdata, model, min_reliability=0.1)


def test_genes_below_the_least_are_left_out(ready, trusted, said):
    sdata = ready(section="t", patient="p9")
    sl.tl.predict(sdata, trusted, min_reliability=0.3)
    frame = sdata.tables["table"].obsm["seal_expression"]
    assert set(frame.columns) == set(PREDICTABLE)
    assert "5 of 8 genes are below min_reliability=0.3" in said.text
    assert "3 of 3 genes predicted better than chance" in said.text
    with pytest.raises(sl.DataError, match=r"None of the 1 genes reaches `min_reliability=0.3`; the best has 0\.\d\d"):
        sl.tl.predict(sdata, trusted, genes=["ACTB"], min_reliability=0.3)
    for wrong in (2, "high", True):
        with pytest.raises(sl.DataError, match="must be a correlation from -1 to 1"):
            sl.tl.predict(sdata, trusted, min_reliability=wrong)


def test_gene_sets_that_stand_on_little_are_named(ready, trusted):
    sdata = ready(section="t", patient="p9")
    net = {"fine": [*PREDICTABLE, "ACTB"], "weak": ["EPCAM", "CD3E", "MS4A1", "ERBB2"]}
    sl.tl.predict(sdata, trusted)
    with pytest.warns(sl.SealstWarning, match=r"1 of 2 gene sets have fewer than 3 genes .* 'weak \(1 of 4\)'"):
        sl.tl.pathways(sdata, net, tmin=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sl.SealstWarning)
        sl.tl.pathways(sdata, {"fine": net["fine"]}, tmin=3)
        sl.tl.pathways(sdata, net, source="measured", tmin=3)


def test_queries_of_genes_that_are_not_predictable_are_named(ready, trusted):
    sdata = ready(section="t", patient="p9")
    sl.tl.embed(sdata, trusted)
    with pytest.warns(sl.SealstWarning, match=r"1 of the 2 gene\(s\) asked for are not predicted .*: 'CD3E'"):
        sl.tl.retrieve(sdata, trusted, ["EPCAM", "CD3E"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", sl.SealstWarning)
        sl.tl.retrieve(sdata, trusted, "EPCAM")
        sl.tl.retrieve(sdata, trusted, sdata.tables["table"].obs_names[0], kind="spot")


def test_maps_print_it_beside_the_gene(ready, trusted):
    sdata = ready(section="t", patient="p9")
    sl.tl.predict(sdata, trusted)
    figure = sl.pl.expression(sdata, "EPCAM", maps="predicted", show=False)
    r = trusted.reliability.genes.loc["EPCAM", "pearson"]
    assert any(f"held-out r = {r:.2f}" in ax.get_title() for ax in figure.axes)
    sdata.tables["table"].uns["sealst"]["predict"]["seal_expression"]["reliability"]["pearson"] = "high"
    with pytest.raises(sl.DataError, match=r"\['reliability'\]` is damaged"):
        sl.pl.expression(sdata, "EPCAM", maps="predicted", show=False)


def test_an_evaluation_can_be_relied_on(ready, finetune, model):
    """Of the model itself on others, or of its recipe in folds; of nothing else."""
    sections = [ready(section=name, patient=f"p{i + 1}", seed=i) for i, name in enumerate("ab")]
    others = [ready(section=f"o{i}", patient=f"o{i}", seed=5 + i) for i in range(2)]
    found = sl.tl.evaluate(sections, model, test=others, genes={"panel": list(model.panel.genes)})
    try:
        made = model.rely_on(found)
        assert model.reliability is made
        assert (made.held_out, made.sections, made.model) == ("patients", ("o0", "o1"), model.fingerprint)
        rows = found.genes[found.genes["method"] == "seal prediction"]
        expected = rows.groupby("gene")["pearson"].mean()
        np.testing.assert_allclose(made.genes["pearson"], expected[made.genes.index], atol=1e-6)
        assert made.genes["ceiling"].isna().all()
    finally:
        model.reliability = None
    plain = sl.tl.evaluate(sections, model, test=others, preset="plain")
    with pytest.raises(sl.DataError, match="sees crops otherwise"):
        model.rely_on(plain)
    with pytest.raises(TypeError, match="must be what `sl.tl.evaluate` returns"):
        model.rely_on(found.table)
    found.facts["seeds"] = [0]
    with pytest.raises(sl.DataError, match="held out section.*but the model was trained on 'a', 'b'"):
        model.rely_on(found)
    found.facts["models"] = {"test": "another"}
    with pytest.raises(sl.DataError, match="of another making: another"):
        model.rely_on(found)
