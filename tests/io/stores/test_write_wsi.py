"""Stores of slides whose pixels stay in the slide's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import tifffile

import sealst as sl
from sealst._section import image_levels


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    image = np.full((900, 1200, 3), 242, dtype=np.uint8)
    grain = rng.normal(0, 30, (70, 90, 1)).repeat(10, 0).repeat(10, 1)
    image[100:800, 100:1000] = np.clip(np.array([170, 110, 170]) + grain, 0, 255).astype(np.uint8)
    options = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(256, 256), **options)
    return tmp_path / "a.tif"


def tiled(slide: Path) -> sd.SpatialData:
    sdata = sl.io.read_wsi(slide, patient="p")
    sl.pp.tile(sdata, crop_um=100)
    sl.pp.pair_crops(sdata, crop_um=100, crop_px=32)
    sl.pp.tissue(sdata)
    return sdata


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def embedded(sdata: sd.SpatialData) -> np.ndarray:
    options = {"pretrained": False, "device": "cpu", "copy": True}
    return sl.tl.embed(sdata, "vit_tiny_patch16_224", **options).tables["table"].obsm["X_seal"]


def test_pixels_stay_in_the_slide(slide: Path, tmp_path: Path) -> None:
    sdata = tiled(slide)
    sl.io.write_wsi(sdata, tmp_path / "a.zarr")
    assert not list((tmp_path / "a.zarr" / "images").glob("*he*"))
    assert set(sd.read_zarr(tmp_path / "a.zarr").shapes) == {"a_spots", "a_spots_crops"}
    again = sl.io.read(tmp_path / "a.zarr")
    image = image_levels(again.images["a_he"])
    assert image[0].data.dask
    np.testing.assert_array_equal(image[0], image_levels(sdata.images["a_he"])[0])
    assert "a_tissue" in again.labels
    np.testing.assert_allclose(embedded(again), embedded(sdata), atol=1e-5)
    sl.io.write_wsi(sdata, tmp_path / "copied.zarr", pixels=True)
    assert size(tmp_path / "copied.zarr") > 2 * size(tmp_path / "a.zarr")
    assert "a_he" in sd.read_zarr(tmp_path / "copied.zarr").images


def test_collections_do_not_copy_pixels_either(slide: Path, tmp_path: Path) -> None:
    sl.io.write_wsi(tiled(slide), tmp_path / "cohort" / "a.zarr")
    sections = sl.io.read_collection(tmp_path / "cohort")
    sections.apply(lambda s: sl.tl.embed(s, "vit_tiny_patch16_224", pretrained=False, device="cpu"))
    assert not list((tmp_path / "cohort" / "a.zarr" / "images").glob("*he*"))
    again = sl.io.read(tmp_path / "cohort" / "a.zarr")
    assert "X_seal" in again.tables["table"].obsm
    assert "a_he" in again.images


def test_a_slide_that_has_gone(slide: Path, tmp_path: Path) -> None:
    sdata = tiled(slide)
    sl.io.write_wsi(sdata, tmp_path / "a.zarr")
    moved = slide.rename(tmp_path / "moved.tif")
    with pytest.warns(sl.SealstWarning, match=r"The picture 'a_he' of this store is not at hand: No image file at"):
        again = sl.io.read(tmp_path / "a.zarr")
    assert again.tables["table"].n_obs == sdata.tables["table"].n_obs
    tifffile.imwrite(slide, np.zeros((300, 300, 3), np.uint8), photometric="rgb")
    with pytest.warns(sl.SealstWarning, match=r"it has \(300, 300\) pixels now, \(900, 1200\) before"):
        sl.io.read(tmp_path / "a.zarr")
    moved.rename(slide)
    assert "a_he" in sl.io.read(tmp_path / "a.zarr").images


def test_what_is_refused(slide: Path, tmp_path: Path, toy_section) -> None:
    sdata = tiled(slide)
    with pytest.raises(sl.DataError, match=r"No picture of this SpatialData \('toy_he'\) was read from a slide's file"):
        sl.io.write_wsi(toy_section(), tmp_path / "toy.zarr")
    sl.io.write_wsi(sdata, tmp_path / "a.zarr")
    with pytest.raises(sl.DataError, match="exists; replace it with `overwrite=True`"):
        sl.io.write_wsi(sdata, tmp_path / "a.zarr")
    again = sl.io.read(tmp_path / "a.zarr")
    with pytest.raises(sl.DataError, match="is the store that `sdata` reads from"):
        sl.io.write_wsi(again, tmp_path / "a.zarr", overwrite=True)
    del sdata.shapes["a_spots_crops"]
    sl.io.write_wsi(sdata, tmp_path / "a.zarr", overwrite=True)
    assert set(sl.io.read(tmp_path / "a.zarr").shapes) == {"a_spots"}
    (tmp_path / "other").mkdir()
    with pytest.raises(sl.DataError, match="is no SpatialData store"):
        sl.io.write_wsi(sdata, tmp_path / "other", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] == ".") in ([], [".a.zarr.lock"])
