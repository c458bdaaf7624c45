"""Read fixed-size crops from a multiscale image, chunk by chunk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sealst._core.geometry import pick_level

_CACHE_BYTES = 512 * 2**20
_BACKGROUND = 255


class _ChunkCache:
    """Windows of a (c, y, x) array; keeps the most recently decoded chunks of a dask array."""

    def __init__(self, array: Any, max_bytes: int = _CACHE_BYTES) -> None:
        self._data = array.data if hasattr(array, "data") and hasattr(array, "dims") else array
        self._chunked = hasattr(self._data, "dask")
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes = 0
        if self._chunked:
            self.y_edges = np.concatenate([[0], np.cumsum(self._data.chunks[1])])
            self.x_edges = np.concatenate([[0], np.cumsum(self._data.chunks[2])])
        self.height, self.width = self._data.shape[1:]

    def chunk_of(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chunk row and column of points."""
        if not self._chunked:
            return np.zeros(len(x), dtype=int), np.zeros(len(x), dtype=int)
        rows = np.clip(np.searchsorted(self.y_edges, y, side="right") - 1, 0, len(self.y_edges) - 2)
        cols = np.clip(np.searchsorted(self.x_edges, x, side="right") - 1, 0, len(self.x_edges) - 2)
        return rows, cols

    def _chunk(self, row: int, col: int) -> np.ndarray:
        key = (row, col)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        chunk = np.asarray(self._data.blocks[:, row, col].compute(scheduler="synchronous"))
        self._kept[key] = chunk
        self._bytes += chunk.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return chunk

    def window(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """Pixels [y0, y1) x [x0, x1) as (y, x, c); white where the window leaves the image."""
        out = np.full((y1 - y0, x1 - x0, 3), _BACKGROUND, dtype=np.uint8)
        ix0, iy0, ix1, iy1 = max(x0, 0), max(y0, 0), min(x1, self.width), min(y1, self.height)
        if ix0 >= ix1 or iy0 >= iy1:
            return out
        if not self._chunked:
            part = np.asarray(self._data[:3, iy0:iy1, ix0:ix1])
            out[iy0 - y0 : iy1 - y0, ix0 - x0 : ix1 - x0] = np.moveaxis(part, 0, 2)
            return out
        (row0, row1), (col0, col1) = self.chunk_of(np.array([ix0, ix1 - 1]), np.array([iy0, iy1 - 1]))
        for row in range(row0, row1 + 1):
            for col in range(col0, col1 + 1):
                cy, cx = int(self.y_edges[row]), int(self.x_edges[col])
                ay, by = max(iy0, cy), min(iy1, int(self.y_edges[row + 1]))
                ax, bx = max(ix0, cx), min(ix1, int(self.x_edges[col + 1]))
                part = self._chunk(row, col)[:3, ay - cy : by - cy, ax - cx : bx - cx]
                out[ay - y0 : by - y0, ax - x0 : bx - x0] = np.moveaxis(part, 0, 2)
        return out


def _with_margin(low: float, high: float, margin: int, limit: int) -> tuple[int, int]:
    first, last = int(np.floor(low)), int(np.ceil(high))
    return min(first, max(first - margin, 0)), max(last, min(last + margin, limit))


def _cut(cache: _ChunkCache, box: np.ndarray, px: int) -> np.ndarray:
    x0, y0, x1, y1 = box
    size = x1 - x0
    if abs(size - px) < 1e-6 and abs(x0 - round(x0)) < 1e-6 and abs(y0 - round(y0)) < 1e-6:
        left, top = round(x0), round(y0)
        return cache.window(left, top, left + px, top + px)
    # A margin lets the resampling filter see the pixels beyond the box, as it would in the whole image; it stops at the
    # image's edge, where white would bleed into the crop.
    margin = int(np.ceil(2 * max(size / px, 1))) + 1
    left, right = _with_margin(x0, x1, margin, cache.width)
    top, bottom = _with_margin(y0, y1, margin, cache.height)
    window = cache.window(left, top, right, bottom)
    local = (x0 - left, y0 - top, x1 - left, y1 - top)
    return np.asarray(Image.fromarray(window).resize((px, px), Image.Resampling.BICUBIC, box=local))


def iter_crops(
    levels: Sequence[Any], boxes: np.ndarray, px: int, *, batch_size: int = 64, level: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield crops in the order of the image's chunks, so that each chunk is decoded once.

    Each crop is resized once, with antialiasing (bicubic); parts outside the image are white.

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
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    if not len(boxes):
        return
    downsamples = np.array([levels[0].shape[2] / one.shape[2] for one in levels])
    wanted = float(np.median(boxes[:, 2] - boxes[:, 0])) / px
    used = pick_level(downsamples, wanted) if level is None else level
    scale = np.array([levels[used].shape[2] / levels[0].shape[2], levels[used].shape[1] / levels[0].shape[1]] * 2)
    cache = _ChunkCache(levels[used])
    local = boxes * scale
    rows, cols = cache.chunk_of((local[:, 0] + local[:, 2]) / 2, (local[:, 1] + local[:, 3]) / 2)
    order = np.lexsort((cols, rows))
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        yield positions, np.stack([_cut(cache, local[i], px) for i in positions])


def read_crops(levels: Sequence[Any], boxes: np.ndarray, px: int, *, level: int | None = None) -> np.ndarray:
    """Read crops as uint8 (n, px, px, 3), in the order of `boxes`; see `iter_crops`."""
    out = np.empty((len(boxes), px, px, 3), dtype=np.uint8)
    for positions, crops in iter_crops(levels, boxes, px, level=level):
        out[positions] = crops
    return out
