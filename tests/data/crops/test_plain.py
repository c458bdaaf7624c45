"""Pixels that are not there: whoever reads crops says so once, and refuses a section of which none is there."""

from __future__ import annotations

import logging
import shutil
import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from spatialdata.transformations import get_transformation

import sealst as sl
from sealst import _section
from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.source import iter_source

TINY = "vit_tiny_patch16_224"
TRAINED = {"encoder": TINY, "pretrained": False, "n_genes": 20, "progress": False}
PARAMS = {"epochs": 1, "views": 1, "batch_size": 16}


def section(path=None):
    """36 spots, 100 µm apart, on coloured noise of 1 µm per pixel."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 100.0 + 70
    sdata = sl.io.from_arrays(
        rng.integers(40, 220, (640, 640, 3), dtype=np.uint8), rng.poisson(3.0, (36, 30)), xy,
        genes=[f"G{i}" for i in range(30)], mpp=1.0, spot_um=55, section="noise", thumbnail=False,
    )  # fmt: skip
    if path is not None:
        sdata.write(path)
        sdata = sd.read_zarr(path)
    sl.pp.pair_crops(sdata, crop_um=56, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


def name_of(sdata) -> str:
    return str(sdata.tables["table"].obs["section"].iloc[0])


def blackened(sdata, every: int):
    """The section with the pixels under every n-th crop lost."""
    (key,) = sdata.images
    systems = get_transformation(sdata.images[key], get_all=True)
    (one,) = _section.paired_table(sdata).sections
    pixels = np.array(_section.image_levels(sdata.images[key])[0])
    for x0, y0, x1, y1 in one.boxes[::every].astype(int):
        pixels[:, max(y0 - 8, 0) : y1 + 8, max(x0 - 8, 0) : x1 + 8] = 0
    del sdata.images[key]
    levels = [da.from_array(one, chunks=(3, 256, 256)) for one in (pixels, pixels[:, ::2, ::2])]
    sdata.images[key] = _section.multiscale(levels, systems)
    return sdata


def said(call) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in found if "single colour" in str(one.message)]


def crops_of(*colours) -> np.ndarray:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 255, (9, 9, 3)) if c is None else np.full((9, 9, 3), c) for c in colours]
    return np.array(made, dtype=np.uint8)


def test_black_is_no_colour_of_a_slide_and_some_glass_is():
    counted = PlainCrops("s")
    counted.add(crops_of(*[None] * 30, 255))
    assert counted.verdict() is None
    counted.add(crops_of(0))
    assert (counted.n, counted.plain, counted.black) == (32, 2, 1)
    assert "2 of 32 crops of 's' are of a single colour (1 black)" in counted.verdict()
    many = PlainCrops("s")
    many.add(crops_of(*[None] * 9, 255, 255))
    assert "2 of 11 crops of 's' are of a single colour. Are parts" in many.verdict()


def test_a_crop_with_one_other_pixel_shows_something():
    crops = crops_of(*[7] * 5)
    crops[:, 3, 5, 1] = 8
    counted = PlainCrops("s")
    counted.add(crops)
    assert counted.plain == 0


def test_a_section_without_any_picture_is_refused_and_a_part_of_one_is_not():
    whole, part = PlainCrops("s"), PlainCrops("s", total=9)
    for one in (whole, part):
        one.add(crops_of(0, 0, 0))
    with pytest.raises(sl.DataError, match="All 3 crops of 's' are of a single colour: the picture is not there"):
        whole.verdict()
    assert "3 of 3 crops of 's'" in part.verdict()


def test_a_source_speaks_once_however_often_it_is_read():
    sdata = blackened(section(), every=2)
    (one,) = _section.paired_table(sdata).sections
    source = one.source
    n = len(source.boxes)
    for ahead, expected in ((True, 1), (False, 0)):
        found = said(lambda ahead=ahead: list(iter_source(source, 32, ahead=ahead)))
        assert len(found) == expected
    assert f"of {n} crops of {name_of(sdata)!r}" in said(lambda: list(iter_source(one.source, 32)))[0]


@pytest.mark.parametrize("cache", ["none", "trunk"])
def test_training_and_caching_tell_of_lost_pixels(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(sl.settings, "cache_dir", tmp_path / "cache")
    sdata = blackened(section(), every=3)
    n = int(sdata.tables["table"].obs["crop_ok"].sum())
    adapter = {"kind": "lora", "n_blocks": 1}
    calls = {
        "finetune": lambda: sl.tl.finetune(sdata, params=PARAMS | {"cache": cache}, adapter=adapter, **TRAINED),
        "cache_crops": lambda: sl.pp.cache_crops(sdata, tmp_path / "crops", progress=False),
        "quality": lambda: sl.pp.quality(sdata, progress=False),
        "embed": lambda: sl.tl.embed(sdata, TINY, pretrained=False, progress=False),
    }
    for call in calls.values():
        (text,) = said(call)
        assert f"of {n} crops of {name_of(sdata)!r} are of a single colour" in text


def test_tokens_of_crops_beyond_memory_tell_once(tmp_path, monkeypatch):
    from sealst._data.crops import source

    monkeypatch.setattr(sl.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(source, "MAX_RAM_BYTES", 0)
    sdata = blackened(section(), every=3)
    params = PARAMS | {"cache": "trunk", "views": 2}
    adapter = {"kind": "lora", "n_blocks": 1}
    assert len(said(lambda: sl.tl.finetune(sdata, params=params, adapter=adapter, **TRAINED))) == 1


def test_nothing_is_learned_or_kept_of_a_picture_that_is_not_there(tmp_path):
    sdata = section(tmp_path / "s.zarr")
    for chunks in (tmp_path / "s.zarr" / "images").glob("*/*/c"):
        shutil.rmtree(chunks)
    table = sdata.tables["table"]
    for call in (
        lambda: sl.tl.finetune(sdata, params=PARAMS, **TRAINED),
        lambda: sl.pp.cache_crops(sdata, tmp_path / "crops", progress=False),
        # What is left of a refused attempt is no start of the next one.
        lambda: sl.pp.cache_crops(sdata, tmp_path / "crops", progress=False),
        lambda: sl.pp.quality(sdata, progress=False),
        lambda: sl.tl.embed(sdata, TINY, pretrained=False, progress=False),
    ):
        with pytest.raises(sl.DataError, match=r"All \d+ crops of .* are of a single colour"):
            call()
    assert "X_seal" not in table.obsm
    assert "crop_caches" not in table.uns["sealst"] or not table.uns["sealst"]["crop_caches"]


def gone(sdata, path):
    shutil.rmtree(path)
    return sdata


@pytest.mark.parametrize(
    "handed_on",
    [
        lambda s: s,
        lambda s: s.subset([*s.images, *s.shapes, "table"]),
        lambda s: sl.pp.normalize(s, copy=True),
        lambda s: sd.SpatialData.init_from_elements({name: one for _, name, one in s.gen_elements()}),
    ],
    ids=["as read", "subset", "copy=True", "new object"],
)
def test_a_store_that_is_gone_is_known_without_a_path(tmp_path, handed_on):
    sdata = handed_on(section(tmp_path / "s.zarr"))
    gone(sdata, tmp_path / "s.zarr")
    for call in (
        lambda: sl.tl.finetune(sdata, params=PARAMS, **TRAINED),
        lambda: sl.pp.cache_crops(sdata, tmp_path / "crops"),
        lambda: sl.pp.tissue(sdata),
        lambda: sl.pp.quality(sdata, progress=False),
        lambda: sl.tl.embed(sdata, TINY, pretrained=False, progress=False),
    ):
        with pytest.raises(sl.DataError, match=r"is read from '.*s\.zarr', which is not there any more"):
            call()


def test_another_working_folder_and_a_removed_image_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sdata = section("s.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(sl.DataError, match=r"read from 's\.zarr', .* a relative path holds in the working folder only"):
        sl.tl.embed(sdata, TINY, pretrained=False, progress=False)
    monkeypatch.chdir(tmp_path)
    (key,) = sdata.images
    shutil.rmtree(tmp_path / "s.zarr" / "images" / key)
    with pytest.raises(sl.DataError, match=rf"read from 's\.zarr/images/{key}', which is not there"):
        sl.tl.embed(sdata, TINY, pretrained=False, progress=False)


def test_a_picture_in_memory_needs_no_store(tmp_path):
    sdata = section()
    sdata.write(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr")
    sl.tl.embed(sdata, TINY, pretrained=False, progress=False)
    assert np.isfinite(sdata.tables["table"].obsm["X_seal"]).all(axis=1).any()


def slide_with(tmp_path, lost: float):
    """A slide whose left part is tissue that only a coarse level shows."""
    import tifffile

    rng = np.random.default_rng(0)
    size = 1024
    pixels = np.full((size, size, 3), 240, dtype=np.uint8)
    pixels[64:-64, 64:-64] = rng.integers(90, 200, (size - 128, size - 128, 3))
    fine = pixels.copy()
    fine[:, : int(lost * size)] = 0
    path = tmp_path / "a.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "resolution": (20000, 20000), "resolutionunit": 3}
    with tifffile.TiffWriter(path) as tif:
        tif.write(fine, subifds=0, **options)
        tif.write(pixels[::4, ::4], subfiletype=1, tile=(256, 256), photometric="rgb")
    return path


def test_jobs_of_slides_count_over_the_whole_slide(tmp_path):
    path = slide_with(tmp_path, lost=0.5)
    options = {"pretrained": False, "crop_um": 32, "crop_px": 32, "tiles_per_task": 16, "progress": False}
    found = said(
        lambda: sl.tl.embed_slides(
            pd.DataFrame({"path": [path], "patient": ["p"]}), TINY, tmp_path / "out", min_tissue=0.0, **options
        )
    )
    assert len(found) == 1
    assert "crops of 'a' are of a single colour" in found[0]


def test_a_slide_without_pixels_fails_and_says_why(tmp_path, caplog):
    path = slide_with(tmp_path, lost=1.0)
    options = {"pretrained": False, "crop_um": 32, "crop_px": 32, "tiles_per_task": 16, "progress": False}
    with caplog.at_level(logging.WARNING, logger="sealst"):
        table = sl.tl.embed_slides(
            pd.DataFrame({"path": [path], "patient": ["p"]}), TINY, tmp_path / "out", min_tissue=0.0, **options
        )
    assert table["status"].tolist() == ["failed"]
    assert "crops of 'a' are of a single colour: the picture is not there" in caplog.text
