"""Maps of patch tokens, embeddings of cells, and expression finer than spots."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
import zarr
from anndata import AnnData
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import sealst as sl
from sealst._data.crops.reader import read_crops
from sealst.models._local import LocalHead

RADIUS = 9.0


@pytest.fixture
def encoder():
    return sl.models.build_encoder("sealst-tiny")


@pytest.fixture(scope="module")
def _section():
    return [
        sl.datasets.synthetic(size_um=500, mpp=0.5, seed=1, n_genes=160, cells=True),
        sl.datasets.synthetic(2, size_um=700, mpp=0.5, seed=2, n_genes=160)[1],
    ]


@pytest.fixture
def section(_section):
    """A section of 1,000 x 1,000 px with crops of 7 x 7 tokens; tokens are 32 px wide."""
    sdata = spatialdata.deepcopy(_section[0])
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=112)
    return sdata


@pytest.fixture(scope="module")
def _learned(_section):
    made = []

    def model():
        if not made:
            sections = [spatialdata.deepcopy(one) for one in _section]
            for one in sections:
                sl.pp.pair_crops(one, crop_um=112, crop_px=112)
                sl.pp.normalize(one)
            made.append(
                sl.tl.finetune(
                    sections, encoder="sealst-tiny", n_genes=160, params={"epochs": 1, "batch_size": 16}, seed=0,
                    gene_encoder={"hidden": (16,)},
                )
            )  # fmt: skip
            sl.tl.fit_local(sections, made[0], seed=0)
        return made[0]

    return model


@pytest.fixture
def learned(_learned):
    """A model that knows single patches."""
    return _learned()


def places(n=60, seed=0):
    """Places at random, that are too far from each other for cells to touch."""
    rng = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(np.arange(30, 980, 40), np.arange(30, 980, 40)), -1).reshape(-1, 2)
    return rng.permutation(every)[:n] + rng.uniform(-10, 10, (n, 2))


def add(sdata, kind, xy, transformation=None):
    """Cells of a radius about points, as an element of a kind; its name."""
    system = {"global": transformation or Identity()}
    if kind == "polygons":
        frame = gpd.GeoDataFrame(geometry=shapely.buffer(shapely.points(xy), RADIUS, quad_segs=16))
        sdata.shapes["cells"] = ShapesModel.parse(frame, transformations=system)
    elif kind == "circles":
        sdata.shapes["cells"] = ShapesModel.parse(xy, geometry=0, radius=RADIUS, transformations=system)
    elif kind == "points":
        sdata.points["cells"] = PointsModel.parse(pd.DataFrame(xy, columns=["x", "y"]), transformations=system)
    else:
        y, x = np.mgrid[:1000, :1000] + 0.5
        labels = np.zeros((1000, 1000), dtype=np.int32)
        for i, (cx, cy) in enumerate(xy):
            labels[np.hypot(x - cx, y - cy) <= RADIUS] = i + 1
        sdata.labels["cells"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=system)
    return "cells"


# -- tokens -----------------------------------------------------------------------------------------------------------
def test_patch_tokens_are_what_the_embedding_is_the_mean_of(encoder):
    crops = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    tokens = encoder.patch_tokens(crops)
    assert tokens.shape == (3, 7, 7, 128)
    # Pooled by class token and mean.
    np.testing.assert_allclose(tokens.mean(axis=(1, 2)), encoder.embed(crops)[:, 128:], atol=1e-4)


def test_patch_tokens_over_views_belong_to_their_patches(encoder):
    crops = np.random.default_rng(0).integers(0, 255, (1, 112, 112, 3), dtype=np.uint8)
    every = encoder.patch_tokens(crops, views=8)
    turned = encoder.patch_tokens(np.ascontiguousarray(np.rot90(crops, axes=(1, 2))), views=8)
    np.testing.assert_allclose(np.rot90(every, axes=(1, 2)), turned, atol=1e-4)


def test_a_map_without_overlap_holds_the_tokens_of_its_crops(section, encoder):
    sl.tl.token_map(section, encoder, overlap=0)
    found = section.images["P1_S1_he_tokens"]
    assert found.dtype == np.float16
    assert found.shape == (128, 32, 32)
    levels = [section.images["P1_S1_he"][f"scale{i}"]["image"] for i in (0, 1)]
    crops = read_crops(levels, np.array([[224, 448, 448, 672]]), 112)
    own = np.moveaxis(np.asarray(found[:, 14:21, 7:14], dtype=np.float32), 0, 2)
    np.testing.assert_allclose(own, encoder.patch_tokens(crops)[0], atol=2e-2)


def test_a_map_lies_on_the_picture(section, encoder):
    sl.tl.token_map(section, encoder)
    for system in ("global", "um"):
        to = get_transformation(section.images["P1_S1_he_tokens"], to_coordinate_system=system)
        picture = get_transformation(section.images["P1_S1_he"], to_coordinate_system=system)
        axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
        wanted = picture.to_affine_matrix(**axes) @ np.diag([32.0, 32.0, 1.0])
        np.testing.assert_allclose(to.to_affine_matrix(**axes), wanted)


def test_a_map_on_disk_equals_the_one_in_memory_and_goes_on_where_it_was_cut_off(section, encoder, tmp_path):
    sl.tl.token_map(section, encoder)
    wanted = np.asarray(section.images["P1_S1_he_tokens"])
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr", key_added="disk")
    np.testing.assert_array_equal(np.asarray(section.images["disk"]), wanted)
    array = zarr.open_array(tmp_path / "map.zarr", mode="r+")
    array[:, 12:] = 7
    array.attrs["rows"] = 12
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr", key_added="disk")
    np.testing.assert_array_equal(np.asarray(section.images["disk"]), wanted)


def test_a_map_that_was_cut_off_where_glass_begins_is_finished(section, encoder, tmp_path):
    labels = np.zeros((50, 50), dtype=np.uint8)
    labels[:10] = 1
    section.labels["P1_S1_tissue"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"global": Scale([20.0, 20.0], axes=("x", "y"))}
    )
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr")
    array = zarr.open_array(tmp_path / "map.zarr", mode="r+")
    wanted, array.attrs["rows"] = array[:], 24
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr")
    assert zarr.open_array(tmp_path / "map.zarr", mode="r").attrs["rows"] == 32
    np.testing.assert_array_equal(array[:], wanted)


def test_pictures_are_not_replaced_by_maps(section, encoder, learned):
    with pytest.raises(sl.DataError, match="is a picture"):
        sl.tl.token_map(section, encoder, key_added="P1_S1_he")
    with pytest.raises(sl.DataError, match="is a picture"):
        sl.tl.predict(section, learned, genes=["ERBB2"], resolution_um=20, key_added="P1_S1_he")
    assert section.images["P1_S1_he"]["scale0"]["image"].dtype == np.uint8


def test_a_store_of_something_else_is_no_map(section, encoder, tmp_path):
    zarr.create_group(tmp_path / "section.zarr")
    with pytest.raises(sl.DataError, match="holds no map"):
        sl.tl.token_map(section, encoder, tmp_path / "section.zarr", overwrite=True)
    assert isinstance(zarr.open(tmp_path / "section.zarr", mode="r"), zarr.Group)


def test_a_finished_map_is_not_read_again(section, encoder, tmp_path, monkeypatch):
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr")
    monkeypatch.setattr(sl.models.Encoder, "patch_tokens", None)
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr")


def test_another_map_is_not_overwritten_unless_asked(section, encoder, tmp_path):
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr")
    with pytest.raises(sl.DataError, match="overlap"):
        sl.tl.token_map(section, encoder, tmp_path / "map.zarr", overlap=0.5)
    sl.tl.token_map(section, encoder, tmp_path / "map.zarr", overlap=0.5, overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(sl.DataError, match="mine"):
        sl.tl.token_map(section, encoder, tmp_path / "mine", overwrite=True)


def test_tokens_are_read_on_tissue_alone(section, encoder):
    labels = np.zeros((50, 50), dtype=np.uint8)
    labels[:10, :10] = 1
    section.labels["P1_S1_tissue"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"global": Scale([20.0, 20.0], axes=("x", "y"))}
    )
    sl.tl.token_map(section, encoder)
    read = np.asarray(section.images["P1_S1_he_tokens"]).any(axis=0)
    assert read[:6, :6].all()
    assert not read[14:].any()
    assert not read[:, 14:].any()


def test_a_network_without_tokens_is_refused(section):
    with pytest.raises(sl.DataError, match="no patch tokens"):
        sl.tl.token_map(section, "resnet18", pretrained=False)


@pytest.mark.parametrize("overlap", [-0.1, 0.9, "half", True])
def test_a_share_that_is_none_is_refused(section, encoder, overlap):
    with pytest.raises(sl.DataError, match="overlap"):
        sl.tl.token_map(section, encoder, overlap=overlap)


# -- cells ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["polygons", "circles", "points", "labels"])
def test_cells_of_every_kind_are_embedded(section, encoder, kind):
    xy = places()
    at = add(section, kind, xy)
    sl.tl.embed(section, encoder, at=at)
    table = section.tables["cells_table"]
    z = table.obsm["X_seal"]
    assert z.shape == (60, 256)
    assert np.isfinite(z).all()
    first = 1 if kind == "labels" else 0
    assert table.obs["instance_id"].tolist() == list(range(first, 60 + first))
    np.testing.assert_allclose(table.obsm["spatial"], xy, atol=0.6)
    entry = table.uns["sealst"]["embed"]["X_seal"]
    assert (entry["modality"], entry["at"], entry["token_um"]) == ("cells", "cells", 16)
    # SpatialData knows what the table annotates.
    assert spatialdata.get_values("section", sdata=section, element_name=at, table_name="cells_table").size == 60


def test_kinds_of_elements_agree(section, encoder):
    found = {}
    for kind in ("polygons", "circles", "labels"):
        add(section, kind, places(20))
        sl.tl.embed(section, encoder, at="cells")
        found[kind] = section.tables["cells_table"].obsm["X_seal"]
        del section.tables["cells_table"], section["cells"]
    np.testing.assert_allclose(found["polygons"], found["circles"], atol=0.02)
    # Pixels are counted whole.
    assert np.corrcoef(found["polygons"].ravel(), found["labels"].ravel())[0, 1] > 0.999


def test_labels_cover_their_pixels_whole(section, encoder):
    labels = np.zeros((1000, 1000), dtype=np.int32)
    labels[320:352, 96:128] = 5
    section.labels["cells"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"global": Identity()})
    sl.tl.embed(section, encoder, at="cells")
    sl.tl.token_map(section, encoder, overlap=0.5)
    table = section.tables["cells_table"]
    assert table.obsm["spatial"].tolist() == [[112, 336]]
    # Just one token.
    token = np.asarray(section.images["P1_S1_he_tokens"][:, 10, 3], dtype=np.float32)
    np.testing.assert_allclose(table.obsm["X_seal"][0, :128], token, atol=2e-2)


def test_a_cell_is_the_mean_of_the_tokens_under_it(section, encoder):
    # Half on one token, half on the next.
    square = shapely.box(96 - 8, 320 + 4, 96 + 8, 320 + 20)
    section.shapes["cells"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[square, shapely.box(970, 970, 980, 980)]), transformations={"global": Identity()}
    )
    sl.tl.embed(section, encoder, at="cells", surroundings_um=20)
    sl.tl.token_map(section, encoder, overlap=0.5)
    tokens = np.asarray(section.images["P1_S1_he_tokens"], dtype=np.float32)
    wanted = (tokens[:, 10, 2] + tokens[:, 10, 3]) / 2
    np.testing.assert_allclose(section.tables["cells_table"].obsm["X_seal"][0, :128], wanted, atol=2e-2)


def test_cells_in_a_frame_of_their_own(section, encoder):
    """In µm and turned, as segmentations are stored beside a picture."""
    add(section, "polygons", places())
    sl.tl.embed(section, encoder, at="cells")
    wanted = section.tables["cells_table"].obsm["X_seal"]
    turned = section.shapes["cells"].affine_transform([0, 0.5, -0.5, 0, 10, 20])
    back = np.linalg.inv(np.array([[0, 0.5, 10], [-0.5, 0, 20], [0, 0, 1.0]]))
    section.shapes["other"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=turned),
        transformations={"global": Affine(back, input_axes=("x", "y"), output_axes=("x", "y"))},
    )
    sl.tl.embed(section, encoder, at="other")
    np.testing.assert_allclose(section.tables["other_table"].obsm["X_seal"], wanted, atol=1e-2)


def test_cells_that_a_table_annotates_are_written_there(section, encoder):
    sl.tl.embed(section, encoder, at="P1_S1_spots", key_added="X_cells")
    table = section.tables["table"]
    assert table.obsm["X_cells"].shape == (table.n_obs, 256)
    assert np.isfinite(table.obsm["X_cells"]).all()
    assert "P1_S1_spots_table" not in section.tables


def test_cells_beside_the_picture_are_nan(section, encoder):
    add(section, "polygons", np.array([[500.0, 500.0], [5000.0, 5000.0], [-300.0, 20.0]]))
    sl.tl.embed(section, encoder, at="cells")
    z = section.tables["cells_table"].obsm["X_seal"]
    assert np.isfinite(z[0]).all()
    assert np.isnan(z[1:]).all()


def test_a_copy_leaves_the_section_as_it_was(section, encoder):
    add(section, "circles", places())
    found = sl.tl.embed(section, encoder, at="cells", copy=True)
    assert "cells_table" not in section.tables
    assert "cells_table" in found.tables


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"at": "nuclei"}, "no element of cells"),
        ({"at": "cells", "modality": "gene"}, "modality"),
        ({"at": "far"}, "lies on image"),
        ({"at": "cells", "surroundings_um": 0}, "surroundings_um"),
    ],
)
def test_bad_requests_for_cells(section, encoder, how, message):
    add(section, "circles", places())
    section.shapes["far"] = ShapesModel.parse(
        places() + 9000, geometry=0, radius=5, transformations={"global": Identity()}
    )
    with pytest.raises(sl.SealstError, match=message):
        sl.tl.embed(section, encoder, **how)
    assert list(section.tables) == ["table"]


# -- expression -------------------------------------------------------------------------------------------------------
def test_maps_of_expression(section, learned):
    genes = ["ERBB2", "COL1A1", "HID1_01"]
    sl.tl.predict(section, learned, genes=genes, resolution_um=20)
    found = section.images["P1_S1_he_expression"]
    assert found.shape == (3, 25, 25)
    assert found.dtype == np.float32
    assert found.coords["c"].values.tolist() == genes
    assert (np.asarray(found) >= 0).all()
    to = get_transformation(found, to_coordinate_system="um")
    scale = to.to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))
    np.testing.assert_allclose(scale, np.diag([20.0, 20.0, 1.0]))


def test_maps_can_be_drawn_by_spatialdata_plot(section, learned, tmp_path):
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401

    labels = np.zeros((50, 50), dtype=np.uint8)
    labels[:25] = 1
    section.labels["P1_S1_tissue"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"global": Scale([20.0, 20.0], axes=("x", "y"))}
    )
    sl.tl.predict(section, learned, genes=["ERBB2", "COL1A1"], resolution_um=20)
    values = np.asarray(section.images["P1_S1_he_expression"])
    # Tissue ends in the middle, at 12.5 bins.
    assert (values[:, :12] > 0).all()
    assert (values[:, 14:] == 0).all()
    figure, axes = plt.subplots()
    section.pl.render_images("P1_S1_he_expression", channel="ERBB2").pl.show(ax=axes, coordinate_systems="um")
    assert axes.get_xlim() == pytest.approx((0, 500), abs=1)
    assert len(axes.get_images()) == 1
    plt.close(figure)


def test_maps_under_spots_are_what_is_said_of_spots(section, learned):
    gene = "COL1A1"
    sl.tl.predict(section, learned, genes=[gene], resolution_um=16)
    sl.tl.predict(section, learned, genes=[gene], at="P1_S1_spots", key_added="local")
    table = section.tables["table"]
    values = np.expm1(np.asarray(section.images["P1_S1_he_expression"][0], dtype=float))
    centre = (np.arange(len(values)) + 0.5) * 32
    x, y = np.meshgrid(centre, centre)
    under = [np.hypot(x - cx, y - cy) <= 55 for cx, cy in table.obsm["spatial"]]
    summed = np.log1p([values[one].mean() for one in under])
    assert np.corrcoef(summed, table.obsm["local"][gene])[0, 1] > 0.98


def test_bins_of_one_token_hold_what_it_has(section, learned, monkeypatch):
    monkeypatch.setattr("sealst.tl._fine.maps.SMOOTH_OVERLAP", 0.0)
    sl.tl.token_map(section, learned, overlap=0)
    sl.tl.predict(section, learned, genes=["ERBB2"], resolution_um=16)
    tokens = np.moveaxis(np.asarray(section.images["P1_S1_he_tokens"], dtype=np.float32), 0, 2)
    wanted = np.log1p(learned.local.counts(tokens, np.array([learned.panel.genes.index("ERBB2")])))[..., 0]
    found = np.asarray(section.images["P1_S1_he_expression"][0])
    # Tokens were rounded to float16. Bins end with the picture, the last ones within a token.
    np.testing.assert_allclose(found, wanted, atol=0.02)


def test_expression_of_cells(section, learned):
    add(section, "polygons", places())
    sl.tl.predict(section, learned, genes=["ERBB2", "COL1A1"], at="cells")
    table = section.tables["cells_table"]
    frame = table.obsm["seal_expression"]
    assert list(frame) == ["ERBB2", "COL1A1"]
    assert np.isfinite(frame.to_numpy()).all()
    entry = table.uns["sealst"]["predict"]["seal_expression"]
    assert (entry["readout"], entry["at"], entry["unit"]) == ("local", "cells", "log1p-CP10k")


def test_elements_of_one_table_keep_what_is_theirs(section, learned):
    """Two elements that one table annotates; other genes of the second say nothing of the first."""
    for name, seed in (("left", 1), ("right", 2)):
        section.shapes[name] = ShapesModel.parse(
            places(10, seed), geometry=0, radius=5, transformations={"global": Identity()}
        )
    obs = pd.DataFrame({"region": pd.Categorical(["left"] * 10 + ["right"] * 10), "id": [*range(10), *range(10)]})
    section.tables["both"] = TableModel.parse(
        AnnData(obs=obs.rename(index=str)), region=["left", "right"], region_key="region", instance_key="id"
    )
    table = section.tables["both"]
    sl.tl.predict(section, learned, genes=["ERBB2", "COL1A1"], at="left")
    first = table.obsm["seal_expression"].copy()
    sl.tl.predict(section, learned, genes=["ERBB2", "COL1A1"], at="right")
    both = table.obsm["seal_expression"]
    pd.testing.assert_frame_equal(both[:10], first[:10])
    assert np.isfinite(both.to_numpy()).all()
    sl.tl.predict(section, learned, genes=["MS4A1", "CD3E"], at="right")
    other = table.obsm["seal_expression"]
    assert list(other) == ["MS4A1", "CD3E"]
    assert other[:10].isna().all(axis=None)


def test_cells_go_through_a_store(section, learned, tmp_path):
    add(section, "polygons", places())
    sl.tl.embed(section, learned, at="cells")
    sl.tl.predict(section, learned, genes=["ERBB2"], at="cells")
    sl.tl.predict(section, learned, genes=["ERBB2"], resolution_um=25)
    section.write(tmp_path / "s.zarr")
    found = spatialdata.read_zarr(tmp_path / "s.zarr")
    assert found.images["P1_S1_he_expression"].coords["c"].values.tolist() == ["ERBB2"]
    pd.testing.assert_frame_equal(
        found.tables["cells_table"].obsm["seal_expression"], section.tables["cells_table"].obsm["seal_expression"]
    )


def test_what_is_learned_travels_with_the_model(section, learned, tmp_path):
    learned.save(tmp_path / "model")
    assert "Expression of single patches" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    again = sl.models.load(tmp_path / "model")
    np.testing.assert_array_equal(again.local.weight, learned.local.weight)
    assert "local:" in repr(again)
    assert again.fingerprint == learned.fingerprint


@pytest.fixture
def held_out():
    """Sections of two patients that the model has not seen."""
    found = sl.datasets.synthetic(2, size_um=900, mpp=0.5, seed=5, n_genes=160)
    for number, sdata in enumerate(found, start=8):
        sdata.tables["table"].obs["patient"] = f"P{number}"
        sl.pp.pair_crops(sdata, crop_um=112, crop_px=112)
        sl.pp.normalize(sdata)
    return found


@pytest.fixture
def training(_section):
    """The sections that the model was trained on."""
    sections = [spatialdata.deepcopy(one) for one in _section]
    for one in sections:
        sl.pp.pair_crops(one, crop_um=112, crop_px=112)
        sl.pp.normalize(one)
    return sections


@pytest.fixture
def trusted(learned, training, held_out, monkeypatch):
    """The same model, whose local head was scored on patients that nothing has seen."""
    monkeypatch.setattr(learned, "local", learned.local)
    sl.tl.fit_local(training, learned, held_out=held_out, seed=0)
    return learned


def test_the_local_head_knows_how_well_it_predicts_unseen_patients(trusted, held_out):
    known = trusted.local.reliability
    assert known.patients == ("P8", "P9")
    assert known.held_out == "patients"
    assert known.model == trusted.local.digest
    # What is predicted of the spots of these patients, as cells, agrees with what was measured as the table says.
    found = []
    for sdata in held_out:
        table = sdata.tables["table"]
        (region,) = sl._section.regions_of(table)
        sl.tl.predict(sdata, trusted, at=region.name, key_added="fine")
        predicted = table.obsm["fine"].loc[table.obs["crop_ok"]]
        measured = table.to_df("lognorm").loc[predicted.index]
        found.append(predicted.corrwith(measured).rename(str.upper))
    mean = pd.concat(found, axis=1).mean(axis=1)
    genes = known.genes["pearson"].rename(str.upper)
    shared = [gene for gene in genes.index if gene in mean.index]
    assert len(shared) > 100
    assert np.corrcoef(genes[shared], mean[shared])[0, 1] > 0.95
    assert known.of(["KRT8"])["better_than_chance"].all()


def test_the_local_head_knows_what_single_spots_of_unseen_patients_allow(trusted, training, held_out, monkeypatch):
    genes = trusted.local.reliability.genes
    assert genes["ceiling"].between(0, 1).all()
    # Counts are deeper than the correlations that are reached; the same table as of a readout says so.
    assert (genes["ceiling"] >= genes["pearson"]).mean() > 0.9
    known = genes["explained"].notna()
    assert known.any()
    np.testing.assert_allclose(genes["explained"][known], (genes["pearson"] / genes["ceiling"])[known])
    monkeypatch.setattr(trusted, "local", trusted.local)
    for one in held_out:
        del one.tables["table"].layers["counts"]
    sl.tl.fit_local(training, trusted, held_out=held_out, seed=0)
    again = trusted.local.reliability.genes
    assert again["ceiling"].isna().all()
    pd.testing.assert_series_equal(again["pearson"], genes["pearson"])


@pytest.mark.parametrize("n", [0, 1, 9])
def test_a_held_out_section_without_spots_is_not_scored(learned, training, held_out, monkeypatch, n):
    monkeypatch.setattr(learned, "local", learned.local)
    obs = held_out[1].tables["table"].obs
    obs["crop_ok"] = obs["crop_ok"] & (np.arange(len(obs)) < n)
    with pytest.warns(sl.SealstWarning, match=rf"has {n} spot\(s\) with a usable crop"):
        sl.tl.fit_local(training, learned, held_out=held_out, seed=0)
    assert learned.local.reliability.patients == ("P8",)
    with pytest.warns(sl.SealstWarning, match="not scored"):
        sl.tl.fit_local(training, learned, held_out=held_out[1], seed=0)
    assert learned.local.reliability is None


def test_results_of_the_local_head_carry_its_reliability_and_no_others(section, trusted, monkeypatch):
    of_spots = object()
    monkeypatch.setattr(trusted, "reliability", of_spots)
    sl.tl.predict(section, trusted, at="P1_S1_nuclei", genes=["KRT8", "CD3E"])
    carried = sl._section.recorded(section.tables["P1_S1_nuclei_table"], "predict")["seal_expression"]["reliability"]
    expected = trusted.local.reliability.of(["KRT8", "CD3E"])["pearson"]
    np.testing.assert_allclose(carried["pearson"], expected)
    assert carried["readout"] == "local"


@pytest.mark.parametrize("has_table", [True, False])
def test_maps_carry_the_reliability_of_the_local_head_through_a_store(section, trusted, tmp_path, has_table):
    genes = ["KRT8", "CD3E"]
    if not has_table:
        del section.tables["table"]
    sl.tl.predict(section, trusted, genes=genes, resolution_um=32)
    path = tmp_path / "s1.zarr"
    section.write(path)
    if has_table:
        # What a collection saves of a section is enough.
        opened = sl.io.read_collection(tmp_path)
        sl.tl.predict(opened[0], trusted, genes=genes[::-1], resolution_um=32)
        opened.save(opened[0])
        genes = genes[::-1]
    again = sl.io.read(path)
    kept = again.tables["table"].uns["sealst"] if has_table else again.attrs["P1_S1_he_expression"]
    entry = kept["maps"] if not has_table else kept["maps"]["P1_S1_he_expression"]
    expected = trusted.local.reliability.of(genes)
    np.testing.assert_allclose(entry["reliability"]["pearson"], expected["pearson"])
    assert list(entry["reliability"]["better_than_chance"]) == list(expected["better_than_chance"])
    assert (entry["readout"], entry["resolution_um"]) == ("local", 32)
    assert list(again.images["P1_S1_he_expression"].coords["c"].values) == genes


def test_maps_of_a_head_without_held_out_patients_say_unknown(section, learned, monkeypatch):
    monkeypatch.setattr(learned, "reliability", object())
    sl.tl.predict(section, learned, genes=["KRT8"], resolution_um=32, key_added="fine")
    assert section.tables["table"].uns["sealst"]["maps"]["fine"]["reliability"] == "unknown"


def test_without_held_out_patients_results_of_the_local_head_say_unknown(section, learned, monkeypatch):
    monkeypatch.setattr(learned, "reliability", object())
    sl.tl.predict(section, learned, at="P1_S1_nuclei", genes=["KRT8"])
    entry = sl._section.recorded(section.tables["P1_S1_nuclei_table"], "predict")["seal_expression"]
    assert entry["reliability"] == "unknown"
    with pytest.raises(sl.DataError, match="held_out"):
        sl.tl.predict(section, learned, at="P1_S1_nuclei", min_reliability=0.1)


def test_genes_of_maps_are_chosen_by_the_reliability_of_the_local_head(section, trusted):
    known = trusted.local.reliability.genes["pearson"]
    genes = [known.idxmax(), known.idxmin()]
    least = float(known.mean())
    sl.tl.predict(section, trusted, genes=genes, resolution_um=32, min_reliability=least)
    element = section.images["P1_S1_he_expression"]
    assert list(element.coords["c"].values) == genes[:1]


def test_the_reliability_of_the_local_head_is_saved_with_it(trusted, tmp_path):
    folder = trusted.save(tmp_path / "model")
    again = sl.models.load(folder)
    pd.testing.assert_frame_equal(again.local.reliability.table, trusted.local.reliability.table)
    stated = (folder / "local_reliability.tsv").read_text(encoding="utf-8")
    (folder / "local_reliability.tsv").write_text(stated.replace(trusted.local.digest, "0" * 16), encoding="utf-8")
    with pytest.raises(sl.CheckpointError, match="local_reliability"):
        sl.models.load(folder)


def test_patients_that_were_trained_on_are_not_held_out(training, learned, held_out):
    before = learned.local
    with pytest.raises(sl.LeakError, match="P2"):
        sl.tl.fit_local(training[:1], learned, held_out=[held_out[0], training[1]])
    assert learned.local is before


def test_training_sections_are_not_held_out_under_other_names(training, learned, held_out):
    before, twin = learned.local, training[1]
    twin = spatialdata.deepcopy(twin)
    twin.tables["table"].obs["patient"] = "P7"
    twin.tables["table"].obs["section"] = "another"
    with pytest.raises(sl.LeakError, match="whatever their patients are called"):
        sl.tl.fit_local(training, learned, held_out=[held_out[0], twin])
    assert learned.local is before


@pytest.mark.parametrize("damage", ["absent", "bytes", "other"])
def test_a_damaged_local_head_is_refused(learned, tmp_path, damage):
    path = learned.save(tmp_path / "model") / "local.safetensors"
    if damage == "absent":
        path.unlink()
    elif damage == "bytes":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        from safetensors.torch import load_file, save_file

        parts = load_file(path)
        save_file(parts | {"bias": parts["bias"] + 1}, path)
    with pytest.raises(sl.CheckpointError, match=r"local\.safetensors"):
        sl.models.load(tmp_path / "model")


def test_a_model_that_knows_spots_alone_says_so(section, learned, monkeypatch):
    monkeypatch.setattr(learned, "local", None)
    for how in ({"resolution_um": 20}, {"at": "P1_S1_spots"}):
        with pytest.raises(sl.OrderError, match="fit_local"):
            sl.tl.predict(section, learned, genes=["ERBB2"], **how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"resolution_um": 20}, "genes"),
        ({"resolution_um": 20, "genes": ["ERBB2"], "copy": True}, "copy"),
        ({"resolution_um": 20, "genes": ["ERBB2"], "at": "cells"}, "`at`"),
        ({"resolution_um": 8, "genes": ["ERBB2"]}, "16 µm"),
        ({"resolution_um": 0, "genes": ["ERBB2"]}, "resolution_um"),
        ({"resolution_um": 20, "genes": ["ERBB2"], "intervals": 0.9}, "intervals"),
        ({"resolution_um": 20, "genes": ["ERBB2"], "readout": "ridge"}, "readout"),
        ({"at": "cells", "genes": ["NOGENE"]}, "NOGENE"),
    ],
)
def test_bad_requests_for_maps(section, learned, how, message):
    with pytest.raises(sl.SealstError, match=message):
        sl.tl.predict(section, learned, **how)
    assert list(section.images) == ["P1_S1_he"]


def test_few_spots_teach_nothing(section, learned):
    sl.pp.normalize(section)
    before = learned.local
    with pytest.raises(sl.DataError, match="at least 50"):
        sl.tl.fit_local(section, learned)
    assert learned.local is before


def test_the_same_seed_teaches_the_same(section, learned):
    big = sl.datasets.synthetic(size_um=900, mpp=0.5, seed=9, n_genes=160)
    sl.pp.pair_crops(big, crop_um=112, crop_px=112)
    sl.pp.normalize(big)
    before, found = learned.local, []
    for _ in range(2):
        sl.tl.fit_local(big, learned, epochs=2, seed=3)
        found.append(learned.local.weight)
    learned.local = before
    np.testing.assert_array_equal(*found)


# -- maps of many genes -----------------------------------------------------------------------------------------------
def test_a_map_on_disk_is_that_in_memory_and_lazy(section, learned, tmp_path):
    genes = list(learned.panel.genes[:40])
    sl.tl.predict(section, learned, genes=genes, resolution_um=22)
    wanted = np.asarray(section.images["P1_S1_he_expression"])
    sl.tl.predict(section, learned, genes=genes, resolution_um=22, path=tmp_path / "map.zarr", key_added="disk")
    found = section.images["disk"]
    assert isinstance(found.data, da.Array)
    assert found.coords["c"].values.tolist() == genes
    np.testing.assert_array_equal(np.asarray(found), wanted)
    section.write(tmp_path / "s.zarr")
    again = spatialdata.read_zarr(tmp_path / "s.zarr").images["disk"]
    np.testing.assert_array_equal(np.asarray(again.sel(c=genes[3])), wanted[3])


def test_genes_are_predicted_in_portions_of_one_pass(section, learned, monkeypatch):
    genes = list(learned.panel.genes[:11])
    sl.tl.predict(section, learned, genes=genes, resolution_um=25)
    wanted = np.asarray(section.images["P1_S1_he_expression"]).copy()
    crops, widths = [], []
    tokens, counts = sl.models.Encoder.patch_tokens, LocalHead.counts
    monkeypatch.setattr(sl.models.Encoder, "patch_tokens", lambda s, x, **k: crops.append(len(x)) or tokens(s, x, **k))
    monkeypatch.setattr(LocalHead, "counts", lambda s, x, g: widths.append(len(g)) or counts(s, x, g))
    monkeypatch.setattr("sealst.tl._fine.maps._PORTION_BYTES", 4 * 7 * 32 * 4)
    sl.tl.predict(section, learned, genes=genes, resolution_um=25)
    # Products of other widths are rounded otherwise.
    np.testing.assert_allclose(np.asarray(section.images["P1_S1_he_expression"]), wanted, atol=1e-5)
    assert sum(crops) == 100
    assert set(widths) == {4, 3}


def test_a_map_that_was_cut_off_is_gone_on_with(section, learned, tmp_path, monkeypatch):
    genes, path = list(learned.panel.genes[:5]), tmp_path / "map.zarr"
    how = {"genes": genes, "resolution_um": 22, "path": path}
    sl.tl.predict(section, learned, **how)
    wanted = np.asarray(section.images["P1_S1_he_expression"]).copy()
    array = zarr.open_array(path, mode="r+")
    assert array.attrs["rows"] == array.shape[1]
    for done in (0, 7, 12, array.shape[1] - 1):
        array[:, done:] = 7
        array.attrs["rows"] = done
        crops = []
        with monkeypatch.context() as patched:
            tokens = sl.models.Encoder.patch_tokens
            patched.setattr(
                sl.models.Encoder, "patch_tokens", lambda s, x, n=crops, f=tokens, **k: n.append(len(x)) or f(s, x, **k)
            )
            sl.tl.predict(section, learned, **how)
        np.testing.assert_allclose(np.asarray(section.images["P1_S1_he_expression"]), wanted, atol=1e-6)
        assert (sum(crops) < 100) == (done > 0)
    monkeypatch.setattr(sl.models.Encoder, "patch_tokens", None)
    sl.tl.predict(section, learned, **how)
    for other in ({"genes": genes[:4]}, {"resolution_um": 25}, {"genes": genes[::-1]}):
        with pytest.raises(sl.DataError, match="something else than this map"):
            sl.tl.predict(section, learned, **how | other)


def test_what_a_map_costs_is_said_before_it_is_paid(section, learned, tmp_path, monkeypatch, caplog):
    genes = list(learned.panel.genes)
    monkeypatch.setattr("sealst.tl._fine.maps.MAX_RAM_BYTES", 100_000)
    monkeypatch.setattr(sl.models.Encoder, "patch_tokens", None)
    with pytest.raises(sl.DataError, match="name a `path`"):
        sl.tl.predict(section, learned, genes=genes, resolution_um=20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with (
        caplog.at_level(logging.INFO, logger="sealst"),
        pytest.raises(sl.DataError, match=r"takes up to .* GiB are free"),
    ):
        sl.tl.predict(section, learned, genes=genes, resolution_um=20, path=tmp_path / "map.zarr")
    assert "25 x 25 bins of 160 genes: 100 crops through the encoder" in caplog.text
    assert not (tmp_path / "map.zarr").exists()


# -- cells: embeddings and expression of one pass ---------------------------------------------------------------------
def test_cells_are_embedded_and_predicted_of_the_same_tokens(section, learned, monkeypatch):
    add(section, "polygons", places())
    sl.tl.embed(section, learned, at="cells", surroundings_um=70)
    sl.tl.predict(section, learned, genes=["ERBB2", "COL1A1"], at="cells")
    wanted = section.tables.pop("cells_table")
    seen = []
    tokens = sl.models.Encoder.patch_tokens
    monkeypatch.setattr(sl.models.Encoder, "patch_tokens", lambda s, x, **k: seen.append(len(x)) or tokens(s, x, **k))
    sl.tl.embed(section, learned, at="cells", surroundings_um=70, copy=True)
    alone = sum(seen)
    seen.clear()
    made = sl.tl.predict(
        section, learned, genes=["ERBB2", "COL1A1"], at="cells", embedding_key="X_seal", surroundings_um=70, copy=True
    )
    assert sum(seen) == alone
    assert "cells_table" not in section.tables
    found = made.tables["cells_table"]
    np.testing.assert_allclose(found.obsm["X_seal"], wanted.obsm["X_seal"], atol=1e-5)
    np.testing.assert_allclose(found.obsm["seal_expression"], wanted.obsm["seal_expression"], atol=1e-5)
    for call in ("embed", "predict"):
        assert found.uns["sealst"][call] == wanted.uns["sealst"][call]


def test_one_region_is_named(section, learned):
    add(section, "polygons", places())
    sl.tl.predict(section, learned, genes=["ERBB2"], at="cells", region=["P1_S1_spots"])
    sl.tl.embed(section, learned, at="cells", region=["P1_S1_spots"])
    for call in (sl.tl.embed, sl.tl.predict):
        with pytest.raises(sl.DataError, match="one `region`"):
            call(section, learned, at="cells", region=["P1_S1_spots", "other"])


def test_slots_of_one_table_have_two_names(section, learned):
    with pytest.raises(sl.DataError, match="are both 'x'"):
        sl.tl.predict(section, learned, at="P1_S1_spots", key_added="x", embedding_key="x")


@pytest.mark.parametrize(
    "how",
    [
        {"path": "map.zarr"},
        {"embedding_key": "X_seal"},
        {"at": "P1_S1_spots", "path": "map.zarr"},
        {"genes": ["ERBB2"], "resolution_um": 20, "embedding_key": "X_seal"},
    ],
)
def test_what_belongs_to_maps_or_cells_alone(section, learned, how):
    with pytest.raises(sl.DataError, match=r"`path` is for maps .*`embedding_key` for cells"):
        sl.tl.predict(section, learned, **how)
