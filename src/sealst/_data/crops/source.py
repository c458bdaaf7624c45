"""Crops of many sections as one array: in memory, memory-mapped, or read from their stores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sealst._data.crops.cache import CachedRows, CropCache, iter_cached
from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.reader import iter_crops, prefetch
from sealst._data.stacked import Stacked
from sealst._errors import DataError
from sealst._logging import logger, progress, warn

#: larger collections are memory-mapped in the working folder
MAX_RAM_BYTES = 2 * 2**30


class CropSource(NamedTuple):
    """Where the crops of one region come from."""

    #: pyramid levels, (c, y, x), finest first
    levels: Sequence[Any]
    #: squares in full-resolution pixels, (n, 4)
    boxes: np.ndarray
    #: folder that `write_cache` filled, if any
    cache: str | None = None
    #: counts crops that show nothing, whoever reads them first; None where they are no section's
    plain: PlainCrops | None = None


def open_cache(source: CropSource, px: int) -> CropCache | None:
    """Return the store of a source's crops, after checking that it holds just these; None where it does not."""
    if source.cache is None:
        return None
    advice = "they are read from the image; run `sl.pp.cache_crops(sdata, overwrite=True)` again"
    try:
        cache = CropCache(Path(source.cache))
    except DataError as error:
        warn(f"Cached crops cannot be used, {advice}. {error}")
        return None
    if not cache.holds(source.levels, source.boxes, px):
        warn(f"The crops at {source.cache!r} are not those of this image and these spots, {advice}.")
        return None
    return cache


def iter_source(
    source: CropSource, px: int, *, batch_size: int = 64, ahead: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Crops of a source in batches, from its store where it has one, else from the image; see `iter_crops`.

    With `ahead` they are read by a thread of their own, see `prefetch`.

    Raises
    ------
    DataError
        At the end, when all crops of a section are of a single colour; where some are, there is a warning.
    """
    if not len(source.boxes):
        return iter(())
    cache = open_cache(source, px)
    if cache is not None:
        parts = iter_cached(cache, source.boxes, batch_size)
    else:
        parts = iter_crops(source.levels, source.boxes, px, batch_size=batch_size)
    parts = prefetch(parts) if ahead else parts
    return parts if source.plain is None else source.plain.watch(parts)


def fits_memory(n: int, px: int) -> bool:
    """Whether so many crops are kept in memory."""
    return n * px * px * 3 <= MAX_RAM_BYTES


class Rows:
    """Rows of float32 that are appended part by part: kept in memory, or in a file once they outgrow it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: list[np.ndarray] = []
        self._width = self._kept = 0

    def add(self, part: np.ndarray) -> None:
        """Append rows (n, width)."""
        self._parts.append(np.ascontiguousarray(part, dtype=np.float32))
        self._width = part.shape[1]
        self._kept += self._parts[-1].nbytes
        if self._kept > MAX_RAM_BYTES or self._path.exists():
            with open(self._path, "ab") as file:
                for kept in self._parts:
                    kept.tofile(file)
            self._parts, self._kept = [], 0

    def finished(self) -> np.ndarray:
        """All rows, (n, width)."""
        if self._path.exists():
            return np.memmap(self._path, dtype=np.float32, mode="r").reshape(-1, self._width)
        return np.concatenate(self._parts)


def gather_crops(
    sources: Sequence[CropSource], px: int, folder: Path, *, show: bool | None = None
) -> np.ndarray | Stacked:
    """Crops of several sources, uint8 (n, px, px, 3), in the order of sources and boxes.

    What fits comfortably into memory is read into it. A larger collection stays where it is when all of it is cached,
    and is memory-mapped in `folder` otherwise.
    """
    total = sum(len(s.boxes) for s in sources)
    if not fits_memory(total, px) and all(s.cache for s in sources):
        caches = [open_cache(s, px) for s in sources]
        if all(c is not None for c in caches):
            parts = [CachedRows(c, c.slots(s.boxes)) for c, s in zip(caches, sources, strict=True) if c is not None]
            return Stacked(parts, (px, px, 3), np.dtype(np.uint8))
    shape, size = (total, px, px, 3), total * px * px * 3
    if fits_memory(total, px):
        out = np.empty(shape, dtype=np.uint8)
    else:
        free = shutil.disk_usage(folder).free
        if size > 0.95 * free:
            raise DataError(
                f"crops.npy needs {size / 2**30:.1f} GiB, but {str(folder)!r} has {free / 2**30:.1f} GiB free. Name a "
                "larger disk with `run_dir=` or `sl.settings.cache_dir`."
            )
        logger.info("crops.npy: %.1f GiB on disk, in %s", size / 2**30, folder)
        out = np.lib.format.open_memmap(folder / "crops.npy", mode="w+", dtype=np.uint8, shape=shape)
    with progress(None, desc="reading crops", total=total, show=show) as bar:
        start = 0
        for source in sources:
            for positions, crops in iter_source(source, px):
                out[start + positions] = crops
                bar.update(len(positions))
            start += len(source.boxes)
    return out
