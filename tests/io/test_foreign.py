from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
from anndata import AnnData
from PIL import Image
from spatialdata.datasets import blobs
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Scale, set_transformation

import sealst as sl

GENES = ["EPCAM", "VIM", "CD3E", "ACTB"]
PITCH_PX = 50.0


def hexagonal(n=7):
    """Centres (x, y) of n x n spots on a hexagonal array."""
    row, column = (a.ravel() for a in np.divmod(np.arange(n * n), n))
    return np.column_stack([80 + PITCH_PX * (column + row % 2 / 2), 80 + PITCH_PX * np.sqrt(3) / 2 * row]), row, column


@pytest.fixture(scope="module")
def space_ranger(tmp_path_factory):
    """Smallest folder of Space Ranger that spatialdata-io reads, with a full-resolution image beside it."""
    folder = tmp_path_factory.mktemp("outs")
    (folder / "spatial").mkdir()
    xy, row, column = hexagonal()
    barcodes = [f"{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}{'ACGT'[i // 16]}-1" for i in range(len(xy))]
    rng = np.random.default_rng(0)
    counts = sp.csc_matrix(rng.poisson(5.0, (len(GENES), len(xy))).astype(np.int32))
    with h5py.File(folder / "v1_filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix.attrs["library_ids"] = np.array([b"v1"])
        for name, values in {
            "barcodes": np.array(barcodes, dtype="S"), "data": counts.data, "indices": counts.indices,
            "indptr": counts.indptr, "shape": np.array(counts.shape),
        }.items():  # fmt: skip
            matrix[name] = values
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG0000000000{i}" for i in range(len(GENES))], dtype="S")
        features["name"] = np.array(GENES, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(GENES), dtype="S")
    places = {"barcode": barcodes, "in_tissue": 1, "array_row": row, "array_col": 2 * column + row % 2}
    places |= {"pxl_row_in_fullres": xy[:, 1].round().astype(int), "pxl_col_in_fullres": xy[:, 0].round().astype(int)}
    pd.DataFrame(places).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    factors = {"spot_diameter_fullres": 27.5, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    picture = Image.fromarray(rng.integers(60, 220, (500, 520, 3), dtype=np.uint8))
    picture.save(folder / "full.png")
    for name, factor in (("hires", 0.5), ("lowres", 0.1)):
        size = (round(520 * factor), round(500 * factor))
        picture.resize(size).save(folder / "spatial" / f"tissue_{name}_image.png")
    return folder


@pytest.fixture(scope="module")
def visium(space_ranger):
    """What `spatialdata_io.visium` makes of it. Not to be changed."""
    spatialdata_io = pytest.importorskip("spatialdata_io")
    return spatialdata_io.visium(space_ranger, dataset_id="v1", fullres_image_file="full.png")


def test_the_folder_itself_is_checked_with_an_image_from_elsewhere(space_ranger):
    report = sl.io.check(space_ranger, image=space_ranger / "full.png")
    assert report.format == "visium (sl.io.read_visium)"
    assert report.ok, str(report)
    # Without it the reader takes the reduced picture of the folder, and what it warns of is in the report.
    report = sl.io.check(space_ranger)
    assert any("no full-resolution image was given" in p.text for p in report.problems), str(report)


# -- objects as they are ----------------------------------------------------------------------------------------------
def test_the_check_says_how_to_use_a_foreign_visium(visium):
    report = sl.io.check(visium)
    errors = [p.text for p in report.problems if p.level == "error"]
    assert any("Several images" in t and "`image_key='v1_full_image'`" in t for t in errors)
    assert any("Pass `coordinate_system='v1'`" in t for t in errors)
    assert any("The physical scale of image 'v1_full_image'" in t for t in errors)
    report = sl.io.check(visium, image_key="v1_full_image", coordinate_system="v1", pitch_um=100)
    assert report.ok, str(report)
    reduced = sl.io.check(visium, image_key="v1_hires_image", coordinate_system="v1", pitch_um=100)
    assert any("looks like a reduced copy" in p.text for p in reduced.problems)


def test_the_calls_work_on_a_foreign_visium(visium):
    sdata = sd.SpatialData(
        images=dict(visium.images), shapes=dict(visium.shapes), tables={"table": visium.tables["table"].copy()}
    )
    sl.pp.pair_crops(sdata, image_key="v1_full_image", coordinate_system="v1", pitch_um=100, crop_px=32)
    sl.pp.normalize(sdata)
    table = sdata.tables["table"]
    stored = table.uns["sealst"]["crops"]["v1"]
    assert stored["mpp"] == pytest.approx(100 / PITCH_PX, rel=0.02)
    assert table.obs["crop_ok"].all()
    x0, y0, x1, y1 = sdata.shapes["v1_crops"].loc[table.obs["spot_id"]].bounds.to_numpy().T
    np.testing.assert_allclose(np.column_stack([x0 + x1, y0 + y1]) / 2, table.obsm["spatial"], atol=0.5)
    sl.pp.tissue(sdata)
    assert sl.pp.select_genes([sdata], 3).sections == ("v1",)
    with pytest.raises(sl.MissingKeyError, match="patient"):
        sl.pp.split(sdata)


def circles_of_blobs(**transformations):
    """A blobs object with a single-scale H&E-like image, and a table of its own circles."""
    sdata = blobs(length=300)
    pixels = np.random.default_rng(0).integers(60, 220, (3, 300, 300), dtype=np.uint8)
    centres = np.stack(np.meshgrid(np.arange(40, 280, 55), np.arange(40, 280, 55)), -1).reshape(-1, 2).astype(float)
    n = len(centres)
    spots = ShapesModel.parse(centres, geometry=0, radius=10.0, index=np.arange(100, 100 + n))
    obs = pd.DataFrame({"region": pd.Categorical(["my_spots"] * n), "id": np.arange(100, 100 + n)})
    obs.index = [f"cell{i}" for i in range(n)]
    counts = np.random.default_rng(1).poisson(6.0, (n, len(GENES)))
    table = AnnData(counts, obs=obs.sample(frac=1, random_state=0), var=pd.DataFrame(index=GENES))
    del sdata.tables["table"]
    sdata.images["my_image"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
    sdata.shapes["my_spots"] = spots
    sdata.tables["table"] = TableModel.parse(table, region="my_spots", region_key="region", instance_key="id")
    return sdata


def test_the_calls_work_on_blobs_with_a_single_scale():
    sdata = circles_of_blobs()
    sl.pp.pair_crops(sdata, image_key="my_image", mpp=1.0, crop_um=48, crop_px=16)
    sl.pp.normalize(sdata, context=False)
    table = sdata.tables["table"]
    assert table.obs["crop_ok"].all()
    names = sdata.shapes["my_spots_crops"].index
    assert set(names) == set(table.obs["id"])
    assert sl.pp.select_genes(sdata, 3, layer="lognorm").layer == "lognorm"


# -- from_spatialdata -------------------------------------------------------------------------------------------------
def test_a_foreign_visium_becomes_a_section(visium):
    before = visium.tables["table"].copy()
    section = sl.io.from_spatialdata(
        visium, region="v1", image_key="v1_full_image", coordinate_system="v1", pitch_um=100, patient="A",
        organ="lung", technology="Visium",
    )  # fmt: skip
    assert (list(section.images), list(section.shapes)) == (["v1_he"], ["v1_spots"])
    table = section.tables["table"]
    assert table.obs["spot_id"].tolist() == before.obs_names.tolist()
    assert table.obs_names[0] == f"v1_{before.obs_names[0]}"
    assert {k: table.obs[k].iloc[0] for k in ("patient", "section", "organ", "technology")} == {
        "patient": "A", "section": "v1", "organ": "lung", "technology": "Visium"
    }  # fmt: skip
    assert table.uns["sealst"]["from_spatialdata"]["mpp_source"] == "pitch_um"
    np.testing.assert_allclose(table.obsm["spatial"], before.obsm["spatial"])
    np.testing.assert_array_equal(table.X.toarray(), before.X.toarray())
    # Without a word about keys or scale.
    sl.pp.pair_crops(section, crop_px=32)
    sl.pp.normalize(section)
    assert sl.io.check(section).ok
    # The original is as it was.
    pd.testing.assert_frame_equal(visium.tables["table"].obs, before.obs)
    assert "sealst" not in visium.tables["table"].uns


def test_pixels_are_shared_and_the_table_is_not():
    sdata = circles_of_blobs()
    pixels = sdata.images["my_image"].data
    section = sl.io.from_spatialdata(sdata, region="my_spots", image_key="my_image", mpp=0.5, section="mine")
    finest = section.images["mine_he"]["scale0"]["image"].data
    assert finest.dask.layers.keys() >= set(pixels.dask.layers.keys())
    np.testing.assert_array_equal(finest.compute(), pixels.compute())
    assert len(section.images["mine_he"].children) == 2
    section.tables["table"].X[0, 0] = 999
    assert 999 not in sdata.tables["table"].X
    # Rows keep the order of the table, shapes follow by id.
    spots = section.shapes["mine_spots"]
    ids = section.tables["table"].obs["spot_id"]
    assert spots.index.tolist() == ids.tolist()
    assert ids.iloc[0] == sdata.tables["table"].obs_names[0]
    original = sdata.shapes["my_spots"].loc[sdata.tables["table"].obs["id"]]
    np.testing.assert_allclose(spots.geometry.x, original.geometry.x)


def test_spots_are_moved_into_pixels_of_the_image():
    sdata = circles_of_blobs()
    # The image is twice as fine as the common frame and turned by 90 degrees.
    turn = Affine([[0, -0.5, 150], [0.5, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata.images["my_image"], turn)
    section = sl.io.from_spatialdata(sdata, region="my_spots", image_key="my_image", mpp=0.5, section="s")
    original = sdata.shapes["my_spots"].loc[sdata.tables["table"].obs["id"]]
    spots = section.shapes["s_spots"]
    np.testing.assert_allclose(spots["radius"], 20.0)
    # x = 150 - 0.5 v and y = 0.5 u for pixel (u, v)
    np.testing.assert_allclose(spots.geometry.x, 2 * original.geometry.y)
    np.testing.assert_allclose(spots.geometry.y, 2 * (150 - original.geometry.x))
    np.testing.assert_allclose(section.tables["table"].obsm["spatial"][:, 0], spots.geometry.x)


def test_a_section_of_sealst_comes_out_as_it_went_in(toy_section):
    sdata = toy_section()
    again = sl.io.from_spatialdata(sdata, region="toy_spots", image_key="toy_he")
    assert list(again.shapes) == ["toy_spots"]
    pd.testing.assert_frame_equal(
        again.tables["table"].obs, sdata.tables["table"].obs, check_like=True, check_dtype=False
    )
    np.testing.assert_array_equal(again.images["toy_he"]["scale1"]["image"], sdata.images["toy_he"]["scale1"]["image"])


def test_refusals_say_what_to_do(visium):
    sdata = circles_of_blobs()
    call = {"region": "my_spots", "image_key": "my_image"}
    with pytest.raises(sl.ScaleError, match=r"scale of image 'my_image' is unknown. Pass `mpp=`"):
        sl.io.from_spatialdata(sdata, **call)
    with pytest.raises(sl.ScaleError, match="1 µm per pixel by `mpp`, 1.818 by `pitch_um`"):
        sl.io.from_spatialdata(sdata, **call, mpp=1, pitch_um=100)
    with pytest.raises(sl.DataError, match="Image 'blobs_image' is float64 .*H&E must be uint8"):
        sl.io.from_spatialdata(sdata, region="my_spots", image_key="blobs_image", mpp=1)
    with pytest.raises(sl.MissingKeyError, match="'x' not found in the table's regions"):
        sl.io.from_spatialdata(sdata, region="x", image_key="my_image", mpp=1)
    with pytest.raises(sl.DataError, match="`section` must be a name of letters"):
        sl.io.from_spatialdata(sdata, **call, mpp=1, section="a b")
    with pytest.raises(sl.MissingKeyError, match="'global' not found in the element's coordinate systems; found: 'v1'"):
        sl.io.from_spatialdata(visium, region="v1", image_key="v1_full_image", mpp=1)
    set_transformation(sdata.images["my_image"], Scale([1, 2], axes=("x", "y")))
    with pytest.raises(sl.ScaleError, match="stretched unevenly"):
        sl.io.from_spatialdata(sdata, **call, mpp=1)
