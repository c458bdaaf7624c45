"""Read fixed-size crops from a multiscale image, chunk by chunk."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from dask.local import get_sync
from PIL import Image

from sealst._core.cores import n_threads
from sealst._core.space.geometry import pick_level

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the items of an iterable that is drawn ahead, in order, by one background thread.

    Decoding and resizing release the interpreter lock, so the encoder works while the next crops are read.
    """
    source = iter(items)
    end = object()

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque(pool.submit(next, source, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, source, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()


#: decoded chunks that are kept for windows still to come; beyond it the least recently used are decoded again
MAX_BYTES = 256 * 2**20
#: chunk columns that are read together, so that the chunks in use do not grow with the width of the image
STRIPE = 16
_BACKGROUND = 255


class Grid:
    """Chunk boundaries of one level (c, y, x); an image in memory is one chunk."""

    def __init__(self, level: Any) -> None:
        self.data = level.data if hasattr(level, "data") and hasattr(level, "dims") else level
        self.lazy = hasattr(self.data, "dask")
        self.height, self.width = self.data.shape[1:]
        chunks = self.data.chunks[1:] if self.lazy else ((self.height,), (self.width,))
        self.y_edges, self.x_edges = (np.concatenate([[0], np.cumsum(c)]) for c in chunks)

    def rows(self, y: np.ndarray) -> np.ndarray:
        """Chunk rows of pixel positions, clipped to the image."""
        return np.clip(np.searchsorted(self.y_edges, y, side="right") - 1, 0, len(self.y_edges) - 2)

    def columns(self, x: np.ndarray) -> np.ndarray:
        """Chunk columns of pixel positions, clipped to the image."""
        return np.clip(np.searchsorted(self.x_edges, x, side="right") - 1, 0, len(self.x_edges) - 2)

    def order(self, centres: np.ndarray) -> np.ndarray:
        """Order of points (n, 2) in which neighbours in the image are read together."""
        rows, columns = self.rows(centres[:, 1]), self.columns(centres[:, 0])
        return np.lexsort((columns, rows, columns // STRIPE))

    def nbytes(self, row: int, column: int) -> int:
        """Bytes of a decoded chunk."""
        height = self.y_edges[row + 1] - self.y_edges[row]
        return int(height * (self.x_edges[column + 1] - self.x_edges[column])) * self.data.shape[0]


class WindowReader:
    """Windows of a level that are read one after the other.

    Parameters
    ----------
    grid
        The level.
    windows
        (n, 4) whole pixels x0, y0, x1, y1 in the order of reading; they may leave the image.
    pool
        Threads that decode.
    """

    def __init__(self, grid: Grid, windows: np.ndarray, pool: Executor) -> None:
        self._grid, self._windows, self._pool = grid, windows, pool
        x0, y0, x1, y1 = windows.T
        self._spans = np.column_stack([grid.rows(y0), grid.rows(y1 - 1), grid.columns(x0), grid.columns(x1 - 1)])
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._last_use: dict[tuple[int, int], int] = {}
        if grid.lazy:
            for i in range(len(windows)):
                self._last_use.update(dict.fromkeys(self._chunks(i), i))

    def _chunks(self, i: int) -> list[tuple[int, int]]:
        x0, y0, x1, y1 = self._windows[i]
        if x1 <= 0 or y1 <= 0 or x0 >= self._grid.width or y0 >= self._grid.height:
            return []
        top, bottom, left, right = self._spans[i]
        return [(row, column) for row in range(top, bottom + 1) for column in range(left, right + 1)]

    def load(self, start: int, limit: int) -> int:
        """Decode what windows from `start` on need; returns the end of the portion (at most `limit`) that is ready."""
        if not self._grid.lazy:
            return limit
        wanted: dict[tuple[int, int], None] = {}
        size, stop = 0, start
        while stop < limit:
            new = [c for c in self._chunks(stop) if c not in wanted]
            size += sum(self._grid.nbytes(*c) for c in new)
            if size > MAX_BYTES and stop > start:
                break
            wanted.update(dict.fromkeys(new))
            stop += 1
        for chunk in [c for c in self._kept if self._last_use[c] < start]:
            del self._kept[chunk]
        for chunk in wanted:
            if chunk in self._kept:
                self._kept.move_to_end(chunk)
        total = sum(self._grid.nbytes(*c) for c in {*self._kept, *wanted})
        for chunk in [c for c in self._kept if c not in wanted]:
            if total <= MAX_BYTES:
                break
            total -= self._kept.pop(chunk).nbytes
        missing = [c for c in wanted if c not in self._kept]
        for chunk, pixels in zip(missing, self._pool.map(self._decode, missing), strict=True):
            self._kept[chunk] = pixels
        return stop

    def _decode(self, chunk: tuple[int, int]) -> np.ndarray:
        # Not by its name: to look that up, dask imports its distributed scheduler.
        return np.asarray(self._grid.data.blocks[:, chunk[0], chunk[1]].compute(scheduler=get_sync))

    def window(self, i: int) -> np.ndarray:
        """Pixels of a loaded window as (y, x, 3); white where it leaves the image."""
        x0, y0, x1, y1 = self._windows[i]
        grid = self._grid
        if not grid.lazy:
            inside = max(x0, 0), max(y0, 0), min(x1, grid.width), min(y1, grid.height)
            parts = [((0, 0), grid.data, inside)] if inside[0] < inside[2] and inside[1] < inside[3] else []
        else:
            ys, xs = grid.y_edges, grid.x_edges
            parts = []
            for row, column in self._chunks(i):
                inside = max(x0, xs[column]), max(y0, ys[row]), min(x1, xs[column + 1]), min(y1, ys[row + 1])
                parts.append(((row, column), self._kept[row, column], inside))
        out = np.full((y1 - y0, x1 - x0, 3), _BACKGROUND, dtype=np.uint8)
        for (row, column), pixels, (ax, ay, bx, by) in parts:
            top, left = grid.y_edges[row], grid.x_edges[column]
            part = np.asarray(pixels[:3, ay - top : by - top, ax - left : bx - left])
            out[ay - y0 : by - y0, ax - x0 : bx - x0] = part.transpose(1, 2, 0)
        return out


def _with_margin(low: np.ndarray, high: np.ndarray, margin: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    # The margin stops at the image's edge, where white would bleed into the crop.
    first, last = np.floor(low), np.ceil(high)
    return np.minimum(first, np.maximum(first - margin, 0)), np.maximum(last, np.minimum(last + margin, limit))


def _plan(
    levels: Sequence[Any], boxes: np.ndarray, px: int, level: int | None = None
) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Chunks of the level to read, positions into the boxes in reading order, and these boxes in its pixels, (n, 4)."""
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    downsamples = np.array([levels[0].shape[2] / one.shape[2] for one in levels])
    if level is None:
        level = pick_level(downsamples, float(np.median(boxes[:, 2] - boxes[:, 0])) / px) if len(boxes) else 0
    used = levels[level]
    grid = Grid(used)
    local = boxes * np.array([used.shape[2] / levels[0].shape[2], used.shape[1] / levels[0].shape[1]] * 2)
    order = grid.order((local[:, :2] + local[:, 2:]) / 2)
    return grid, order, local[order]


def reading_order(levels: Sequence[Any], boxes: np.ndarray, px: int) -> np.ndarray:
    """Positions into `boxes` in the order in which `iter_crops` yields them."""
    return _plan(levels, boxes, px)[1]


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
    x0, y0, x1, y1 = local.T
    # Boxes whose pixels are those of the crop: there is nothing to resample.
    aligned = np.abs(local[:, :2] - local[:, :2].round()).max(axis=1) < 1e-6
    aligned &= np.abs(local[:, 2:] - local[:, :2] - px).max(axis=1) < 1e-6
    # A margin lets the resampling filter see the pixels beyond the box, as it would in the whole image.
    margin = np.ceil(2 * np.maximum((x1 - x0) / px, 1)) + 1
    left, right = _with_margin(x0, x1, margin, grid.width)
    top, bottom = _with_margin(y0, y1, margin, grid.height)
    windows = np.where(aligned[:, None], local.round(), np.column_stack([left, top, right, bottom])).astype(int)
    with ThreadPoolExecutor(max_workers=n_threads()) as pool:
        reader = WindowReader(grid, windows, pool)

        def cut(i: int) -> np.ndarray:
            pixels = reader.window(i)
            if aligned[i]:
                return pixels
            box = tuple(local[i] - np.tile(windows[i, :2], 2))
            return np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC, box=box))

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
