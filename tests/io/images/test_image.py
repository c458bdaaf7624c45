"""TIFF files and pictures of every layout, each written in its own format and compared with an independent reader."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import tifffile
from PIL import Image

import sealst as sl
from sealst.io._images import tiff as _tiff

#: 0.5 µm per pixel
CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}


def picture(height: int = 1400, width: int = 1300) -> np.ndarray:
    """Smooth picture whose red tells x and green tells y."""
    y, x = np.mgrid[:height, :width]
    blue = 128 + 100 * np.sin(x / 37) * np.cos(y / 23)
    return np.stack([x * 255 // width, y * 255 // height, blue], axis=-1).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3)).round().astype(np.uint8)


def pixels(level: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(level), 0, 2)


IMAGE = picture()
SMALL = picture(300, 260)


def write_pyramid(path: Path, levels: list[np.ndarray], *, mpp: float = 0.5, **options: Any) -> Path:
    options = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"} | options
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for i, level in enumerate(levels):
            unit = {"resolution": (1e4 / mpp / 2**i,) * 2, "resolutionunit": "CENTIMETER"}
            file.write(level, subfiletype=min(i, 1), metadata=None, **unit, **options)
    return path


# -- layouts ----------------------------------------------------------------------------------------------------------
def test_pyramid_of_pages(tmp_path: Path) -> None:
    levels = [IMAGE, halved(IMAGE), halved(halved(IMAGE))]
    path = write_pyramid(tmp_path / "slide.tif", levels)
    slide = sl.io.open_image(path)
    assert slide.shape == (1400, 1300)
    assert [level.shape for level in slide.levels] == [(3, 1400, 1300), (3, 700, 650), (3, 350, 325)]
    assert slide.mpp == pytest.approx(0.5)
    assert slide.mpp_source == "TIFF resolution tags"
    assert slide.path == str(path)
    openslide = pytest.importorskip("openslide").OpenSlide(path)
    for i, level in enumerate(slide.levels):
        np.testing.assert_array_equal(pixels(level), tifffile.imread(path, key=i))
        seen = openslide.read_region((0, 0), i, openslide.level_dimensions[i]).convert("RGB")
        np.testing.assert_array_equal(pixels(level), np.asarray(seen))
    assert np.abs(pixels(slide.levels[0]).astype(int) - IMAGE).mean() < 2


def test_ome_tiff_with_sub_ifds(tmp_path: Path) -> None:
    path, levels = tmp_path / "slide.ome.tif", [IMAGE, halved(IMAGE), halved(halved(IMAGE))]
    facts = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}
    facts |= {"PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    options = {"tile": (512, 512), "compression": "zlib", "photometric": "rgb"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(levels[0], subifds=2, metadata=facts, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)
    slide = sl.io.open_image(path)
    assert slide.mpp == pytest.approx(0.25)
    assert slide.mpp_source == "OME-XML PhysicalSize"
    assert len(slide.levels) == 3
    for level, expected in zip(slide.levels, levels, strict=True):
        np.testing.assert_array_equal(pixels(level), expected)


FLAT: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = {
    "uncompressed in one piece": (lambda a: a, {"photometric": "rgb"}),
    "uncompressed tiles": (lambda a: a, {"photometric": "rgb", "tile": (128, 256)}),
    "strips": (lambda a: a, {"photometric": "rgb", "compression": "deflate", "rowsperstrip": 11}),
    "strips of big-endian": (lambda a: a, {"photometric": "rgb", "compression": "lzw", "byteorder": ">"}),
    "one strip": (lambda a: a, {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 1400}),
    "JPEG 2000": (lambda a: a, {"photometric": "rgb", "compression": "jpeg2000", "tile": (256, 256)}),
    "planes": (lambda a: np.moveaxis(a, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    "tiled planes": (
        lambda a: np.moveaxis(a, 2, 0),
        {"photometric": "rgb", "planarconfig": "separate", "compression": "lzw", "predictor": True, "tile": (128, 256)},
    ),
    "a page per channel": (
        lambda a: np.moveaxis(a, 2, 0),
        {
            "photometric": "minisblack",
            "compression": "lzw",
            "rowsperstrip": 7,
            "ome": True,
            "metadata": {"axes": "CYX"},
        },
    ),
    "alpha": (
        lambda a: np.dstack([a, a[..., :1]]),
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (256, 256), "compression": "zlib"},
    ),
    "BigTIFF": (lambda a: a, {"photometric": "rgb", "bigtiff": True, "compression": "zstd", "tile": (256, 256)}),
}


@pytest.mark.parametrize("layout", FLAT)
def test_flat_layouts(layout: str, tmp_path: Path) -> None:
    change, options = FLAT[layout]
    tifffile.imwrite(tmp_path / "a.tif", change(IMAGE), **options)
    slide = sl.io.open_image(tmp_path / "a.tif")
    assert [level.shape for level in slide.levels] == [(3, 1400, 1300)]
    with dask.config.set(scheduler="threads", num_workers=3):
        np.testing.assert_array_equal(pixels(slide.levels[0]), IMAGE)
    np.testing.assert_array_equal(pixels(slide.levels[0][:, 700:733, 1022:1027]), IMAGE[700:733, 1022:1027])
    assert slide.mpp is None


def test_luminance_and_chroma_become_rgb(tmp_path: Path) -> None:
    chroma = Image.fromarray(IMAGE).convert("YCbCr")
    chroma.save(tmp_path / "jpeg.tif", compression="jpeg", quality=95)
    options = {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "lzw"}
    tifffile.imwrite(tmp_path / "lzw.tif", np.asarray(chroma), **options)
    for name in ("jpeg.tif", "lzw.tif"):
        found = pixels(sl.io.open_image(tmp_path / name).levels[0])
        assert np.abs(found.astype(int) - IMAGE).mean() < 1.5, name


def test_palette_and_jpg_go_through_pillow(tmp_path: Path) -> None:
    Image.fromarray(SMALL).quantize(64).save(tmp_path / "palette.tif")
    Image.fromarray(SMALL).save(tmp_path / "a.png")
    Image.fromarray(SMALL).save(tmp_path / "a.jpg", quality=95)
    for name, bound in (("palette.tif", 20), ("a.png", 0), ("a.jpg", 3)):
        slide = sl.io.open_image(tmp_path / name)
        assert np.abs(pixels(slide.levels[0]).astype(int) - SMALL).mean() <= bound, name
        assert slide.levels[1].shape == (3, 150, 130)
    # What a file is called does not matter when it is a picture after all.
    (tmp_path / "a.png").rename(tmp_path / "png.tif")
    np.testing.assert_array_equal(pixels(sl.io.open_image(tmp_path / "png.tif").levels[0]), SMALL)


# -- levels -----------------------------------------------------------------------------------------------------------
def test_pictures_beside_the_pyramid_are_no_levels(tmp_path: Path) -> None:
    options = {"photometric": "rgb", "metadata": None, "tile": (256, 256)}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(halved(halved(IMAGE)), description="thumbnail of the slide", **options)
        file.write(IMAGE, **options)
        file.write(halved(IMAGE), subfiletype=1, **options)
        file.write(picture(500, 900), description="macro", **options)
        file.write(halved(halved(IMAGE))[..., 0], tile=(256, 256), photometric="minisblack", metadata=None)
        file.write(picture(200, 800), **options)
        file.write(255 - halved(IMAGE), **options)
    slide = sl.io.open_image(tmp_path / "a.tif")
    assert [level.shape[1:] for level in slide.levels] == [(1400, 1300), (700, 650)]
    np.testing.assert_array_equal(pixels(slide.levels[1]), halved(IMAGE))


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_another_picture_of_the_same_proportions_is_no_level(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with tifffile.TiffWriter(path, ome=suffix == ".ome.tif") as file:
        file.write(IMAGE, photometric="rgb", tile=(256, 256))
        file.write(255 - halved(IMAGE), photometric="rgb", tile=(256, 256))
    slide = sl.io.open_image(path)
    assert [level.shape[1:] for level in slide.levels] == [IMAGE.shape[:2]]


@pytest.mark.parametrize("shape", [(1001, 777), (1023, 513), (640, 1999)])
def test_levels_may_be_rounded_up_or_down(shape: tuple[int, int]) -> None:
    for rounding in (np.floor, np.ceil, np.round):
        shapes = [tuple(int(rounding(n / 2**i)) for n in shape) for i in range(6)]
        assert _tiff.spanning(shapes) == list(range(6))
    assert _tiff.spanning([shape, (shape[0] // 2, shape[1] // 2 - 4)]) == [0]


def test_chunks_hold_whole_tiles_and_each_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = _tiff._tile
    monkeypatch.setattr(_tiff, "_tile", lambda *a: decoded.append(a[3]) or real(*a))
    for side, chunk in ((256, 1024), (240, 960), (512, 1024), (1040, 1040)):
        path = write_pyramid(tmp_path / f"{side}.tif", [IMAGE], tile=(side, side), compression="zlib")
        level = sl.io.open_image(path).levels[0]
        assert level.chunksize == (3, min(chunk, 1400), min(chunk, 1300))
        decoded.clear()
        level.compute()
        assert len(decoded) == len(set(decoded)) == int(np.ceil(1400 / side) * np.ceil(1300 / side))
    tifffile.imwrite(tmp_path / "strips.tif", IMAGE, photometric="rgb", compression="zlib", rowsperstrip=10)
    level = sl.io.open_image(tmp_path / "strips.tif").levels[0]
    assert level.chunksize == (3, 1020, 1300)
    decoded.clear()
    level.compute()
    assert len(decoded) == 140


# -- laziness ---------------------------------------------------------------------------------------------------------
def test_goes_to_other_processes_and_holds_no_file(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [IMAGE, halved(IMAGE)], compression="zlib")
    slide = sl.io.open_image(path)
    np.testing.assert_array_equal(pixels(slide.levels[0]), IMAGE)
    if Path("/proc/self/fd").is_dir():
        held = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        assert not any(os.path.exists(one) and os.path.samefile(one, path) for one in held)
    _tiff._directory.cache_clear()
    copied = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(pixels(copied.levels[1]), halved(IMAGE))
    assert len(pickle.dumps(slide)) < 20_000


def test_memory_stays_small_for_a_large_slide(tmp_path: Path) -> None:
    """1.2 GB of pixels: opened, and crops cut, within a fraction of that."""
    script = """
import sys, tracemalloc
import imagecodecs, numpy as np, tifffile
import sealst as sl
from sealst._data.crops.reader import read_crops
side = 20000
block = np.random.default_rng(0).integers(100, 200, (256, 256, 3), dtype=np.uint8)
tile = imagecodecs.jpeg8_encode(block, level=30, colorspace="RGB", outcolorspace="RGB")
with tifffile.TiffWriter(sys.argv[1], bigtiff=True) as file:
    file.write((tile for _ in range(79 * 79)), shape=(side, side, 3), dtype="uint8", tile=(256, 256),
               compression="jpeg", photometric="rgb", metadata=None)
sl.io.open_image(sys.argv[1])
tracemalloc.start()
slide = sl.io.open_image(sys.argv[1])
opened = tracemalloc.get_traced_memory()[1]
corner = np.random.default_rng(1).integers(5000, 7000, (20, 2))
crops = read_crops(list(slide.levels), np.hstack([corner, corner + 224]), 224)
expected = imagecodecs.jpeg8_decode(tile, colorspace="RGB", outcolorspace="RGB")
x, y = corner[0]
rows, columns = np.arange(y, y + 224) % 256, np.arange(x, x + 224) % 256
assert (crops[0] == expected[rows][:, columns]).all()
print(opened // 2**20, tracemalloc.get_traced_memory()[1] // 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "big.tif")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    opened, cut = map(int, done.stdout.split()[-2:])
    assert opened < 10, f"{opened} MB to open"
    assert cut < 150, f"{cut} MB to cut 20 crops"


def test_section_from_a_slide_on_disk(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [IMAGE, halved(IMAGE)], compression="zlib")
    slide = sl.io.open_image(path)
    xy = np.array([[400.0, 400.0], [700.0, 900.0]])
    sdata = sl.io.from_arrays(slide, np.ones((2, 1)), xy, genes=["VIM"], mpp=slide.mpp, spot_um=55, section="s")
    sl.pp.pair_crops(sdata, crop_um=112)
    from sealst import _section
    from sealst._data.crops.reader import read_crops

    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    boxes = _section.region_crops(sdata, table, region).boxes
    crops = read_crops(_section.image_levels(sdata.images["s_he"]), boxes, 224)
    np.testing.assert_array_equal(crops[1], IMAGE[788:1012, 588:812])


# -- scale ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dpi", [1, 72, 96, 150, 300, 1200])
def test_default_resolutions_are_no_scale(dpi: int, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMALL, photometric="rgb", resolution=(dpi, dpi), resolutionunit="INCH")
    slide = sl.io.open_image(tmp_path / "a.tif")
    assert slide.mpp is None
    assert slide.mpp_source == ""
    assert sl.io.open_image(tmp_path / "a.tif", mpp=0.5).mpp == 0.5


def test_scale_in_words(tmp_path: Path) -> None:
    text = "Aperio Leica Biosystems GT450 v1.0.1 |AppMag = 40|MPP = 0.2634|Date = x"
    tifffile.imwrite(tmp_path / "a.tif", SMALL, photometric="rgb", description=text, metadata=None)
    slide = sl.io.open_image(tmp_path / "a.tif")
    assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.2634), "Aperio MPP")


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [
        (0.00025, "mm", 0.25),
        (0.5, "μm", 0.5),
        (500, "nm", 0.5),
        (1, "pixel", None),
        (352.8, "µm", None),
        (0, "µm", None),
    ],
)
def test_scale_in_ome_units(size: float, unit: str, mpp: float | None, tmp_path: Path) -> None:
    facts = {"axes": "YXS"} | {f"PhysicalSize{axis}": size for axis in "XY"}
    facts |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    tifffile.imwrite(tmp_path / "a.ome.tif", SMALL, photometric="rgb", metadata=facts)
    assert sl.io.open_image(tmp_path / "a.ome.tif").mpp == (None if mpp is None else pytest.approx(mpp))


def test_scale_in_inches(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMALL, photometric="rgb", resolution=(50800, 50800), resolutionunit="INCH")
    assert sl.io.open_image(tmp_path / "a.tif").mpp == pytest.approx(0.5)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_scale_in_pixels_per_inch(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(SMALL).save(path, dpi=(50800, 50800))
    slide = sl.io.open_image(path)
    assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.5, rel=1e-3), "pixels per inch")
    with pytest.raises(sl.ScaleError, match=r"0\.25 µm per pixel by argument `mpp`, 0\.5 by pixels per inch"):
        sl.io.open_image(path, mpp=0.25)
    Image.fromarray(SMALL).save(path, dpi=(300, 300))
    assert sl.io.open_image(path).mpp is None


def test_scale_of_imagej(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMALL, imagej=True, resolution=(4, 4), metadata={"unit": "um", "axes": "YXS"})
    slide = sl.io.open_image(tmp_path / "a.tif")
    assert slide.mpp == pytest.approx(0.25)
    assert slide.mpp_source == "ImageJ unit"


def test_scale_given_and_stated_must_agree(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SMALL, photometric="rgb", **CM)
    slide = sl.io.open_image(tmp_path / "a.tif", mpp=0.51)
    assert slide.mpp == 0.51
    assert slide.mpp_source == "argument `mpp`"
    with pytest.raises(sl.ScaleError, match=r"a\.tif: 0\.25 .* by argument `mpp`, 0\.5 by TIFF resolution tags"):
        sl.io.open_image(tmp_path / "a.tif", mpp=0.25)
    with pytest.raises(sl.DataError, match="`mpp` must be a positive number"):
        sl.io.open_image(tmp_path / "a.tif", mpp=-1)


def test_header_that_contradicts_itself_is_settled_by_the_argument(tmp_path: Path) -> None:
    facts = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", SMALL, photometric="rgb", metadata=facts, **CM)
    with pytest.raises(sl.ScaleError, match=r"0\.25 .* by OME-XML PhysicalSize, 0\.5 by TIFF resolution tags"):
        sl.io.open_image(tmp_path / "a.ome.tif")
    assert sl.io.open_image(tmp_path / "a.ome.tif", mpp=0.5).mpp == 0.5


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    options = {"photometric": "rgb", "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", SMALL, resolution=(20000, 25000), **options)
    with pytest.raises(sl.ScaleError, match=r"not square, 0\.5 µm along x and 0\.4 µm along y by TIFF resolution tags"):
        sl.io.open_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", SMALL, resolution=(20000, 20100), **options)
    assert sl.io.open_image(tmp_path / "b.tif").mpp == pytest.approx(0.5, rel=0.005)


# -- damage -----------------------------------------------------------------------------------------------------------
def test_files_that_are_no_image(tmp_path: Path) -> None:
    with pytest.raises(sl.DataError, match=r"No image file at .*absent\.tif"):
        sl.io.open_image(tmp_path / "absent.tif")
    (tmp_path / "empty.tif").touch()
    with pytest.raises(sl.DataError, match=r"empty\.tif is empty \(0 bytes\)"):
        sl.io.open_image(tmp_path / "empty.tif")
    for name in ("text.tif", "text.jpg", "text"):
        (tmp_path / name).write_text("barcode\tx\ty\n" * 20)
        with pytest.raises(
            sl.DataError, match=rf"{name} (is no TIFF file.*starts with b'barcode|could not be read as an)"
        ):
            sl.io.open_image(tmp_path / name)
    (tmp_path / "head.tif").write_bytes(b"II*\0" + bytes(40))
    with pytest.raises(sl.DataError, match=r"head\.tif could not be read as a TIFF file"):
        sl.io.open_image(tmp_path / "head.tif")
    with pytest.raises(sl.DataError, match=r"folder without \.dcm files"):
        sl.io.open_image(tmp_path)


@pytest.mark.parametrize("compression", [None, "jpeg", "zlib"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_tiff_is_refused_when_opened(compression: str | None, share: float, tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [IMAGE, halved(IMAGE)], compression=compression)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(sl.DataError, match=r"a\.tif (is cut off|could not be read as a TIFF file).*[Cc]opy or export"):
        sl.io.open_image(path)


def test_truncated_flat_tiff_is_refused_when_opened(tmp_path: Path) -> None:
    for i, options in enumerate(({}, {"compression": "deflate", "rowsperstrip": 16})):
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(path, IMAGE, photometric="rgb", **options)
        os.truncate(path, path.stat().st_size - 5000)
        with pytest.raises(sl.DataError, match=r"is cut off: its level of 1300 x 1400 px needs"):
            sl.io.open_image(path)


def damage(path: Path, index: int, how: str) -> None:
    """Spoil one tile of the first page."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, size, tag = page.dataoffsets[index], page.databytecounts[index], page.tags["TileByteCounts"]
    with open(path, "r+b") as file:
        if how == "zeros":
            file.seek(offset)
            file.write(bytes(size))
        elif how == "half":
            file.seek(offset + size // 2)
            file.write(bytes(size - size // 2))
        else:
            file.seek(tag.valueoffset + index * (tag.valuebytecount // tag.count))
            file.write(bytes(tag.valuebytecount // tag.count))


@pytest.mark.parametrize("how", ["zeros", "half", "not stored"])
@pytest.mark.parametrize("compression", ["jpeg", "zlib", "lzw", "jpeg2000"])
def test_damaged_tile_is_an_error_and_not_a_patch(how: str, compression: str, tmp_path: Path) -> None:
    whole = write_pyramid(tmp_path / "whole.tif", [IMAGE], compression=compression)
    path = write_pyramid(tmp_path / "a.tif", [IMAGE], compression=compression)
    damage(path, 5 + 6, how)  # second row, last of six tiles
    level = sl.io.open_image(path).levels[0]
    expected = sl.io.open_image(whole).levels[0]
    np.testing.assert_array_equal(level.blocks[0, 0, 0].compute(), expected.blocks[0, 0, 0].compute())
    with pytest.raises(
        sl.DataError, match=r"a\.tif .* level 0, rows 0 to 1024, columns 1024 to 1300: .*is damaged there"
    ):
        level.blocks[0, 0, 1].compute()


def test_crops_that_touch_a_lost_tile_are_set_aside(tmp_path: Path) -> None:
    """The rest of the slide is read as if nothing was lost, also of the chunk that the tile is in."""
    texture = np.random.default_rng(0).integers(60, 220, (1024, 1280, 3), dtype=np.uint8)
    whole = write_pyramid(tmp_path / "whole.tif", [texture], compression="zlib")
    path = write_pyramid(tmp_path / "a.tif", [texture], compression="zlib")
    damage(path, 6, "not stored")  # rows and columns 256 to 512
    with pytest.warns(sl.SealstWarning, match=r"a\.tif lacks 1 tile\(s\) of its picture"):
        slide = sl.io.open_image(path)
    np.testing.assert_array_equal(slide.lost, [[256, 256, 512, 512]])
    filled = pixels(slide.filled[0])
    assert (filled[256:512, 256:512] == 255).all()
    filled[256:512, 256:512] = texture[256:512, 256:512]
    np.testing.assert_array_equal(filled, texture)
    with pytest.raises(sl.DataError, match="tile 6 is not stored in the file"):
        slide.levels[0].compute()
    assert any("lacks 1 tile(s) of its picture" in problem.text for problem in sl.io.check(path).problems)
    with pytest.warns(sl.SealstWarning, match="lacks 1 tile"):
        sdata = sl.io.read_wsi(path)
    sl.pp.tile(sdata, crop_um=64, min_tissue=0)  # 128 px
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    table = sdata.tables["table"]
    centres = {tuple(xy) for xy in table.obsm["spatial"].astype(int)}
    every = {(64 + 128 * i, 64 + 128 * j) for i in range(10) for j in range(8)}
    assert every - centres == {(320, 320), (448, 320), (320, 448), (448, 448)}
    assert table.obs["crop_ok"].all()
    # Larger crops reach into the gap from outside.
    sl.pp.pair_crops(sdata, crop_um=128, crop_px=32, min_inside=0.2)
    near = (np.abs(table.obsm["spatial"] - 384) < 128 + 128).all(axis=1)
    assert set(table.obs["crop_reason"][near]) == {"lost pixels"}
    assert set(table.obs["crop_reason"][~near]) == {"ok"}
    # The mark is kept by a store, and there is none without a loss.
    sdata.write(tmp_path / "s.zarr")
    again = sl.io.read(tmp_path / "s.zarr")
    sl.pp.pair_crops(again, crop_um=128, crop_px=32, min_inside=0.2)
    assert (again.tables["table"].obs["crop_reason"] == table.obs["crop_reason"]).all()
    assert "lost" not in sl.io.read_wsi(whole).attrs["whole_he"]


def test_lost_tile_of_a_picture_with_spots(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [IMAGE, halved(IMAGE)], compression="zlib")
    damage(path, 0, "not stored")
    with pytest.warns(sl.SealstWarning, match="lacks 1 tile"):
        slide = sl.io.open_image(path)
    xy = np.array([[128.0, 128.0], [300.0, 200.0], [600.0, 600.0], [900.0, 900.0]])
    sdata = sl.io.from_arrays(slide, np.ones((4, 2)), xy, genes=["A", "B"], mpp=0.5, spot_um=55, section="a")
    sl.pp.pair_crops(sdata, crop_um=56, crop_px=32)
    assert list(sdata.tables["table"].obs["crop_reason"]) == ["lost pixels", "lost pixels", "ok", "ok"]
    again = sl.io.from_spatialdata(sdata, region="a_spots", image_key="a_he", section="b")
    sl.pp.pair_crops(again, crop_um=56, crop_px=32)
    assert list(again.tables["table"].obs["crop_reason"]) == ["lost pixels", "lost pixels", "ok", "ok"]
    with pytest.raises(
        sl.DataError, match="Every crop of 'a_spots' touches pixels that the file of image 'a_he' does not"
    ):
        sl.pp.pair_crops(sdata, crop_um=800, crop_px=32, min_inside=0.1)


def test_file_that_changed_after_it_was_opened(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", [IMAGE])
    level = sl.io.open_image(path).levels[0]
    write_pyramid(path, [picture(1400, 1290)])
    with pytest.raises(sl.DataError, match=r"a\.tif has changed since it was opened"):
        level.compute()
    path.unlink()
    with pytest.raises(sl.DataError, match=r"a\.tif could not be decoded at level 0.*No such file"):
        level.compute()


@pytest.mark.parametrize(
    ("image", "options", "found"),
    [
        (SMALL[..., 0], {"photometric": "minisblack"}, r"300x260 uint8 \(axes YX\), 1 channel\(s\) of 8 bit"),
        (SMALL.astype(np.uint16), {"photometric": "rgb"}, r"300x260x3 uint16 .*3 channel\(s\) of 16 bit"),
        (np.zeros((3, 64, 80), np.uint8), {"photometric": "minisblack"}, r"1 channel\(s\) of 8 bit"),
        (np.zeros((64, 80, 3), np.float32), {"photometric": "rgb"}, r"float32 .*32 bit"),
    ],
)
def test_pictures_that_are_no_he(image: np.ndarray, options: dict[str, Any], found: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", image, compression="zlib", **options)
    with pytest.raises(
        sl.DataError, match=rf"a\.tif holds .*{found}; an H&E image is 8-bit red, green and blue\. Convert"
    ):
        sl.io.open_image(tmp_path / "a.tif")


def test_levels_that_are_computed_are_told_from_stored_ones(tmp_path: Path) -> None:
    from sealst._section import image_levels
    from sealst._section.pyramid import is_computed

    flat = write_pyramid(tmp_path / "flat.tif", [np.tile(IMAGE, (2, 2, 1))], compression="zlib")
    sdata = sl.io.read_wsi(flat, section="s")
    assert [is_computed(level) for level in image_levels(sdata.images["s_he"])] == [False, True, True]
    sdata = sl.io.read_wsi(write_pyramid(tmp_path / "deep.tif", [IMAGE, halved(IMAGE)]), section="s")
    assert [is_computed(level) for level in image_levels(sdata.images["s_he"])] == [False, False]


# -- what the channels mean -------------------------------------------------------------------------------------------
STAINS = np.random.default_rng(0).poisson([[[6]], [[20]], [[3]]], (3, 120, 160)).astype(np.uint8)
#: stains that glow together on a quarter of the pixels
GLOWING = np.where(np.arange(160) % 4 == 0, np.reshape([220, 180, 200], (3, 1, 1)), 15).repeat(120, 1).astype(np.uint8)
LIGHT = np.moveaxis(picture(120, 160) // 2 + 127, 2, 0)


def named(*names: str, **channel: Any) -> dict[str, Any]:
    return {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": list(names)} | channel}


@pytest.mark.parametrize(
    ("pages", "options", "why"),
    [
        (STAINS, {"metadata": named("DAPI", "PanCK", "CD45")}, "called 'DAPI', 'PanCK', 'CD45'.* as in fluorescence"),
        (STAINS[[0, 1, 2, 0]], {"metadata": named("DAPI", "PanCK", "CD45", "CD3")}, "'DAPI', 'PanCK', 'CD45'"),
        (LIGHT, {"metadata": named("DAPI", "PanCK", "CD45")}, "called 'DAPI', 'PanCK', 'CD45'"),
        (LIGHT, {"metadata": named("1", "2", "3", Fluor=["Cy3"] * 3)}, r"fluorescence by its OME metadata .*Fluor Cy3"),
        (LIGHT, {"metadata": named("", "", "", EmissionWavelength=[461.0] * 3)}, "EmissionWavelength 461"),
        (LIGHT, {"metadata": named("b", "g", "r")}, "are 'b', 'g', 'r', not red, green, blue"),
        (STAINS, {"metadata": named("Channel 0", "Channel 1", "Channel 2")}, "3 grey channels .* no light background"),
        (STAINS, {"metadata": {"axes": "CYX"}}, "3 grey channels .* no light background"),
        (STAINS[[0, 1, 2, 0]], {"metadata": {"axes": "CYX"}}, "no light background"),
        (GLOWING, {"metadata": {"axes": "CYX"}}, "no light background"),
    ],
)  # fmt: skip
def test_fluorescence_is_no_he(pages: np.ndarray, options: dict[str, Any], why: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", pages, photometric="minisblack", **options)
    for read in (sl.io.open_image, sl.io.read_wsi):
        with pytest.raises(sl.DataError, match=rf"a\.ome\.tif .*{why}|channels of a\.ome\.tif .*{why}"):
            read(tmp_path / "a.ome.tif")
    (problem,) = sl.io.check(tmp_path / "a.ome.tif").problems
    assert problem.level == "error"


def test_fluorescence_of_imagej_and_qptiff_is_no_he(tmp_path: Path) -> None:
    labels = {"axes": "CYX", "Labels": ["DAPI", "FITC", "TRITC"]}
    tifffile.imwrite(tmp_path / "a.tif", LIGHT, imagej=True, metadata=labels)
    with pytest.raises(sl.DataError, match="called 'DAPI', 'FITC', 'TRITC'"):
        sl.io.open_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", STAINS, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(sl.DataError, match="no light background"):
        sl.io.open_image(tmp_path / "b.tif")
    kind = "PerkinElmer-QPI-ImageDescription"
    text = f"<{kind}><ImageType>FullResolution</ImageType>{{}}</{kind}>"
    for name, entry in (("c", "<Name>{}</Name>"), ("d", "<Biomarker>{}</Biomarker>"), ("e", "")):
        with tifffile.TiffWriter(tmp_path / f"{name}.qptiff") as file:
            for page, stain in zip(LIGHT, ("DAPI", "Opal 520", "AF"), strict=True):
                file.write(page, photometric="minisblack", metadata=None, software="PerkinElmer-QPI",
                           description=text.format(entry.format(stain)))  # fmt: skip
        with pytest.raises(sl.DataError, match="one stain of a QPTIFF" if name == "e" else "'DAPI', 'Opal 520', 'AF'"):
            sl.io.open_image(tmp_path / f"{name}.qptiff")


@pytest.mark.parametrize("names", [("r", "g", "b"), ("Red", "Green", "Blue"), ("red_1", "green_2", "blue_3")])
def test_grey_pages_that_are_said_to_be_colours_are_read_whatever_they_show(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", STAINS, photometric="minisblack", metadata=named(*names))
    np.testing.assert_array_equal(np.asarray(sl.io.open_image(tmp_path / "a.ome.tif").levels[0]), STAINS)


def test_grey_pages_without_names_are_colours_where_the_background_is_light(tmp_path: Path) -> None:
    # Black around the scanned area is no dark background.
    padded = np.zeros((3, 240, 320), np.uint8)
    padded[:, :120, :160] = LIGHT
    for pages in (LIGHT, padded):
        tifffile.imwrite(tmp_path / "a.ome.tif", pages, photometric="minisblack", metadata=named("C:0", "C:1", "C:2"))
        np.testing.assert_array_equal(np.asarray(sl.io.open_image(tmp_path / "a.ome.tif").levels[0]), pages)


def palette_of(image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    indices = Image.fromarray(image).quantize(64)
    colours = np.zeros((256, 3), np.uint16)
    colours[:64] = np.reshape(indices.getpalette()[: 64 * 3], (64, 3))
    return np.asarray(indices), {"photometric": "palette", "colormap": colours.T * 257}


def test_palette_and_inks_keep_the_stated_scale(tmp_path: Path) -> None:
    indices, options = palette_of(SMALL)
    tifffile.imwrite(tmp_path / "palette.tif", indices, **options, **CM)
    inks = np.asarray(Image.fromarray(SMALL).convert("CMYK"))
    tifffile.imwrite(tmp_path / "inks.tif", inks, photometric="separated", **CM)
    for name in ("palette.tif", "inks.tif"):
        slide = sl.io.open_image(tmp_path / name)
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.5), "TIFF resolution tags")
        assert np.abs(pixels(slide.levels[0]).astype(int) - SMALL).mean() < 20
        with pytest.raises(sl.ScaleError, match=r"0\.25 µm per pixel by argument `mpp`, 0\.5 by TIFF"):
            sl.io.open_image(tmp_path / name, mpp=0.25)


def test_the_largest_palette_page_is_read_and_not_the_first(tmp_path: Path) -> None:
    indices, options = palette_of(SMALL)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(indices[::4, ::4], metadata=None, **options)
        file.write(indices, metadata=None, **options)
    slide = sl.io.open_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(slide.levels[0]), (options["colormap"].T // 257)[indices])


@pytest.mark.parametrize("kind", ["palette", "inks", "colours", "times", "planar"])
def test_several_pictures_of_one_size_are_refused(kind: str, tmp_path: Path) -> None:
    twice: np.ndarray = np.stack([SMALL, 255 - SMALL])
    options: dict[str, Any] = {"photometric": "rgb"}
    if kind == "palette":
        indices, options = palette_of(SMALL)
        twice = np.stack([indices, 63 - indices])
    elif kind == "inks":
        twice = np.stack([np.asarray(Image.fromarray(SMALL).convert("CMYK"))] * 2)
        options = {"photometric": "separated"}
    elif kind == "times":
        options |= {"metadata": {"axes": "TYXS"}, "ome": True}
    elif kind == "planar":
        twice, options = np.moveaxis(twice, 3, 1), options | {"planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", twice, **options)
    with pytest.raises(sl.DataError, match=r"a\.tif holds 2 pictures of 260 x 300 px .* none is known to be the H&E"):
        sl.io.open_image(tmp_path / "a.tif")
