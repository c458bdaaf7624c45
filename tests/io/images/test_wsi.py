"""Slides in the formats of scanner vendors, and slides read as sections."""

from __future__ import annotations

import pickle
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
import spatialdata as sd
import tifffile
from PIL import Image

import sealst as sl
from sealst._section import image_levels, mpp_of
from sealst.io._images import vendor as _vendor
from sealst.io._images.wsi import recognise

openslide = pytest.importorskip("openslide")
pytest.importorskip("wsidata")


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    blue = 128 + 100 * np.sin(x / 37) * np.cos(y / 23)
    return np.stack([x * 255 // width, y * 255 // height, blue], axis=-1).astype(np.uint8)


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def pixels(level) -> np.ndarray:
    return np.moveaxis(np.asarray(level), 0, 2)


IMAGE = picture(1500, 1240)


def write_svs(path: Path, *, mpp: str = "0.4990") -> Path:
    """Slide laid out as Aperio's scanners do: baseline, thumbnail, quarter size, label, macro."""
    head = f"Aperio Image Library v12.0.0\r\n1240x1500 [0,0 1240x1500] (240x240) JPEG/RGB Q=90|AppMag = 20|MPP = {mpp}"
    options = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as file:
        file.write(IMAGE, tile=(240, 240), compression="jpeg", description=head, **options)
        file.write(reduced(IMAGE, 8), rowsperstrip=16, compression="jpeg", description=head, **options)
        file.write(reduced(IMAGE, 4), tile=(240, 240), compression="jpeg", description=head, **options)
        for name, kind, shape in (("label", 1, (400, 300)), ("macro", 9, (300, 900))):
            text = f"Aperio Image Library v12.0.0\r\n{name} {shape[1]}x{shape[0]}"
            file.write(
                picture(*shape), rowsperstrip=16, compression="lzw", subfiletype=kind, description=text, **options
            )
    return path


def write_dicom(path: Path, image: np.ndarray, *, mpp: float, kind: str, number: int) -> Path:
    """One file of a DICOM slide: tiles of 256 px, uncompressed, explicit VR little endian."""

    def element(group: int, tag: int, vr: str, value: bytes | str) -> bytes:
        if isinstance(value, str):
            value = value.encode() + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
        size = struct.pack("<HI", 0, len(value)) if vr in ("OB", "SQ") else struct.pack("<H", len(value))
        return struct.pack("<HH2s", group, tag, vr.encode()) + size + value

    def sequence(group: int, tag: int, body: bytes) -> bytes:
        return element(group, tag, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body)

    height, width = image.shape[:2]
    down, across = -(-height // 256), -(-width // 256)
    padded = np.full((down * 256, across * 256, 3), 255, np.uint8)
    padded[:height, :width] = image
    frames = padded.reshape(down, 256, across, 256, 3).swapaxes(1, 2)
    slide, uid = "1.2.840.10008.5.1.4.1.1.77.1.6", f"1.2.3.5.{number}"
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", slide) + element(2, 3, "UI", uid)
    meta += element(2, 0x10, "UI", "1.2.840.10008.1.2.1") + element(2, 0x12, "UI", "1.2.3.6")
    texts = [(8, 8, "CS", kind), (8, 0x16, "UI", slide), (8, 0x18, "UI", uid), (8, 0x60, "CS", "SM")]
    texts += [(0x20, 0xD, "UI", "1.2.3.3"), (0x20, 0xE, "UI", "1.2.3.4"), (0x20, 0x52, "UI", "1.2.3.7")]
    texts += [(0x20, 0x9311, "CS", "TILED_FULL")]
    body = b"".join(element(*text) for text in texts)
    body += element(0x28, 2, "US", struct.pack("<H", 3)) + element(0x28, 4, "CS", "RGB")
    body += element(0x28, 6, "US", bytes(2)) + element(0x28, 8, "IS", str(down * across))
    for tag, value in ((0x10, 256), (0x11, 256), (0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0)):
        body += element(0x28, tag, "US", struct.pack("<H", value))
    body += element(0x48, 6, "UL", struct.pack("<I", width)) + element(0x48, 7, "UL", struct.pack("<I", height))
    body += sequence(0x48, 0x105, element(0x48, 0x106, "SH", "1")) + element(0x48, 0x303, "UL", struct.pack("<I", 1))
    spacing = element(0x28, 0x30, "DS", f"{mpp / 1e3:.7f}\\{mpp / 1e3:.7f}")
    body += sequence(0x5200, 0x9229, sequence(0x28, 0x9110, spacing)) + element(0x7FE0, 0x10, "OB", frames.tobytes())
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + body)
    return path


# -- formats ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("installed", [True, False], ids=["openslide", "tifffile"])
def test_aperio_slide(installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs")
    assert openslide.OpenSlide.detect_format(path) == "aperio"
    if not installed:
        monkeypatch.setitem(sys.modules, "wsidata", None)
    slide = sl.io.open_image(path)
    assert slide.mpp == pytest.approx(0.499)
    assert slide.mpp_source == ("openslide.mpp-x and mpp-y" if installed else "Aperio MPP")
    assert [level.shape[1:] for level in slide.levels] == [(1500, 1240), (375, 310)]
    assert slide.levels[0].chunksize == (3, 960, 960)
    reader = openslide.OpenSlide(path)
    for i, level in enumerate(slide.levels):
        np.testing.assert_array_equal(pixels(level), tifffile.imread(path, series=0, level=i))
        seen = reader.read_region((0, 0), i, reader.level_dimensions[i]).convert("RGB")
        np.testing.assert_array_equal(pixels(level), np.asarray(seen))
    copied = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(pixels(copied.levels[1]), pixels(slide.levels[1]))


@pytest.mark.parametrize("installed", [True, False], ids=["openslide", "tifffile"])
def test_aperio_slide_with_a_decimal_comma(installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Aperio Image Library v12\r\n512x512 (256x256)|AppMag = 40|MPP = 0,2520"
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "metadata": None, "software": False}
    tifffile.imwrite(tmp_path / "a.svs", IMAGE[:512, :512], description=text, **options)
    if not installed:
        monkeypatch.setitem(sys.modules, "wsidata", None)
    slide = sl.io.open_image(tmp_path / "a.svs")
    assert slide.mpp == pytest.approx(0.252)
    np.testing.assert_array_equal(pixels(slide.levels[0]), tifffile.imread(tmp_path / "a.svs"))
    with pytest.raises(sl.ScaleError, match=r"0\.5 µm per pixel by argument `mpp`, 0\.252 by"):
        sl.io.open_image(tmp_path / "a.svs", mpp=0.5)


@pytest.mark.parametrize("compression", [33003, 33005])
def test_aperio_jpeg2000(compression: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aperio's two kinds of JPEG 2000: 33003 keeps luminance and chroma, 33005 red, green and blue."""
    ycbcr = compression == 33003
    image = np.asarray(Image.fromarray(IMAGE[:512, :512]).convert("YCbCr")) if ycbcr else IMAGE[:512, :512]
    corners = [(y, x) for y in (0, 256) for x in (0, 256)]
    blocks = (np.ascontiguousarray(image[y : y + 256, x : x + 256]) for y, x in corners)
    tifffile.imwrite(
        tmp_path / "a.svs",
        (imagecodecs.jpeg2k_encode(block, level=0, codecformat="j2k", mct=False) for block in blocks),
        shape=(512, 512, 3),
        dtype="uint8",
        tile=(256, 256),
        photometric="ycbcr" if ycbcr else "rgb",
        subsampling=(1, 1) if ycbcr else None,
        compression=compression,
        metadata=None,
        software=False,
        description="Aperio Image Library v1\r\n512x512 (256x256)|MPP = 0.5",
    )
    by_openslide = pixels(sl.io.open_image(tmp_path / "a.svs").levels[0])
    monkeypatch.setitem(sys.modules, "wsidata", None)
    by_tifffile = pixels(sl.io.open_image(tmp_path / "a.svs").levels[0])
    np.testing.assert_allclose(by_tifffile.astype(int), by_openslide, atol=1)
    np.testing.assert_allclose(by_tifffile.astype(int), IMAGE[:512, :512], atol=4 if ycbcr else 0)


def test_dicom_slide(tmp_path: Path) -> None:
    folder = tmp_path / "slide"
    folder.mkdir()
    image = IMAGE[:700, :900]
    write_dicom(folder / "a.dcm", image[:250, :200], mpp=1, kind="ORIGINAL\\PRIMARY\\LABEL\\NONE", number=3)
    write_dicom(folder / "b.dcm", reduced(image, 2), mpp=1, kind="DERIVED\\PRIMARY\\VOLUME\\RESAMPLED", number=2)
    write_dicom(folder / "c.dcm", image, mpp=0.5, kind="ORIGINAL\\PRIMARY\\VOLUME\\NONE", number=1)
    for path in (folder, folder / "b.dcm"):
        slide = sl.io.open_image(path)
        assert slide.mpp == pytest.approx(0.5)
        assert len(slide.levels) == 2
        np.testing.assert_array_equal(pixels(slide.levels[0]), image)
        np.testing.assert_array_equal(pixels(slide.levels[1]), reduced(image, 2))
    assert recognise(folder)


def test_areas_that_were_not_scanned_have_the_background_colour() -> None:
    region = Image.new("RGBA", (4, 2))
    region.putpixel((1, 0), (200, 10, 20, 255))
    reader = SimpleNamespace(
        file="a.mrxs",
        properties=SimpleNamespace(level_downsample=[1.0]),
        reader=SimpleNamespace(read_region=lambda *_: region),
        raw_properties={},
    )
    place = {None: {"array-location": [(0, 3), (0, 2), (0, 4)]}}
    found = np.moveaxis(_vendor._read_chunk(reader, 0, place), 0, 2)
    assert found[0, 1].tolist() == [200, 10, 20]
    assert found[1, 1].tolist() == [255, 255, 255]
    reader.raw_properties = {"openslide.background-color": "F0F1F2"}
    assert _vendor._read_chunk(reader, 0, place)[:, 1, 1].tolist() == [240, 241, 242]


def test_formats_that_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wsidata", None)
    for name in ("a.mrxs", "a.ndpi", "a.dcm", "b.svs"):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(sl.DataError, match=rf'{name} is a slide .*pip install "sealst\[wsi\]"'):
            sl.io.open_image(tmp_path / name)


def test_damaged_slide(tmp_path: Path) -> None:
    (tmp_path / "text.ndpi").write_text("no slide")
    with pytest.raises(sl.DataError, match=r"OpenSlide cannot open text\.ndpi: .*Is the slide complete\?"):
        sl.io.open_image(tmp_path / "text.ndpi")
    path = write_svs(tmp_path / "a.svs")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[5], page.databytecounts[5]  # first row, last of six tiles
    whole = pixels(sl.io.open_image(path).levels[0])
    with open(path, "r+b") as file:
        file.seek(offset + size // 2)
        file.write(bytes(size - size // 2))
    level = sl.io.open_image(path).levels[0]
    for _ in range(2):
        with pytest.raises(
            sl.DataError, match=r"a\.svs .* level 0, rows 0 to 960, columns 960 to 1240: .*damaged there"
        ):
            level.blocks[0, 0, 1].compute()
        # The rest of the slide can still be read.
        np.testing.assert_array_equal(pixels(level.blocks[0, 0, 0]), whole[:960, :960])


# -- sections ---------------------------------------------------------------------------------------------------------
def test_slide_as_a_section(tmp_path: Path) -> None:
    sdata = sl.io.read_wsi(write_svs(tmp_path / "Case 7 (b).svs"), patient="p7", organ="breast")
    assert list(sdata.images) == ["Case_7__b__he"]
    assert not sdata.tables
    image = sdata.images["Case_7__b__he"]
    assert mpp_of(image) == pytest.approx(0.499)
    levels = image_levels(image)
    assert len(levels) == 2
    np.testing.assert_array_equal(pixels(levels[0]), tifffile.imread(tmp_path / "Case 7 (b).svs", series=0, level=0))
    # Levels are placed by their true size, not by a factor of 4.
    assert float(levels[1].x[-1]) == pytest.approx(1240 - 2)
    facts = sdata.attrs["Case_7__b__he"]
    assert facts["patient"] == "p7"
    assert facts["organ"] == "breast"
    assert facts["mpp_source"] == "openslide.mpp-x and mpp-y"
    sdata.write(tmp_path / "a.zarr")
    again = sd.read_zarr(tmp_path / "a.zarr")
    assert again.attrs["Case_7__b__he"] == facts
    np.testing.assert_array_equal(pixels(image_levels(again.images["Case_7__b__he"])[1]), pixels(levels[1]))


def test_flat_slide_gets_coarser_levels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.ome.tif", IMAGE, photometric="rgb", compression="zlib", tile=(256, 256))
    sdata = sl.io.read_wsi(tmp_path / "x.ome.tif", mpp=0.5)
    levels = image_levels(sdata.images["x_he"])
    assert [level.shape[1:] for level in levels] == [(1500, 1240), (750, 620)]
    np.testing.assert_allclose(pixels(levels[1]), reduced(IMAGE, 2), atol=1)


def test_slide_without_a_scale(tmp_path: Path) -> None:
    Image.fromarray(IMAGE[:300, :300]).save(tmp_path / "a.png", dpi=(300, 300))
    with pytest.raises(sl.ScaleError, match=r"a\.png does not state its physical scale\. Pass `mpp=`"):
        sl.io.read_wsi(tmp_path / "a.png")
    sdata = sl.io.read_wsi(tmp_path / "a.png", mpp=0.5, section="s")
    assert mpp_of(sdata.images["s_he"]) == 0.5
    assert sdata.attrs["s_he"]["patient"] == "s"
    with pytest.raises(sl.ScaleError, match=r"0\.25 .* by argument `mpp`, 0\.499 by openslide"):
        sl.io.read_wsi(write_svs(tmp_path / "a.svs"), mpp=0.25)
    with pytest.raises(sl.DataError, match="`section` must be a name"):
        sl.io.read_wsi(tmp_path / "a.png", mpp=0.5, section="a/b")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.svs", True), ("a.ome.tif", True), ("a.QPTIFF", True), ("a.csv", False), ("a.h5ad", False), ("a.png", False)],
)
def test_recognised_by_name(name: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert recognise(tmp_path / name) is expected
    assert not recognise(tmp_path)
