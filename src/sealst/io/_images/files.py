"""Open image files of every kind lazily, with the physical scale that they state."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sealst._errors import DataError
from sealst._files import absolute
from sealst._logging import warn
from sealst._section.pyramid import SlideImage, levels_of
from sealst._validate import check_positive
from sealst.io._images.stated_scale import UM_PER_INCH, Stated, scale_of
from sealst.io._images.tiff import IndirectColour, Opened, examine, open_tiff
from sealst.io._images.vendor import SUFFIXES as VENDOR_SUFFIXES
from sealst.io._images.vendor import dicom_file, is_installed, open_vendor

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".qptiff")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_pillow_limit = threading.Lock()
#: what Pillow and gzip raise for damaged or empty files
_UNREADABLE = (OSError, EOFError, SyntaxError, ValueError)


def open_image(path: str | PathLike[str], *, mpp: float | None = None) -> SlideImage:
    """Open an H&E image file without reading its pixels.

    TIFF files (tiled or striped, with or without a pyramid, OME-TIFF, BigTIFF, QPTIFF) and slides in the formats of
    scanner vendors are read chunk by chunk, when pixels are asked for. Other pictures (jpg, png) are read into memory.
    Label, macro and thumbnail pictures of a slide are left out; of several pictures in a file the largest is taken.

    Parameters
    ----------
    path
        Image file; for a DICOM slide one of its files or their folder. Formats of scanner vendors (svs, ndpi, mrxs,
        scn, vms, vmu, bif, dcm) need the extra: ``pip install "sealst[wsi]"``; svs is read without it as well.
    mpp
        µm per pixel at full resolution, where the file does not state it. Where it does, the two must agree within 5 %.

    Returns
    -------
    SlideImage with the file's levels, finest first, and its scale: `mpp` is None where neither the file nor the
    argument gives one. Resolution tags are believed between 0.05 and 20 µm per pixel only, as 72 or 300 dpi is a
    default of programs.

    Raises
    ------
    DataError
        When the file is absent, empty, cut off, no image, or not 8-bit red, green and blue: names of channels, metadata
        and, where nothing says it, the light background tell grey pages of H&E from stains. When it holds several
        pictures of one size. Tiles that turn out damaged when they are read raise it then, with the file, the level
        and the place; those that the file lists and does not hold are warned of now.
    ScaleError
        When the file's pixels are not square, or statements of the scale differ by more than 5 %.

    Examples
    --------
    >>> import sealst as sl
    >>> slide = sl.io.open_image("slide.svs")  # doctest: +SKIP
    >>> slide.shape, slide.mpp  # doctest: +SKIP
    ((52080, 71712), 0.2525)
    """
    if mpp is not None:
        check_positive("mpp", mpp)
    found = absolute(path)
    if found.is_dir():
        found = dicom_file(found)
    elif not found.is_file():
        raise DataError(f"No image file at {str(found)!r} (looked for {str(found)!r}).")
    elif not found.stat().st_size:
        raise DataError(f"{found.name} is empty (0 bytes); copy or export it again.")
    opened = _open(found)
    scale, source = scale_of(found.name, opened.stated, mpp)
    if not isinstance(opened, Opened):
        return SlideImage(tuple(levels_of(opened.pixels)), scale, source, str(found))
    if n := len(opened.lost):
        warn(
            f"{found.name} lacks {n} tile(s) of its picture, as after a copy or a scan that broke off. Crops that "
            "touch them are set aside; copy or export the file again for all of it."
        )
    return SlideImage(tuple(opened.levels), scale, source, str(found), opened.lost, tuple(opened.filled))


def whole_picture(path: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Pixels (y, x, 3) of a picture in memory, checked as `open_image` does, and µm per pixel by its own statement."""
    opened = _open(path)
    scale, source = scale_of(path.name, opened.stated, None)
    whole = np.moveaxis(np.asarray(opened.levels[0]), 0, 2) if isinstance(opened, Opened) else opened.pixels
    return whole, {} if scale is None else {source: scale}


class _InMemory(NamedTuple):
    """All pixels (y, x, 3) of a picture, and what its file states about its scale."""

    pixels: np.ndarray
    stated: Stated


def _open(path: Path) -> Opened | _InMemory:
    """Levels of a file that is read chunk by chunk, or all pixels of another."""
    try:
        return _opened(path)
    except MemoryError as error:
        said = f" ({error})" if str(error) else ""
        raise DataError(
            f"{path.name}: a picture of the size that the file states does not fit into memory{said}. Where that size "
            "is right, export it as a tiled TIFF, which is read piece by piece; where it is not, the file is damaged."
        ) from error


def _opened(path: Path) -> Opened | _InMemory:
    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        start = file.read(16)
    is_tiff = start.startswith(_TIFF_STARTS)
    if suffix in VENDOR_SUFFIXES and (is_installed() or not (is_tiff and suffix == ".svs")):
        try:
            return open_vendor(path)
        except DataError as error:
            # A number with a decimal comma stops the reader of the extra, and not the one of TIFF files.
            if not (is_tiff and suffix == ".svs" and isinstance(error.__cause__, ValueError)):
                raise
    if is_tiff:
        try:
            return open_tiff(path)
        except IndirectColour as indirect:
            # Palettes and inks are left to Pillow, which knows their colours.
            return _InMemory(read_picture(path, indirect.page), indirect.stated)
    elif suffix == ".gz":
        with _unzipped(path) as file:
            zipped = file.read(16).startswith(_TIFF_STARTS)
            file.seek(0)
            page, stated = examine(file, path.name) if zipped else (0, {})
        return _InMemory(read_picture(path, page), stated)
    elif suffix in TIFF_SUFFIXES:
        from PIL import Image

        try:
            Image.open(path).close()
        except (OSError, SyntaxError) as error:
            raise DataError(
                f"{path.name} is no TIFF file, whatever its name says: it starts with {start!r}."
            ) from error
    return _InMemory(read_picture(path), _density(path))


@contextlib.contextmanager
def _unzipped(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path, "rb") as file:
            yield file
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(f"{path.name} could not be read as an image: {error}") from error


@contextlib.contextmanager
def _pillow(path: Path) -> Iterator[Any]:
    """File that Pillow reads, of any size and also gzipped."""
    from PIL import Image

    # Pillow refuses images above 180 megapixels, which sections often exceed; the limit is its only switch, and global.
    with _pillow_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            opener: Any = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rb") as stream, Image.open(stream) as picture:
                yield picture
        except _UNREADABLE as error:
            raise DataError(f"{path.name} could not be read as an image: {error}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _density(path: Path) -> Stated:
    """Scale by the pixels per inch that a picture states."""
    with _pillow(path) as picture:
        across, down = (float(value) for value in picture.info.get("dpi", (0, 0)))
    return {"pixels per inch": (UM_PER_INCH / across, UM_PER_INCH / down)} if across > 0 and down > 0 else {}


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a file that Pillow reads, also gzipped; its pixels are not read."""
    with _pillow(path) as picture:
        width, height = picture.size
        return width, height


def read_picture(path: Path, page: int = 0) -> np.ndarray:
    """Pixels (y, x, 3) of a page of a file that Pillow reads, also gzipped, in memory."""
    with _pillow(path) as picture:
        picture.seek(page)
        if picture.mode not in {"RGB", "RGBA", "RGBX", "P", "CMYK", "YCbCr"}:
            raise DataError(f"{path.name} is not a colour image (Pillow mode {picture.mode!r}); an RGB H&E is needed.")
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
