"""Read TIFF files of every layout chunk by chunk; each of the file's tiles is decoded once per chunk."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from xml.etree import ElementTree

import dask.array as da
import numpy as np

from sealst._errors import DataError
from sealst._logging import logger
from sealst._section.colour import DARK, check_colours, is_dark
from sealst._section.pyramid import CHUNK_PX
from sealst._validate import listed
from sealst.io._images.stated_scale import Stated, of_tiff, ome_pixels

#: compressions (JPEG, JPEG 2000) whose data end with a marker
_END_MARKED, _END = (7, 33003, 33005, 34712), b"\xff\xd9"
_APERIO_JPEG2000_YCBCR = 33003
#: general-purpose compressions, which know nothing of colour
_COLOURLESS = (1, 5, 8, 32773, 32946, 34925, 50000, _APERIO_JPEG2000_YCBCR)
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 1, 2, 3, 5, 6
_PAGE_NAME = 285
#: pictures of the glass around the section; they stand beside the pyramid in slide files
_BESIDE = re.compile(r"\b(label|macro|thumbnail|overview)\b", re.IGNORECASE)
#: pixels of a chunk of strips, which always span the image's width
_STRIP_CHUNK = 4 * CHUNK_PX**2
_MIN_STRIP_ROWS = 128
_DIRECTORIES = 16


class Opened(NamedTuple):
    """Levels of an image file (finest first), what it states about its scale, and places that it does not hold."""

    levels: list[da.Array]
    stated: Stated
    #: boxes (x0, y0, x1, y1) of the finest level, and the levels with white in their place
    lost: np.ndarray
    filled: list[da.Array]


@dataclass(frozen=True)
class _Level:
    """One level: a page that holds all channels, or one page per channel."""

    pages: tuple[Any, ...]
    height: int
    width: int
    #: whether a tile that is not stored is background, as on Philips slides, and not a loss
    sparse: bool

    @property
    def colours(self) -> Any:
        """How the file says that numbers become colours (photometric interpretation)."""
        return self.pages[0].keyframe.photometric

    @property
    def chunks(self) -> tuple[int, int]:
        """Rows and columns of a chunk: whole tiles of the file, about 1024 px."""
        page = self.pages[0].keyframe
        if page.is_final:
            return CHUNK_PX, CHUNK_PX
        if page.is_tiled:
            sides = page.tilelength, page.tilewidth
            rows, columns = (side * max(1, CHUNK_PX // side) for side in sides)
            return rows, columns
        wanted = min(CHUNK_PX, max(_MIN_STRIP_ROWS, _STRIP_CHUNK // self.width))
        return page.rowsperstrip * max(1, wanted // page.rowsperstrip), self.width


@dataclass(frozen=True)
class _File:
    """A file as it was when it was opened. Holds no handle, so that it goes to other processes as it is."""

    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> _File:
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns)


def open_tiff(path: Path) -> Opened:
    """Open a TIFF file; no pixel is read, but of grey pages that nothing says to be red, green and blue."""
    file = _File.of(path)
    levels, stated, named = _directory(file)
    for level in levels:
        for page in level.pages:
            ends = np.asarray(page.dataoffsets, dtype=np.int64) + np.asarray(page.databytecounts, dtype=np.int64)
            frame = page.keyframe
            expected, end = 1, ends.max(initial=0)
            if not frame.is_final:
                planes = 1 if frame.planarconfig == 1 else frame.samplesperpixel
                down = math.ceil(level.height / (frame.tilelength if frame.is_tiled else frame.rowsperstrip))
                expected = planes * down * (math.ceil(level.width / frame.tilewidth) if frame.is_tiled else 1)
            elif len(ends):
                end = page.dataoffsets[0] + frame.nbytes
            if len(ends) < expected or end > file.size:
                raise DataError(
                    f"{path.name} is cut off: its level of {level.width} x {level.height} px needs {expected} tile(s) "
                    f"up to byte {end}, the file has {len(ends)} and {file.size} bytes. Copy or export it again."
                )
    if levels[0].colours in (_PALETTE, _CMYK):
        raise IndirectColour(path.name, levels[0].pages[0].index, dict(stated))
    arrays = [_array(file, i, level) for i, level in enumerate(levels)]
    if levels[0].colours == _GREY and not named and is_dark(arrays):
        raise DataError(
            f"{path.name} holds {len(levels[0].pages) if len(levels[0].pages) > 1 else 'several'} grey channels that "
            f"nothing names, and {DARK} If it is one, save it as RGB (`tifffile.imwrite(path, image, "
            "photometric='rgb')`)."
        )
    lost = _lost_places(levels)
    filled = [_array(file, i, level, white=True) for i, level in enumerate(levels)] if len(lost) else []
    return Opened(arrays, dict(stated), lost, filled)


def _array(file: _File, number: int, level: _Level, *, white: bool = False) -> da.Array:
    return da.map_blocks(
        _read_chunk,
        file,
        number,
        white,
        chunks=da.core.normalize_chunks((3, *level.chunks), (3, level.height, level.width)),
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), dtype=np.uint8),
    )


def _lost_places(levels: Sequence[_Level]) -> np.ndarray:
    """Boxes (x0, y0, x1, y1) in pixels of the finest level of tiles that the file lists and does not hold, (n, 4)."""
    boxes = []
    finest = levels[0]
    for level in levels:
        for page in level.pages:
            frame = page.keyframe
            if level.sparse or frame.is_final:
                continue
            rows, columns = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (frame.rowsperstrip, level.width)
            down, across = math.ceil(level.height / rows), math.ceil(level.width / columns)
            held = np.asarray(page.databytecounts, dtype=np.int64) * np.asarray(page.dataoffsets, dtype=np.int64)
            at = np.flatnonzero(held == 0) % (down * across)
            corner = np.column_stack([at % across * columns, at // across * rows])
            box = np.hstack([corner, np.minimum(corner + [columns, rows], [level.width, level.height])])
            boxes.append(box * np.tile([finest.width / level.width, finest.height / level.height], 2))
    return np.unique(np.vstack([np.empty((0, 4)), *boxes]), axis=0)


def lost_in(path: Path) -> np.ndarray:
    """As of `Opened.lost`, of a file that another library reads; none where it is no TIFF file that is read here."""
    try:
        return _lost_places(_directory(_File.of(path))[0])
    except DataError:
        return np.empty((0, 4))


def spanning(shapes: Sequence[tuple[int, int]], first: int = 0) -> list[int]:
    """Which of these (height, width) can be levels of picture `first`: its proportions, each smaller than the last.

    A level of half the size may be rounded up or down along each axis.
    """
    height, width = shapes[first]
    kept = [first]
    for i in sorted(range(len(shapes)), key=lambda i: -shapes[i][0] * shapes[i][1]):
        h, w = shapes[i]
        finer = shapes[kept[-1]]
        if h < finer[0] and w < finer[1] and abs(w * height - h * width) <= height + width:
            kept.append(i)
    return kept


# Parsed directories, not open files: unpickled arrays and worker processes parse the file once each.
@functools.lru_cache(maxsize=_DIRECTORIES)
def _directory(file: _File) -> tuple[tuple[_Level, ...], Stated, bool]:
    """Levels, what is stated of the scale, and whether grey channels are said to be red, green and blue."""
    return _parsed(file.path, Path(file.path).name)


def examine(stream: BinaryIO, name: str) -> tuple[int, Stated]:
    """Check a TIFF file that is not opened where it lies; position of its picture's page, and the scale it states."""
    levels, stated, _ = _parsed(stream, name)
    return levels[0].pages[0].index, stated


def _parsed(file: str | BinaryIO, name: str) -> tuple[tuple[_Level, ...], Stated, bool]:
    import tifffile

    try:
        with tifffile.TiffFile(file) as tif:
            pyramid = _pyramid(tif, name)
            levels = tuple(_level(tif, one, name) for one in pyramid)
            named = _check_meaning(tif, pyramid[0], levels[0], name)
            return levels, of_tiff(tif, levels[0].pages[0].keyframe), named
    except DataError:
        raise
    except Exception as error:  # a damaged directory can fail in any way
        raise DataError(
            f"{name} could not be read as a TIFF file: {error}. Is it complete? Copy or export it again."
        ) from error


def _pyramid(tif: Any, name: str) -> list[Any]:
    """Levels (series of tifffile) of the largest picture in a file, finest first."""
    found = [(series.name, one) for series in tif.series for one in series.levels if 0 not in one.shape]
    area = [one.keyframe.imagelength * one.keyframe.imagewidth for _, one in found]
    main = int(np.argmax(area))
    largest = found[main][1]
    own = next(series.levels for series in tif.series if any(one is largest for one in series.levels))
    picture = [
        one for title, one in found if any(one is level for level in own) or _may_be_level(tif, title, one, largest)
    ]
    sizes = [(one.keyframe.imagelength, one.keyframe.imagewidth) for one in picture]
    kept = spanning(sizes, next(i for i, one in enumerate(picture) if one is largest))
    if len(kept) < len(found):
        logger.info("%s: %d picture(s) that are no levels of the largest are left out", name, len(found) - len(kept))
    return [picture[i] for i in kept]


def _may_be_level(tif: Any, title: str, series: Any, largest: Any) -> bool:
    page, finest = series.keyframe, largest.keyframe
    # Another picture may have the same proportions, so a level must be said to be one.
    if tif.is_ome or not (tif.is_svs or page.is_reduced):
        return False
    # Masks have fewer channels than the picture that they belong to.
    if (page.dtype, page.samplesperpixel) != (finest.dtype, finest.samplesperpixel):
        return False
    # Every page of an Aperio slide repeats the description of the slide.
    text = "" if tif.is_svs else page.description[:80]
    return _BESIDE.search(f"{title} {series.name} {text}") is None


def _level(tif: Any, series: Any, name: str) -> _Level:
    page = series.keyframe
    if page.photometric not in (_GREY, _RGB, _PALETTE, _CMYK, _YCBCR):
        stored = getattr(page.photometric, "name", page.photometric)
        raise DataError(f"{name} stores its colours as {stored}; save it as RGB.")
    pages = [series.pages[0]]
    depth, channels = page.bitspersample, page.samplesperpixel
    axes = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YX" and n > 1}
    if page.photometric == _GREY and channels == 1 and axes in ({"C": 3}, {"C": 4}):
        pages, channels = list(series.pages)[:3], axes["C"]
    usual = depth == 8 and channels in (3, 4)
    if page.photometric in (_PALETTE, _CMYK):
        usual = depth <= 8 and channels == (1 if page.photometric == _PALETTE else 4)
    if not usual or page.dtype != np.uint8 or len(pages) not in (1, 3) or None in pages:
        raise DataError(
            f"{name} holds {'x'.join(map(str, series.shape))} {page.dtype} (axes {series.axes}), {channels} channel(s) "
            f"of {depth} bit; an H&E image is 8-bit red, green and blue. Convert it, e.g. scale 16-bit values by "
            "`(image / 256).astype('uint8')` and stack the channels last, then save with "
            "`tifffile.imwrite(path, image, photometric='rgb', tile=(256, 256))`. A fluorescence image is no H&E."
        )
    if any(one.parent.filehandle.path != tif.filehandle.path for one in pages):
        raise DataError(f"{name} keeps its pixels in other files of an OME data set; save the picture as one file.")
    if page.imagedepth > 1:
        raise DataError(f"{name} is a volume of {page.imagedepth} planes; save one plane as a picture.")
    # Have tifffile read what it reads on demand, as the file is closed afterwards.
    for one in pages:
        _ = one.dataoffsets, one.databytecounts, one.keyframe.jpegtables, one.keyframe.decode
        _ = one.keyframe.is_final
    return _Level(tuple(pages), page.imagelength, page.imagewidth, bool(tif.is_philips))


def _check_meaning(tif: Any, series: Any, level: _Level, name: str) -> bool:
    """Refuse several pictures and fluorescence; whether the file says that its channels are red, green and blue."""
    frame = level.pages[0].keyframe
    grey = level.colours == _GREY
    further = {axis: n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXS" and n > 1}
    if len(level.pages) == 3:
        further.pop("C", None)
    if further:
        raise DataError(
            f"{name} holds {math.prod(further.values())} pictures of {frame.imagewidth} x {frame.imagelength} px (axes "
            f"{series.axes}): channels, planes, times or pages, of which none is known to be the H&E. Save the one "
            "that is as a picture of its own."
        )
    said: list[list[str]] = []
    if tif.is_ome:
        own = ome_pixels(tif.ome_metadata, frame)[:1]
        channels = [one for pixels in own for one in pixels if _tag(one) == "Channel"]
        for channel in channels:
            lit = [channel.get(key, "") for key in _LIGHT]
            glows = [value for value in lit if "fluorescence" in value.lower()]
            if grey and not any(light in value.lower() for value in lit for light in ("bright", "transmitted")):
                glows += [f"{key} {channel.get(key)}" for key in _FLUORESCENT if channel.get(key)]
            if glows:
                raise DataError(
                    f"{name} is fluorescence by its OME metadata (channel {channel.get('Name', '')!r}: {listed(glows)})"
                    ", not an H&E. Give the H&E of the section."
                )
        said.append([one.get("Name", "") for one in channels])
    if tif.is_qpi:
        if grey:
            said.append([_name_in_qpi(page) or "one stain of a QPTIFF" for page in series.pages])
    elif tif.is_imagej:
        said.append([str(label) for label in (tif.imagej_metadata or {}).get("Labels") or ()])
    if grey:
        said.append([str(page.aspage().tags.valueof(_PAGE_NAME, default="")) for page in series.pages])
    # A single name is that of the whole picture, and may be anything.
    colours = [check_colours(names, what=name) for names in said if len(names) > 2]
    return any(colours)


#: attributes of an OME channel that a stain that glows has, and that say how it was lit
_FLUORESCENT, _LIGHT = ("Fluor", "EmissionWavelength"), ("ContrastMethod", "IlluminationType", "Fluor")


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _name_in_qpi(page: Any) -> str:
    """Name of the stain that a page of a QPTIFF shows."""
    try:
        root = ElementTree.fromstring(page.aspage().description)
    except ElementTree.ParseError:
        return ""
    return next((text.strip() for key in ("Biomarker", "Name") if (text := root.findtext(f".//{key}"))), "")


class IndirectColour(Exception):
    """Picture whose numbers become colours by a table or by inks; it was checked as every other."""

    def __init__(self, name: str, page: int, stated: Stated) -> None:
        super().__init__(f"{name} stores its colours by a palette or as inks")
        #: position of the page in the file
        self.page = page
        #: what the file states of its scale
        self.stated = stated


def _read_chunk(file: _File, number: int, white: bool = False, block_info: Any = None) -> np.ndarray:
    _, (top, bottom), (left, right) = block_info[None]["array-location"]
    name, place = Path(file.path).name, f"level {number}, rows {top} to {bottom}, columns {left} to {right}"
    try:
        if _File.of(Path(file.path)) != file:
            raise DataError(f"{name} has changed since it was opened; open it again.")
        level = _directory(file)[0][number]
        level = replace(level, sparse=True) if white else level
        parts = [_window(file, level, page, (top, bottom, left, right)) for page in level.pages]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return np.moveaxis(pixels[..., :3], 2, 0)
    except DataError:
        raise
    except Exception as error:  # decoders fail in many ways; a patch of one colour would look like glass
        raise DataError(
            f"{name} could not be decoded at {place}: {error}. The file is damaged there; copy or export it again."
        ) from error


def _window(file: _File, level: _Level, page: Any, window: tuple[int, int, int, int]) -> np.ndarray:
    """Pixels (y, x, channels) of a page."""
    top, bottom, left, right = window
    frame = page.keyframe
    if frame.is_final:
        # Uncompressed, in one piece: only the window's own bytes are read.
        planes, _, height, width, samples = frame.shaped
        shape = (planes, height, width, samples)
        data = np.memmap(file.path, dtype=np.uint8, mode="r", offset=page.dataoffsets[0], shape=shape)
        part = np.array(data[:, top:bottom, left:right])
        return _as_rgb(frame, part[0] if planes == 1 else np.moveaxis(part[..., 0], 0, 2))
    planes = 1 if frame.planarconfig == 1 else frame.samplesperpixel
    rows, columns = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (frame.rowsperstrip, level.width)
    down, across = math.ceil(level.height / rows), math.ceil(level.width / columns)
    out = np.empty((bottom - top, right - left, frame.samplesperpixel), dtype=np.uint8)
    with open(file.path, "rb") as handle:
        for plane in range(planes):
            channels = slice(None) if planes == 1 else slice(plane, plane + 1)
            for row in range(top // rows, math.ceil(bottom / rows)):
                for column in range(left // columns, math.ceil(right / columns)):
                    tile = _tile(handle, level, page, (plane * down + row) * across + column)
                    y0, x0 = max(top, row * rows), max(left, column * columns)
                    y1, x1 = min(bottom, (row + 1) * rows), min(right, (column + 1) * columns)
                    # A tile that does not reach as far as the picture leaves a shape that does not fit: an error.
                    part = tile[y0 - row * rows : y1 - row * rows, x0 - column * columns : x1 - column * columns]
                    if part.shape[:2] != (y1 - y0, x1 - x0):
                        raise ValueError(f"the tile in row {row}, column {column} is too small")
                    out[y0 - top : y1 - top, x0 - left : x1 - left, channels] = part
    return out


def _tile(handle: Any, level: _Level, page: Any, index: int) -> np.ndarray:
    frame = page.keyframe
    offset, size = page.dataoffsets[index], page.databytecounts[index]
    if not size or not offset:
        if level.sparse:
            rows, columns = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (level.height, level.width)
            return np.full((rows, columns, frame.samplesperpixel), 255, dtype=np.uint8)
        raise ValueError(f"tile {index} is not stored in the file")
    handle.seek(offset)
    data = handle.read(size)
    # Decoders of JPEG and JPEG 2000 fill what is missing with one colour and call that a success.
    if frame.compression in _END_MARKED and not data.rstrip(b"\0").endswith(_END):
        raise ValueError(f"tile {index} is cut off")
    decoded, _, _ = frame.decode(data, index, jpegtables=frame.jpegtables)
    return _as_rgb(frame, decoded[0])


def _as_rgb(page: Any, pixels: np.ndarray) -> np.ndarray:
    """Convert what decoders leave as luminance and chroma (YCbCr)."""
    ycbcr = page.compression == _APERIO_JPEG2000_YCBCR or (
        page.photometric == _YCBCR and page.compression in _COLOURLESS
    )
    if not ycbcr:
        return pixels
    from PIL import Image

    height, width = pixels.shape[:2]
    picture = Image.frombytes("YCbCr", (width, height), np.ascontiguousarray(pixels[..., :3]).tobytes())
    return np.asarray(picture.convert("RGB"))
