"""Names that cannot be stored are replaced or refused before anything is computed."""

from __future__ import annotations

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sealst as sl
from sealst._validate import as_columns, check_slot

BAD = ["T/NK", "T cells", "__x", "", "..", ".", "_index", "a\\b", "x" * 300, 3]


@pytest.fixture
def slashed(model):
    """A model whose genes are called as CosMx calls them."""
    renamed = sl.models.SealModel.__new__(type(model))
    renamed.__dict__.update(model.__dict__)
    genes = list(model.panel.genes)
    genes[:2] = ["KRT6A/B", "HLA-DQB1/2"]
    renamed.panel = dataclasses.replace(model.panel, genes=tuple(genes))
    return renamed


@pytest.mark.parametrize("suffix", ["h5ad", "zarr", "spatialdata"])
def test_genes_with_a_slash_are_predicted_and_saved(ready, slashed, tmp_path, suffix):
    sdata = ready(section="t")
    net = {"both": ["KRT6A/B", "HLA-DQB1/2", *slashed.panel.genes[2:6]]}
    sl.tl.predict(sdata, slashed, net=net)
    table = sdata.tables["table"]
    frame = table.obsm["seal_expression"]
    assert list(frame.columns[:2]) == ["KRT6A_B", "HLA-DQB1_2"]
    if suffix == "spatialdata":
        sdata.write(tmp_path / "t.zarr")
        back = sd.read_zarr(tmp_path / "t.zarr").tables["table"]
    else:
        getattr(table, f"write_{suffix}")(tmp_path / "t")
        back = getattr(ad, f"read_{suffix}")(tmp_path / "t")
    pd.testing.assert_frame_equal(back.obsm["seal_expression"], frame)
    # They are asked by the name that they have.
    sl.pl.expression(sdata, "KRT6A/B", maps="predicted")
    first = back.obsm["seal_pathways"].copy()
    sl.tl.pathways(back, net)
    pd.testing.assert_frame_equal(back.obsm["seal_pathways"], first)


def test_genes_that_would_share_a_column_are_refused_before_the_work(ready, slashed, monkeypatch):
    sdata = ready(section="t")
    genes = list(slashed.panel.genes)
    genes[2] = "KRT6A_B"
    slashed.panel = dataclasses.replace(slashed.panel, genes=tuple(genes))
    monkeypatch.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: pytest.fail("embedded"))
    with pytest.raises(
        sl.DataError, match="Genes 'KRT6A/B', .* would be stored with '_' for '/', but these names exist"
    ):
        sl.tl.predict(sdata, slashed)


@pytest.mark.parametrize("name", BAD)
def test_slots_that_cannot_be_stored_are_refused_before_the_work(ready, model, monkeypatch, name):
    sdata = ready(section="t")
    table = sdata.tables["table"]
    monkeypatch.setattr("sealst.tl._embed.embed.embed_crops", lambda *a, **k: pytest.fail("embedded"))
    monkeypatch.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: pytest.fail("embedded"))
    calls = {
        "predict": lambda: sl.tl.predict(sdata, model, key_added=name),
        "retrieve": lambda: sl.tl.retrieve(sdata, model, "VIM", key_added=name),
        "annotate": lambda: sl.tl.annotate(sdata, model, table, labels="section", key_added=name),
        "rank_pathways": lambda: sl.tl.rank_pathways(sdata, "section", key_added=name),
        "embed": lambda: sl.tl.embed(sdata, model, key_added=name),
        "pathways": lambda: sl.tl.pathways(sdata, {"s": ["VIM", "EPCAM"]}, source="measured", key_added=name),
    }
    for call in calls.values():
        with pytest.raises(sl.DataError, match="`key_added` must be a name of letters, digits, '_', '-' and '.'"):
            call()
    assert not table.obsm.keys() - {"spatial"}


@pytest.mark.parametrize("name", BAD)
def test_sections_that_cannot_be_stored_are_refused(name):
    with pytest.raises(sl.DataError, match="`section` must be a name of letters"):
        sl.io.from_arrays(
            np.zeros((32, 32, 3), np.uint8), np.ones((2, 1)), np.array([[8, 8], [20, 20]]), genes=["A"], mpp=1.0,
            spot_um=5, section=name,
        )  # fmt: skip


def test_what_may_be_stored_is_left_as_it_is():
    for name in ("X_seal", "seal_similarity", "T-NK.2", "é", "_x"):
        check_slot(name)
    assert as_columns(["T/NK", "IL-2 (é)", "__x"], what="Labels") == ["T_NK", "IL-2 (é)", "__x"]
    with pytest.raises(sl.DataError, match=r"Labels '\.\.' cannot be columns on disk"):
        as_columns(["a", ".."], what="Labels")
