"""Slides in the formats of scanner vendors, through wsidata and OpenSlide (the extra ``wsi``)."""

from __future__ import annotations

import contextlib
from math import ceil
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from sealst._errors import DataError
from sealst._files import visible
from sealst._section.pyramid import CHUNK_PX
from sealst.io._images.stated_scale import Stated
from sealst.io._images.tiff import Opened, lost_in, spanning

SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".dicom")


def is_installed() -> bool:
    """Whether the libraries of the extra ``wsi`` are there."""
    try:
        import openslide  # noqa: F401
        import wsidata  # noqa: F401
    except (ImportError, OSError):  # OSError: the C library is absent
        return False
    return True


def open_vendor(path: Path) -> Opened:
    """Open a slide of a scanner vendor; no pixel of its levels is read."""
    if not is_installed():
        raise DataError(
            f'{path.name} is a slide in a scanner\'s format; reading it needs the extra: pip install "sealst[wsi]".'
        )
    from wsidata import READERS

    try:
        reader = READERS.try_open(str(path), reader="openslide")
    except Exception as error:  # OpenSlide, and what wsidata makes of its properties
        raise DataError(
            f"OpenSlide cannot open {path.name}: {error}. Is the slide complete? A .mrxs needs the folder of the same "
            "name beside it, a DICOM slide all files of its folder, a .vms or .vmu the files it names."
        ) from error
    facts = reader.raw_properties
    shapes = [(int(h), int(w)) for h, w in reader.properties.level_shape]
    levels = []
    for number, shape in enumerate(shapes):
        sides = [int(facts.get(f"openslide.level[{number}].tile-{side}", CHUNK_PX)) for side in ("height", "width")]
        chunks = [side * max(1, CHUNK_PX // side) for side in sides]
        # The reader goes to other processes as the name of its file, and opens it there.
        level = da.map_blocks(
            _read_chunk,
            reader,
            number,
            chunks=da.core.normalize_chunks((3, *chunks), (3, *shape)),
            dtype=np.uint8,
            meta=np.empty((0, 0, 0), dtype=np.uint8),
            name=f"slide-{tokenize(reader.file, Path(reader.file).stat().st_mtime_ns, number)}",
        )
        levels.append(level)
    stated: Stated = {}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        stated["openslide.mpp-x and mpp-y"] = (float(facts["openslide.mpp-x"]), float(facts["openslide.mpp-y"]))
    kept = [levels[i] for i in spanning(shapes)]
    # OpenSlide draws something where a tile is lost, and says nothing.
    lost = lost_in(path) if path.suffix.lower() == ".svs" else np.empty((0, 4))
    return Opened(kept, stated, lost, kept if len(lost) else [])


def dicom_file(folder: Path) -> Path:
    """File that stands for a folder with a DICOM slide: its largest one, a level and not a label."""
    files = [f for f in visible(folder).values() if f.is_file() and f.suffix.lower() in (".dcm", ".dicom")]
    if not files:
        raise DataError(f"{folder} is a folder without .dcm files; name an image file, or the folder of a DICOM slide.")
    return max(files, key=lambda f: (f.stat().st_size, f.name))


def _read_chunk(reader: Any, number: int, block_info: Any = None) -> np.ndarray:
    from PIL import Image

    _, (top, bottom), (left, right) = block_info[None]["array-location"]
    factor = reader.properties.level_downsample[number]
    try:
        corner = ceil(left * factor), ceil(top * factor)
        region = reader.reader.read_region(corner, number, (right - left, bottom - top))
    except Exception as error:  # OpenSlide's errors, and those of the file
        # OpenSlide refuses everything after an error. The handle is left to the threads that use it, not closed.
        reader.set_reader(None)
        raise DataError(
            f"{Path(reader.file).name} could not be decoded at level {number}, rows {top} to {bottom}, columns {left} "
            f"to {right}: {error}. The file is damaged there; copy or export it again."
        ) from error
    # What the scanner left out is transparent, and black without its alpha.
    colour = reader.raw_properties.get("openslide.background-color") or "FFFFFF"
    ground = Image.new("RGBA", region.size, f"#{colour}")
    ground.alpha_composite(region)
    return np.moveaxis(np.asarray(ground)[..., :3], 2, 0)
