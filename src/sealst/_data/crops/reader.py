"""Read fixed-size crops from a multiscale image, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sealst._core.cores import n_threads
from sealst._core.space.geometry import pick_level
from sealst._data.crops.chunks import Grid, WindowReader


def _is_aligned(boxes: np.ndarray, px: int) -> np.ndarray:
    """Boxes whose pixels are those of the crop: nothing to resample."""
    exact = np.abs(boxes[:, :2] - boxes[:, :2].round()).max(axis=1) < 1e-6
    return exact & (np.abs(boxes[:, 2:] - boxes[:, :2] - px).max(axis=1) < 1e-6)


def _with_margin(low: np.ndarray, high: np.ndarray, margin: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    # The margin stops at the image's edge, where white would bleed into the crop.
    first, last = np.floor(low), np.ceil(high)
    return np.minimum(first, np.maximum(first - margin, 0)), np.maximum(last, np.minimum(last + margin, limit))


def _windows(grid: Grid, boxes: np.ndarray, aligned: np.ndarray, px: int) -> np.ndarray:
    """Whole pixels to read for each box, (n, 4)."""
    x0, y0, x1, y1 = boxes.T
    # A margin lets the resampling filter see the pixels beyond the box, as it would in the whole image.
    margin = np.ceil(2 * np.maximum((x1 - x0) / px, 1)) + 1
    left, right = _with_margin(x0, x1, margin, grid.width)
    top, bottom = _with_margin(y0, y1, margin, grid.height)
    return np.where(aligned[:, None], boxes.round(), np.column_stack([left, top, right, bottom])).astype(int)


def _resized(pixels: np.ndarray, box: np.ndarray, px: int) -> np.ndarray:
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((px, px), Image.Resampling.BICUBIC, box=tuple(box)))


class _Plan(NamedTuple):
    """What to read and in which order."""

    grid: Grid
    #: positions into the boxes asked for, (n,)
    order: np.ndarray
    #: boxes in pixels of the level, in reading order, (n, 4)
    boxes: np.ndarray


def _plan(levels: Sequence[Any], boxes: np.ndarray, px: int, level: int | None = None) -> _Plan:
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    downsamples = np.array([levels[0].shape[2] / one.shape[2] for one in levels])
    if level is None:
        level = pick_level(downsamples, float(np.median(boxes[:, 2] - boxes[:, 0])) / px) if len(boxes) else 0
    used = levels[level]
    grid = Grid(used)
    local = boxes * np.array([used.shape[2] / levels[0].shape[2], used.shape[1] / levels[0].shape[1]] * 2)
    order = grid.order((local[:, :2] + local[:, 2:]) / 2)
    return _Plan(grid, order, local[order])


def reading_order(levels: Sequence[Any], boxes: np.ndarray, px: int) -> np.ndarray:
    """Positions into `boxes` in the order in which `iter_crops` yields them."""
    return _plan(levels, boxes, px).order


def iter_crops(
    levels: Sequence[Any], boxes: np.ndarray, px: int, *, batch_size: int = 64, level: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield crops in the order of the image's chunks, so that each chunk is decoded once.

    Each crop is resized once, with antialiasing (bicubic); parts outside the image are white. Several threads decode
    and resize; the chunks kept in memory are bounded, whatever the size of the image.

    Parameters
    ----------
    levels
        Pyramid levels (c, y, x), finest first; dask-backed or in memory.
    boxes
        Squares (x0, y0, x1, y1) in pixels of level 0, (n, 4).
    px
        Side of a crop in pixels.
    batch_size
        Crops per yielded batch.
    level
        Level to read; by default the coarsest one that is at least as fine as the crop.

    Yields
    ------
    Positions into `boxes`, (b,), and the crops, uint8 (b, px, px, 3).
    """
    grid, order, local = _plan(levels, boxes, px, level)
    aligned = _is_aligned(local, px)
    windows = _windows(grid, local, aligned, px)
    with ThreadPoolExecutor(max_workers=n_threads()) as pool:
        reader = WindowReader(grid, windows, pool)

        def cut(i: int) -> np.ndarray:
            pixels = reader.window(i)
            return pixels if aligned[i] else _resized(pixels, local[i] - np.tile(windows[i, :2], 2), px)

        for start in range(0, len(order), batch_size):
            stop, ready = min(start + batch_size, len(order)), start
            batch = np.empty((stop - start, px, px, 3), dtype=np.uint8)
            while ready < stop:
                first, ready = ready, reader.load(ready, stop)
                for i, crop in zip(range(first, ready), pool.map(cut, range(first, ready)), strict=True):
                    batch[i - start] = crop
            yield order[start:stop], batch


def read_crops(levels: Sequence[Any], boxes: np.ndarray, px: int, *, level: int | None = None) -> np.ndarray:
    """Read crops as uint8 (n, px, px, 3), in the order of `boxes`; see `iter_crops`."""
    out = np.empty((len(boxes), px, px, 3), dtype=np.uint8)
    for positions, crops in iter_crops(levels, boxes, px, level=level):
        out[positions] = crops
    return out
