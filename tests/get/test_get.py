"""Results as tables: equal to the slots they come from, and taken by other packages as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad
from spatialdata import SpatialData

import sealst as sl

NET = {"EPITHELIAL": ["EPCAM", "KRT8", "ERBB2"], "IMMUNE": ["CD3E", "MS4A1", "ACTB"]}


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model() -> sl.models.SealModel:
    genes = ["ERBB2", "EPCAM", "CD3E", "ACTB", "KRT8", "MS4A1", "VIM/X", "COL1A1"]
    panel = sl.GenePanel(genes=genes, mean=[1.0] * 8, std=[1.0] * 8)
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    parts = {"adapter": sl.models.LoraParams(n_blocks=1), "gene_encoder": sl.models.GeneVAEParams(hidden=(8,))}
    return sl.models.SealModel(encoder, panel, crop=sl.models.CropSpec(60, 32), **parts)


@pytest.fixture
def predicted(toy_section: Callable[..., SpatialData], model: sl.models.SealModel) -> SpatialData:
    """36 spots; one without a crop."""
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=60, crop_px=32)
    table = sdata.tables["table"]
    ok = np.arange(36) != 7
    table.obs["crop_ok"] = ok
    table.obs["crop_reason"] = pd.Categorical(np.where(ok, "ok", "little tissue"))
    sl.tl.predict(sdata, model, views=1)
    sl.tl.pathways(sdata, NET, tmin=2)
    sl.tl.retrieve(sdata, model, "ERBB2", n_hits=5)
    return sdata


def test_expression_is_the_slot(predicted: SpatialData, model: sl.models.SealModel, tmp_path) -> None:
    table = predicted.tables["table"]
    made = sl.get.expression(predicted)
    slot = table.obsm["seal_expression"]
    np.testing.assert_array_equal(made.X, slot.to_numpy())
    assert made.X.dtype == np.float32
    assert np.isnan(made.X[7]).all()
    # Genes are called as in the model, also where a column of the slot cannot be.
    assert list(made.var_names) == list(model.panel.genes)
    assert "VIM_X" in slot
    pd.testing.assert_frame_equal(made.obs, table.obs)
    np.testing.assert_array_equal(made.obsm["spatial"], table.obsm["spatial"])
    np.testing.assert_array_equal(made.obsm["X_seal"], table.obsm["X_seal"])
    assert "seal_expression" not in made.obsm
    assert made.uns["sealst"]["predict"]["seal_expression"]["model"] == model.fingerprint
    assert made.uns["sealst"]["get"] == {"slot": "seal_expression"}
    # A table of its own: nothing is shared, and it can be stored.
    made.X[0, 0] = -1
    made.obs["mine"] = 1
    made.obsm["X_seal"][0] = 0
    assert slot.iloc[0, 0] != -1
    assert "mine" not in table.obs
    assert table.obsm["X_seal"][0].any()
    assert "get" not in table.uns["sealst"]
    made.write_h5ad(tmp_path / "p.h5ad")
    back = read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_array_equal(back.X, made.X)
    # Of the table alone as of the section, and under another name.
    np.testing.assert_array_equal(sl.get.expression(table).X, slot.to_numpy())
    sl.tl.predict(predicted, model, genes=["CD3E", "ERBB2"], key_added="two")
    two = sl.get.expression(predicted, key="two")
    assert list(two.var_names) == ["CD3E", "ERBB2"]
    np.testing.assert_array_equal(two.X, table.obsm["two"].to_numpy())


def test_pathways_are_the_slot(predicted: SpatialData) -> None:
    table = predicted.tables["table"]
    made = sl.get.pathways(predicted)
    np.testing.assert_array_equal(made.X, table.obsm["seal_pathways"].to_numpy())
    assert list(made.var_names) == list(table.obsm["seal_pathways"].columns)
    np.testing.assert_array_equal(made.layers["padj"], table.obsm["seal_pathways_padj"].to_numpy())
    assert made.var["size"].tolist() == [3, 3]
    assert made.var["found"].tolist() == [3, 3]
    assert made.uns["sealst"]["pathways"]["seal_pathways"]["method"] == "ulm"


def test_hits_are_what_was_recorded(predicted: SpatialData, model: sl.models.SealModel) -> None:
    table = predicted.tables["table"]
    hits = sl.get.hits(predicted)
    entry = table.uns["sealst"]["retrieve"]["seal_similarity"]
    assert hits["obs_name"].tolist() == list(entry["hits"])
    np.testing.assert_array_equal(hits["similarity"], entry["similarities"])
    np.testing.assert_array_equal(hits["similarity"], table.obs.loc[hits["obs_name"], "seal_similarity"])
    np.testing.assert_array_equal(hits["rank"], [1, 2, 3, 4, 5])
    assert hits.loc[0, ["section", "patient", "organ", "technology", "query"]].tolist() == [
        *("toy", "p1", "breast", "toy", "ERBB2")
    ]
    np.testing.assert_allclose(hits[["x_um", "y_um"]], table[hits["obs_name"]].obsm["spatial"], atol=1)
    # The columns of an index's hits.
    sl.tl.retrieve(predicted, model, "CD3E", key_added="other")
    assert sl.get.hits(predicted, key="other")["query"].unique().tolist() == ["CD3E"]


def test_the_columns_are_those_of_an_index(predicted: SpatialData, model: sl.models.SealModel, tmp_path) -> None:
    index = sl.tl.build_index([predicted], tmp_path / "index", model=model)
    of_index = sl.tl.retrieve(index, model, "ERBB2", n_hits=5)
    assert set(sl.get.hits(predicted).columns) == set(of_index.columns)
    assert sl.get.hits(predicted)["obs_name"].tolist() == of_index["obs_name"].tolist()


def test_a_region_is_a_table_of_its_own(predicted: SpatialData, toy_section, model: sl.models.SealModel) -> None:
    from spatialdata import concatenate
    from spatialdata.models import TableModel

    other = toy_section(section="other", patient="p2", seed=1)
    sl.pp.pair_crops(other, crop_um=60, crop_px=32)
    sl.tl.predict(other, model, views=1)
    both = concatenate([predicted, other], concatenate_tables=True)
    both.tables["table"].uns["spatial"] = {
        name: one.tables["table"].uns["spatial"][name] for name, one in (("toy", predicted), ("other", other))
    }
    everything, one = sl.get.expression(both), sl.get.expression(both, region="other_spots")
    assert everything.n_obs == 72
    np.testing.assert_array_equal(one.X, other.tables["table"].obsm["seal_expression"].to_numpy())
    assert one.uns["spatialdata_attrs"]["region"] == "other_spots"
    assert set(one.uns["spatial"]) == {"other"}
    TableModel().validate(one)
    # Beside the section it came from, so that spatialdata-plot colours by it.
    both.tables["predicted"] = one
    with pytest.raises(sl.MissingKeyError, match="'third' not found in the table's regions"):
        sl.get.expression(both, region="third")


def test_what_is_not_there_is_named_with_the_call_that_makes_it(toy_section) -> None:
    sdata = toy_section()
    with pytest.raises(sl.OrderError, match=r"'seal_expression' not found.*Run `sl.tl.predict\(sdata, model\)` first"):
        sl.get.expression(sdata)
    with pytest.raises(sl.OrderError, match=r"Run `sl.tl.pathways\(sdata, net\)` first"):
        sl.get.pathways(sdata)
    with pytest.raises(sl.OrderError, match=r"No hits are recorded for 'seal_similarity'.*found: none"):
        sl.get.hits(sdata)
    sdata.tables["table"].obsm["seal_expression"] = np.zeros((36, 2))
    with pytest.raises(sl.DataError, match="must be a DataFrame with named columns, found ndarray"):
        sl.get.expression(sdata)


# -- other packages ---------------------------------------------------------------------------------------------------
def coloured(ax: plt.Axes) -> np.ndarray:
    """Values that the spots of a plot are coloured by."""
    (values,) = [c.get_array() for c in ax.collections if c.get_array() is not None and len(c.get_array()) >= 35]
    return np.sort(np.ma.compressed(np.ma.masked_invalid(values)).astype(float))


def test_scanpy_draws_what_was_predicted(predicted: SpatialData) -> None:
    import scanpy as sc

    wanted = np.sort(predicted.tables["table"].obsm["seal_expression"]["ERBB2"].dropna().to_numpy(float))
    made = sl.get.expression(predicted)
    sc.pl.embedding(made, basis="spatial", color="ERBB2", show=False)
    np.testing.assert_allclose(coloured(plt.gcf().axes[0]), wanted)
    plt.close("all")
    sc.pl.spatial(made, color="ERBB2", show=False)
    np.testing.assert_allclose(coloured(plt.gcf().axes[0]), wanted)
    assert plt.gcf().axes[0].images
    plt.close("all")
    scores = sl.get.pathways(predicted)
    sc.pl.embedding(scores, basis="spatial", color="IMMUNE", show=False)
    wanted = np.sort(predicted.tables["table"].obsm["seal_pathways"]["IMMUNE"].dropna().to_numpy())
    np.testing.assert_allclose(coloured(plt.gcf().axes[0]), wanted)


def test_squidpy_draws_what_was_predicted(predicted: SpatialData) -> None:
    import squidpy as sq

    made = sl.get.expression(predicted)
    wanted = np.sort(predicted.tables["table"].obsm["seal_expression"]["ERBB2"].dropna().to_numpy(float))
    sq.pl.spatial_scatter(made, color="ERBB2", library_id="toy", library_key=None)
    np.testing.assert_allclose(coloured(plt.gcf().axes[0]), wanted)


def test_spatialdata_plot_takes_it_as_a_further_table(predicted: SpatialData, tmp_path) -> None:
    pytest.importorskip("spatialdata_plot")
    predicted.tables["predicted"] = sl.get.expression(predicted)
    shown = predicted.pl.render_shapes("toy_spots", color="ERBB2", table_name="predicted", cmap="viridis")
    shown.pl.show(coordinate_systems="global", save=str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_decoupler_scores_what_was_predicted(predicted: SpatialData) -> None:
    import decoupler as dc

    made = sl.get.expression(predicted)
    made = made[made.obs["crop_ok"]].copy()
    net = pd.DataFrame([(s, g, 1.0) for s, genes in NET.items() for g in genes], columns=["source", "target", "weight"])
    dc.mt.ulm(made, net, tmin=2)
    ours = predicted.tables["table"].obsm["seal_pathways"].loc[made.obs_names]
    np.testing.assert_allclose(made.obsm["score_ulm"][list(ours)], ours, rtol=1e-5)
