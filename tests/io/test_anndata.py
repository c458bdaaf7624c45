"""An AnnData and its picture become a section: what is kept, where the scale comes from, what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from PIL import Image
from spatialdata import read_zarr

import sealst as sl

GENES = ("EPCAM", "KRT8", "VIM", "ACTB")
PITCH = 50.0


@pytest.fixture
def picture() -> np.ndarray:
    y, x = np.mgrid[:500, :520]
    rng = np.random.default_rng(0)
    blobs = 40 * np.sin(x / 60) * np.cos(y / 45) + 30 * (x > 260) + rng.integers(0, 20, (500, 520))
    return np.stack([200 + blobs / 4, 150 + blobs / 2, 180 + blobs / 3], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def adata() -> AnnData:
    """Seven by seven spots on a hexagonal array, as an analysis leaves them."""
    row, column = (a.ravel() for a in np.divmod(np.arange(49), 7))
    rng = np.random.default_rng(1)
    made = AnnData(rng.poisson(5.0, (49, 4)).astype(np.float64), var=pd.DataFrame({"n": range(4)}, index=list(GENES)))
    made.obs_names = [f"AC{i}-1" for i in range(49)]
    made.obs["region"] = pd.Categorical(["cortex", "white matter"] * 24 + ["cortex"])
    made.obs["leiden"] = pd.Categorical([str(i % 3) for i in range(49)])
    made.obsm["spatial"] = np.column_stack([80 + PITCH * (column + row % 2 / 2), 80 + PITCH * np.sqrt(0.75) * row])
    made.obsm["X_pca"] = rng.normal(size=(49, 3))
    made.layers["mine"] = np.asarray(made.X) / 2
    made.uns["leiden_colors"] = ["#111111", "#222222", "#333333"]
    return made


def with_library(adata: AnnData, picture: np.ndarray, *, factor: float = 0.5, as_float: bool = True) -> AnnData:
    """What `sc.read_visium` leaves of the pictures and scale factors."""
    small = np.asarray(Image.fromarray(picture).resize((round(520 * factor), round(500 * factor))))
    factors = {"tissue_hires_scalef": factor, "spot_diameter_fullres": 0.65 * PITCH, "fiducial_diameter_fullres": 40.0}
    images = {"hires": small / np.float32(255) if as_float else small}
    adata.uns["spatial"] = {"V1": {"images": images, "scalefactors": factors, "metadata": {"software": "x"}}}
    return adata


def test_all_that_the_table_holds_is_kept(adata: AnnData, picture: np.ndarray, tmp_path: Any) -> None:
    before = adata.copy()
    sdata = sl.io.from_anndata(adata, picture, mpp=2.0, section="s1", patient="p1")
    table = sdata.tables["table"]
    assert list(table.obs_names) == list(before.obs_names)
    assert list(table.var_names) == list(GENES)
    pd.testing.assert_frame_equal(table.obs[["region", "leiden"]], before.obs)
    pd.testing.assert_frame_equal(table.var, before.var)
    np.testing.assert_array_equal(table.X.toarray(), before.X)
    np.testing.assert_array_equal(table.layers["mine"], before.layers["mine"])
    np.testing.assert_array_equal(table.obsm["X_pca"], before.obsm["X_pca"])
    np.testing.assert_array_equal(table.obsm["spatial"], before.obsm["spatial"])
    assert list(table.uns["leiden_colors"]) == before.uns["leiden_colors"]
    assert table.obs[["section", "patient", "technology"]].iloc[0].tolist() == ["s1", "p1", "Visium"]
    # The AnnData is as it was.
    assert list(adata.obs) == list(before.obs)
    assert set(adata.uns) == set(before.uns)
    # The section works, and survives the disk.
    sl.pp.pair_crops(sdata, crop_um=100, crop_px=32)
    sl.pp.normalize(sdata)
    assert table.obs["crop_ok"].all()
    sdata.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr").tables["table"]
    assert back.obs["region"].tolist() == before.obs["region"].tolist()
    assert back.uns["sealst"]["from_anndata"]["mpp"] == 2.0


def test_it_is_what_the_reader_of_visium_makes(visium: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = sc.read_visium(visium.outs)
    adata.var_names_make_unique()
    theirs = sl.io.read_visium(visium.outs, visium.image)
    ours = sl.io.from_anndata(adata, visium.image)
    (image,), (other,) = ours.images.values(), theirs.images.values()
    np.testing.assert_array_equal(image["scale0"]["image"], other["scale0"]["image"])
    shared = list(ours.tables["table"].obs_names)
    wanted = theirs.tables["table"].obs.set_index("spot_id").loc[shared]
    at = theirs.tables["table"].obs["spot_id"].isin(shared).to_numpy()
    assert len(wanted) == at.sum() == len(shared)
    entry = ours.tables["table"].uns["sealst"]["from_anndata"]
    assert entry["mpp"] == pytest.approx(theirs.tables["table"].uns["sealst"]["read_visium"]["mpp"], rel=0.01)
    assert entry["mpp_source"] == "the pitch of Visium (100 µm)"
    assert (entry["image"], entry["coordinate_scale"]) == ("full resolution", 1.0)
    spots = next(iter(ours.shapes.values()))
    np.testing.assert_allclose(spots["radius"] * entry["mpp"], 27.5)


@pytest.mark.parametrize("given", [True, False])
def test_the_small_picture_is_known_by_its_size(adata: AnnData, picture: np.ndarray, given: bool) -> None:
    with_library(adata, picture)
    small = np.rint(adata.uns["spatial"]["V1"]["images"]["hires"] * 255).astype(np.uint8)
    with pytest.warns(sl.SealstWarning, match="hires picture is used, with 4 µm per pixel"):
        sdata = sl.io.from_anndata(adata, small if given else None)
    np.testing.assert_array_equal(sdata.images["V1_he"]["scale0"]["image"].to_numpy().transpose(1, 2, 0), small)
    np.testing.assert_allclose(sdata.tables["table"].obsm["spatial"], adata.obsm["spatial"] / 2)
    assert sdata.tables["table"].uns["sealst"]["from_anndata"]["coordinate_scale"] == 0.5


def test_a_picture_of_another_size_is_refused(adata: AnnData, picture: np.ndarray) -> None:
    with_library(adata, picture)
    resized = np.asarray(Image.fromarray(picture).resize((416, 400)))
    with pytest.raises(sl.ScaleError, match=r"it was resized.*`coordinate_scale=0.8`"):
        sl.io.from_anndata(adata, resized)
    sdata = sl.io.from_anndata(adata, resized, coordinate_scale=0.8)
    np.testing.assert_allclose(sdata.tables["table"].obsm["spatial"], adata.obsm["spatial"] * 0.8)
    assert sdata.tables["table"].uns["sealst"]["from_anndata"]["mpp"] == pytest.approx(2.5, rel=1e-3)
    with pytest.raises(sl.DataError, match="compared with Space Ranger's hires picture"):
        sl.io.from_anndata(adata, np.ascontiguousarray(picture[:, ::-1]))


def test_the_scale_is_never_guessed(adata: AnnData, picture: np.ndarray, tmp_path: Any) -> None:
    with pytest.raises(sl.ScaleError, match=r"unknown. Pass `mpp=`, in µm per pixel of `image`, or `pitch_um=`"):
        sl.io.from_anndata(adata, picture)
    by_pitch = sl.io.from_anndata(adata, picture, pitch_um=100)
    assert by_pitch.tables["table"].uns["sealst"]["from_anndata"]["mpp"] == pytest.approx(2.0, rel=1e-6)
    with pytest.raises(sl.ScaleError, match="Contradictory scale for section 'section': 0.5 µm per pixel by `mpp`, 2"):
        sl.io.from_anndata(adata, picture, mpp=0.5, pitch_um=100)
    with pytest.raises(sl.ScaleError, match="Contradictory scale for section 'V1'.*by the pitch of Visium"):
        sl.io.from_anndata(with_library(adata.copy(), picture), picture, mpp=0.5)
    # At another scale the array is no known one.
    with pytest.raises(sl.ScaleError, match="spots lie 35 µm apart, as on no array known here.*Pass `spot_um=`"):
        sl.io.from_anndata(adata, picture, mpp=0.7)
    own = sl.io.from_anndata(adata, picture, mpp=0.7, spot_um=10)
    np.testing.assert_allclose(own.shapes["section_spots"]["radius"], 5 / 0.7)
    # A file states its own.
    Image.fromarray(picture).save(tmp_path / "p.tif", resolution=25400 / 3.0, resolution_unit=2)
    with pytest.raises(sl.ScaleError, match="3 by the image file"):
        sl.io.from_anndata(adata, tmp_path / "p.tif", mpp=2.0)


def test_counts_are_where_the_refusal_says(adata: AnnData, picture: np.ndarray) -> None:
    raw = adata.X.copy()
    adata.layers["counts"] = raw.copy()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    with pytest.raises(sl.DataError, match=r"`data.X` does not hold raw counts.*pass `layer='counts'`"):
        sl.io.from_anndata(adata, picture, mpp=2.0)
    table = sl.io.from_anndata(adata, picture, mpp=2.0, layer="counts").tables["table"]
    np.testing.assert_array_equal(table.X.toarray(), raw)
    np.testing.assert_array_equal(table.layers["X_given"], adata.X)
    sl.pp.normalize(table)
    with pytest.raises(sl.MissingKeyError, match="'raw' not found in `data.layers`"):
        sl.io.from_anndata(adata, picture, mpp=2.0, layer="raw")
    adata.raw = AnnData(raw, obs=adata.obs, var=adata.var)
    del adata.layers["counts"]
    with pytest.raises(sl.DataError, match=r"pass `adata.raw.to_adata\(\)`"):
        sl.io.from_anndata(adata, picture, mpp=2.0)
    np.testing.assert_array_equal(
        sl.io.from_anndata(adata.raw.to_adata(), picture, mpp=2.0).tables["table"].X.toarray(), raw
    )
    adata.raw = None
    with pytest.raises(sl.DataError, match=r"no layer holds them, nor `.raw`.*pass `adata\[:, \[\]\]`"):
        sl.io.from_anndata(adata, picture, mpp=2.0)
    bare = sl.io.from_anndata(adata[:, []], picture, mpp=2.0)
    assert bare.tables["table"].shape == (49, 0)


def test_several_sections_go_one_by_one(adata: AnnData, picture: np.ndarray) -> None:
    both = sc.concat({"a": adata, "b": adata}, label="library_id", index_unique="_")
    with pytest.raises(sl.DataError, match=r"2 sections by `.obs\['library_id'\]`: 'a', 'b'.*section_key='library_id'"):
        sl.io.from_anndata(both, picture, mpp=2.0)
    sections = [
        sl.io.from_anndata(both, picture, mpp=2.0, section=name, section_key="library_id") for name in ("a", "b")
    ]
    assert [set(s.images) for s in sections] == [{"a_he"}, {"b_he"}]
    assert list(sections[1].tables["table"].obs_names) == [f"{n}_b" for n in adata.obs_names]
    # A value may be any text, and elements are called by it.
    both.obs["scan"] = both.obs["library_id"].astype(str).replace({"a": "scan 1/2"})
    both.obs["library_id"] = "one"
    odd = sl.io.from_anndata(both, picture, mpp=2.0, section="scan 1/2", section_key="scan")
    assert set(odd.images) == {"scan_1_2_he"}
    both.obs["library_id"] = both.obs_names.str[-1]
    with pytest.raises(sl.DataError, match=r"names 2 sections.*say which with `section=`"):
        sl.io.from_anndata(both, picture, mpp=2.0, section_key="library_id")
    with pytest.raises(sl.MissingKeyError, match="'c' not found"):
        sl.io.from_anndata(both, picture, mpp=2.0, section="c", section_key="library_id")
    # Pictures of all sections in one table, as squidpy keeps them.
    both.uns["spatial"] = {n: with_library(adata.copy(), picture).uns["spatial"]["V1"] for n in ("a", "b")}
    assert set(sl.io.from_anndata(both[both.obs["library_id"] == "b"], picture).images) == {"b_he"}
    del both.obs["library_id"]
    with pytest.raises(sl.DataError, match="holds 2 libraries: 'a', 'b'"):
        sl.io.from_anndata(both, picture)


def test_what_does_not_fit_is_named(adata: AnnData, picture: np.ndarray) -> None:
    crossed = adata.copy()
    crossed.obsm["spatial"] = crossed.obsm["spatial"][:, ::-1]
    with pytest.raises(sl.ScaleError, match="With x and y interchanged all lie inside"):
        sl.io.from_anndata(crossed, picture[:345], mpp=2.0)
    with pytest.raises(TypeError, match="`sl.io.from_spatialdata`, a file to"):
        sl.io.from_anndata(sl.datasets.synthetic(size_um=600, mpp=4.0, n_genes=144), picture)
    with pytest.raises(TypeError, match="`image` must be a file, a numpy array or a SlideImage, found Image"):
        sl.io.from_anndata(adata, Image.fromarray(picture), mpp=2.0)
    with pytest.raises(sl.DataError, match="No picture: `image` was not given"):
        sl.io.from_anndata(adata, mpp=2.0)
    doubled = adata.copy()
    doubled.obs_names = ["x"] * 49
    with pytest.raises(sl.DataError, match=r"run `adata.obs_names_make_unique\(\)`"):
        sl.io.from_anndata(doubled, picture, mpp=2.0)
    adata.obs["pxl_col"], adata.obs["pxl_row"] = 1.0, 1.0
    del adata.obsm["spatial"]
    with pytest.raises(sl.MissingKeyError, match=r"found: 'X_pca'.*`.obs` has 'pxl_col', 'pxl_row'"):
        sl.io.from_anndata(adata, picture, mpp=2.0)


def test_names_that_cannot_be_stored_are_changed_and_told(adata: AnnData, picture: np.ndarray) -> None:
    adata.obs["Cell Type"] = "a"
    with pytest.warns(sl.SealstWarning, match="'Cell Type' is 'Cell_Type'"):
        sdata = sl.io.from_anndata(adata, picture, mpp=2.0)
    assert "Cell_Type" in sdata.tables["table"].obs
    assert "Cell Type" in adata.obs


def test_a_table_of_a_section_gets_its_picture_back(toy_section: Any) -> None:
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=100, crop_px=32)
    pixels = sdata.images["toy_he"]["scale0"]["image"].to_numpy().transpose(1, 2, 0)
    made = sl.io.from_anndata(sdata.tables["table"], pixels, mpp=1.0, spot_um=55)
    table = made.tables["table"]
    assert table.obs["region"].unique().tolist() == ["toy_spots"]
    assert "sealst_region" not in table.obs
    assert "crop_ok" not in table.obs
    assert set(table.uns["sealst"]) == {"from_anndata", "version"}
    assert made.shapes["toy_spots"].index.tolist() == sdata.tables["table"].obs_names.tolist()


def test_pixels_are_asked_for_with_the_way_to_add_them(adata: AnnData) -> None:
    for call in (sl.pp.pair_crops, sl.pp.tissue, sl.pp.quality, sl.pp.tile, sl.pl.slide, sl.pl.crops):
        with pytest.raises(TypeError, match=r"sl.io.from_anndata\(adata, 'slide.tif', mpp=...\)"):
            call(adata)


def test_the_check_says_what_to_do_next(adata: AnnData, picture: np.ndarray) -> None:
    report = sl.io.check(adata)
    assert (report.format, report.ok) == ("AnnData", True)
    assert report.facts.set_index("name").loc["raw counts", "value"] == "X"
    assert "sl.io.from_anndata(adata, 'slide.tif', mpp=...)" in report.problems[-1].text
    assert "First add the centres" not in report.problems[-1].text
    whole = sl.io.check(adata, image=picture, mpp=2.0)
    assert whole.ok
    assert whole.facts.set_index("name").loc["used", "value"].startswith("2 µm/px")
    refused = sl.io.check(adata, image=picture)
    assert not refused.ok
    assert "Pass `mpp=`, in µm per pixel of `image`" in refused.problems[0].text
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X + 0.5
    assert not sl.io.check(adata, image=picture, mpp=2.0).ok
    assert sl.io.check(adata, image=picture, mpp=2.0, layer="counts").ok
    del adata.obsm["spatial"]
    assert "First add the centres" in sl.io.check(adata).problems[-1].text


def test_a_file_of_a_table_is_read_with_its_picture(adata: AnnData, picture: np.ndarray, tmp_path: Any) -> None:
    adata.write_h5ad(tmp_path / "t.h5ad")
    Image.fromarray(picture).save(tmp_path / "p.png")
    sdata = sl.io.read(tmp_path / "t.h5ad", image=tmp_path / "p.png", mpp=2.0, section="s1")
    assert set(sdata.images) == {"s1_he"}
    assert sl.io.check(tmp_path / "t.h5ad", image=tmp_path / "p.png", mpp=2.0).ok
    assert not sl.io.check(tmp_path / "t.h5ad", image=tmp_path / "p.png").ok
    assert sl.io.check(tmp_path / "t.h5ad").format == "AnnData (anndata.read_h5ad)"
    (tmp_path / "m.csv").write_text("path,image,mpp,section,patient\nt.h5ad,p.png,2.0,s1,p7\n")
    (section,) = sl.io.read_collection(tmp_path / "m.csv")
    assert section.tables["table"].obs["patient"].unique().tolist() == ["p7"]
