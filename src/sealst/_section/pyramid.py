"""An image as a pyramid: opened slides, levels and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import numpy as np

from sealst._errors import DataError

CHUNK_PX = 1024
_THUMBNAIL_PX = 800
#: rows that are halved at a time, so that their means stay in the processor's cache
_BAND_PX = 64
_EMPTY = np.empty((0, 0, 0), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class SlideImage:
    """An H&E image that is read chunk by chunk.

    Parameters
    ----------
    levels
        Pyramid, finest first; each a dask array (3, height, width), uint8, red, green and blue. All levels span the
        same picture.
    mpp
        µm per pixel of the finest level, as the file states it; None where it does not.
    mpp_source
        Where in the file `mpp` stands.
    path
        File the image was opened from.
    lost
        Places (x0, y0, x1, y1) of the finest level that the file does not hold, (n, 4). Reading them from `levels` is
        an error.
    filled
        The same levels with white at these places, for those who leave out what touches them; empty without any.
    """

    levels: tuple[da.Array, ...]
    mpp: float | None = None
    mpp_source: str = ""
    path: str = ""
    lost: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    filled: tuple[da.Array, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise DataError("A slide image needs at least one level.")
        for level in self.levels:
            if level.ndim != 3 or level.shape[0] != 3 or level.dtype != np.uint8 or 0 in level.shape:
                raise DataError(f"Levels must be uint8 (3, height, width), found {level.dtype} {level.shape}.")

    @property
    def readable(self) -> tuple[da.Array, ...]:
        """Levels that can be read everywhere."""
        return self.filled or self.levels

    @property
    def facts(self) -> dict[str, list[list[float]]]:
        """What a section keeps of the image in ``attrs``: places that are lost, where there are any."""
        return {LOST: np.asarray(self.lost, dtype=float).tolist()} if len(self.lost) else {}

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level in pixels."""
        return self.levels[0].shape[1], self.levels[0].shape[2]


#: entry of an image's facts in ``attrs``
LOST = "lost"


def touch_lost(boxes: np.ndarray, facts: Any) -> np.ndarray:
    """Which of the boxes (x0, y0, x1, y1) touch a place that the file of the image does not hold, (n,)."""
    lost = np.asarray(facts.get(LOST, []) if hasattr(facts, "get") else [], dtype=float).reshape(-1, 4)
    touched = np.zeros(len(boxes), dtype=bool)
    for x0, y0, x1, y1 in lost:
        touched |= (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
    return touched


def levels_of(image: np.ndarray) -> list[da.Array]:
    """Levels (c, y, x) of an image (y, x, c) in memory, each half the size of the one before."""
    # Halve at least once (so that the image is always multiscale) and until the coarsest level fits into one chunk.
    levels = [image, _halved(image)]
    while max(levels[-1].shape[:2]) > CHUNK_PX:
        levels.append(_halved(levels[-1]))
    return [da.from_array(np.moveaxis(level, 2, 0), chunks=(3, CHUNK_PX, CHUNK_PX)) for level in levels]


def _halved(image: np.ndarray) -> np.ndarray:
    """Half-size image of area means.

    SpatialData takes every level to span the whole image, so with an odd number of pixels each one of the half-size
    image covers a little more than two. The default of `Image2DModel.parse` instead drops the first pixel, which shifts
    a level by up to one of its pixels; it also truncates the means, and computes its levels anew at every read.
    """
    height, width = (max(1, n // 2) for n in image.shape[:2])
    half = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _BAND_PX):
        bottom = min(top + _BAND_PX, height)
        rows = _area_means(image, axis=0, start=top, stop=bottom)
        half[top:bottom] = np.rint(_area_means(rows, axis=1, start=0, stop=width))
    return half


def _area_means(pixels: np.ndarray, *, axis: int, start: int, stop: int) -> np.ndarray:
    """Pixels `start` to `stop` of an axis that is resampled from n to n // 2 pixels, float32."""
    along = np.moveaxis(pixels, axis, 0)
    n, half = len(along), len(along) // 2
    if half == 0:
        return pixels.astype(np.float32)
    first, second = along[2 * start : 2 * stop : 2], along[2 * start + 1 : 2 * stop : 2]
    total = np.add(first, second, dtype=np.float32)
    if n % 2:
        # Pixel i covers [i n / half, (i + 1) n / half): less of its first pixel and more of its third, the larger i.
        moved = (np.arange(start, stop, dtype=np.float32) / half).reshape(-1, 1, 1)
        total += (moved + 1 / half) * along[2 * start + 2 : 2 * stop + 1 : 2] - moved * first
    return np.moveaxis(total / np.float32(n / half), 0, axis)


def extended(levels: Sequence[da.Array]) -> list[da.Array]:
    """Levels of a slide, with coarser ones added lazily until the coarsest fits into one chunk.

    Each added pixel is the mean of exactly 2 x 2 pixels, and the last row or column of an odd side is left out: a level
    computed lazily must not need the pixels of other chunks. The shift this brings stays below one pixel of the level.
    """
    out = list(levels)
    while max(out[-1].shape[1:]) > CHUNK_PX or len(out) < 2:
        if min(out[-1].shape[1:]) < 2:
            break
        # Even chunks, so that no pair of pixels is cut apart.
        finer = out[-1].rechunk((3, 2 * CHUNK_PX, 2 * CHUNK_PX))
        halves = tuple(tuple(n // 2 for n in sizes if n // 2) for sizes in finer.chunks[1:])
        even = finer[:, : 2 * sum(halves[0]), : 2 * sum(halves[1])]
        out.append(even.map_blocks(_quartered, chunks=((3,), *halves), dtype=np.uint8, meta=_EMPTY))
    return out


def is_computed(level: Any) -> bool:
    """Whether a level was added by `extended`, so that reading it reads finer ones."""
    return str(getattr(level.data if hasattr(level, "dims") else level, "name", "")).startswith(_quartered.__name__)


def _quartered(block: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, rounded half up; whole numbers are several times faster than floats here."""
    total = np.add(block[:, ::2], block[:, 1::2], dtype=np.uint16)
    return ((total[:, :, ::2] + total[:, :, 1::2] + 2) >> 2).astype(np.uint8)


def squidpy_library(levels: Sequence[da.Array], diameter_px: float) -> dict[str, Any]:
    """Small picture and its scale, as `squidpy.pl.spatial_scatter` looks for them in ``.uns["spatial"]``."""
    from PIL import Image

    smallest = next((a for a in reversed(levels) if max(a.shape[1:]) >= _THUMBNAIL_PX), levels[0])
    picture = Image.fromarray(np.moveaxis(np.asarray(smallest), 0, 2))
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX, reducing_gap=None)
    return {
        "images": {"hires": np.asarray(picture)},
        "scalefactors": {
            "tissue_hires_scalef": picture.width / levels[0].shape[2],
            "spot_diameter_fullres": float(diameter_px),
        },
    }
