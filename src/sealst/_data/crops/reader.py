"""Read fixed-size crops from a multiscale image, chunk by chunk."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, TypeVar

import numpy as np
from dask.local import get_sync
from dask.optimization import cull

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
#: crops whose chunks are decoded together, so that there is work for all threads whatever the size of a batch
_PORTION = 256
#: crops that a thread cuts in one go, without the interpreter lock
_GROUP = 8
#: changes whenever the pixels of crops do, if only by a grey level
RESAMPLING = 2


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

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """Shape of the largest decoded chunk."""
        return 3, int(np.diff(self.y_edges).max()), int(np.diff(self.x_edges).max())

    def tasks(self, chunks: Iterable[tuple[int, int]]) -> dict[Any, Any]:
        """What dask has to do for some chunks; optimised at once, as for each alone that takes as long as decoding."""
        keys = [key for chunk in chunks for key in self.keys(*chunk)]
        return dict(self.data.__dask_optimize__(self.data.__dask_graph__(), keys))

    def keys(self, row: int, column: int) -> list[tuple[Any, ...]]:
        """What dask calls the parts of a chunk, which may lie apart by channel."""
        return [(self.data.name, channel, row, column) for channel in range(self.data.numblocks[0])]


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels (c, y, x) as uint8 (3, y, x)."""
    return np.broadcast_to(pixels[:3], (3, *pixels.shape[1:])).astype(np.uint8, copy=False)


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
        spans = np.column_stack([grid.rows(y0), grid.rows(y1 - 1), grid.columns(x0), grid.columns(x1 - 1)])
        beyond = (x1 <= 0) | (y1 <= 0) | (x0 >= grid.width) | (y0 >= grid.height)
        #: first and last row, first and last column of the chunks of a window; none where it shows nothing of the image
        self._spans = np.where(beyond[:, None], [0, -1, 0, -1], spans)
        #: decoded chunks, and which of `_pixels` each place of the grid is
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._slots = np.zeros((len(grid.y_edges) - 1, len(grid.x_edges) - 1), dtype=np.int64)
        self._last_use: dict[tuple[int, int], int] = {}
        if not grid.lazy:
            self._pixels = _rgb(np.asarray(grid.data))[None]
            return
        for i in range(len(windows)):
            self._last_use.update(dict.fromkeys(self._chunks(i), i))
        self._tasks = grid.tasks(self._last_use)
        # While one is decoded it is there twice.
        self._room = BoundedSemaphore(max(1, MAX_BYTES // 4 // self._slot_bytes))
        widest = (self._spans[:, 1] - self._spans[:, 0] + 1) * (self._spans[:, 3] - self._spans[:, 2] + 1)
        most = max(MAX_BYTES // self._slot_bytes, int(widest.max(initial=0)))
        self._free = list(range(min(most, len(self._last_use))))[::-1]
        # All in one piece, so that it can be handed on; what is not written to takes no memory. A picture that is a
        # single chunk is not copied.
        shape = (0 if self._slots.size == 1 else len(self._free), *grid.chunk_shape)
        self._pixels = np.empty(shape, dtype=np.uint8)

    @property
    def _slot_bytes(self) -> int:
        return int(np.prod(self._grid.chunk_shape))

    def _chunks(self, i: int) -> list[tuple[int, int]]:
        top, bottom, left, right = self._spans[i].tolist()
        return [(row, column) for row in range(top, bottom + 1) for column in range(left, right + 1)]

    def load(self, start: int, limit: int) -> int:
        """Decode what windows from `start` on need; returns the end of the portion (at most `limit`) that is ready."""
        if not self._grid.lazy:
            return limit
        wanted: dict[tuple[int, int], None] = {}
        most, stop = MAX_BYTES // self._slot_bytes, start
        while stop < limit:
            new = [c for c in self._chunks(stop) if c not in wanted]
            if len(wanted) + len(new) > most and stop > start:
                break
            wanted.update(dict.fromkeys(new))
            stop += 1
        for chunk in [c for c in self._kept if self._last_use[c] < start]:
            self._drop(chunk)
        for chunk in wanted:
            if chunk in self._kept:
                self._kept.move_to_end(chunk)
        missing = [c for c in wanted if c not in self._kept]
        for chunk in [c for c in self._kept if c not in wanted]:
            if len(self._kept) + len(missing) <= most:
                break
            self._drop(chunk)
        for chunk in missing:
            self._slots[chunk] = self._free.pop()
        for chunk, pixels in zip(missing, self._pool.map(self._decode, missing), strict=True):
            self._kept[chunk] = pixels
        return stop

    def _drop(self, chunk: tuple[int, int]) -> None:
        del self._kept[chunk]
        self._free.append(int(self._slots[chunk]))

    def _decode(self, chunk: tuple[int, int]) -> np.ndarray:
        keys = self._grid.keys(*chunk)
        with self._room:
            # Not by its name: to look that up, dask imports its distributed scheduler.
            parts = get_sync(cull(self._tasks, keys)[0], keys)
            pixels = _rgb(np.concatenate(parts) if len(parts) > 1 else np.asarray(parts[0]))
            if self._slots.size == 1:
                self._pixels = pixels[None]
                return pixels
            place = self._pixels[self._slots[chunk], :, : pixels.shape[1], : pixels.shape[2]]
            place[:] = pixels
        return place

    def cut(self, some: slice, boxes: np.ndarray, out: np.ndarray) -> None:
        """Resample the boxes (n, 4) of some loaded windows into `out`, uint8 (n, px, px, 3)."""
        # Numba and the machine code take a while to import.
        from sealst._data.crops import resample

        grid, windows = self._grid, self._windows[some]
        resample.cut(self._pixels, self._slots, grid.y_edges, grid.x_edges, windows, self._spans[some], boxes, out)


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
    local = np.where(aligned[:, None], local.round(), local)
    windows = np.where(aligned[:, None], local, np.column_stack([left, top, right, bottom])).astype(np.int64)
    threads = n_threads()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        reader = WindowReader(grid, windows, pool)
        done = ready = 0
        while done < len(order):
            start, stop = done, min(done + batch_size, len(order))
            batch = np.empty((stop - start, px, px, 3), dtype=np.uint8)
            while done < stop:
                if done == ready:
                    ready = reader.load(done, min(max(stop, done + _PORTION), len(order)))
                end = min(stop, ready)
                size = min(_GROUP, -(-(end - done) // threads))
                groups = [slice(i, min(i + size, end)) for i in range(done, end, size)]
                places = [batch[one.start - start : one.stop - start] for one in groups]
                # Drawn to the end, so that errors are raised.
                deque(pool.map(reader.cut, groups, [local[one] for one in groups], places), maxlen=0)
                done = end
            yield order[start:stop], batch


def read_crops(levels: Sequence[Any], boxes: np.ndarray, px: int, *, level: int | None = None) -> np.ndarray:
    """Read crops as uint8 (n, px, px, 3), in the order of `boxes`; see `iter_crops`."""
    out = np.empty((len(boxes), px, px, 3), dtype=np.uint8)
    for positions, crops in iter_crops(levels, boxes, px, level=level):
        out[positions] = crops
    return out
