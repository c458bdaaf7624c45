"""Crops of many sections as one array, in memory or memory-mapped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sealst._data.crops import iter_crops
from sealst._errors import DataError
from sealst._logging import logger, progress

#: larger collections are memory-mapped in the working folder
MAX_RAM_BYTES = 2 * 2**30


class CropSource(NamedTuple):
    """Where the crops of one region come from."""

    #: pyramid levels, (c, y, x), finest first
    levels: Sequence[Any]
    #: squares in full-resolution pixels, (n, 4)
    boxes: np.ndarray


def allocate(shape: tuple[int, ...], dtype: Any, path: Path) -> np.ndarray:
    """Return an empty array, memory-mapped at `path` when it would not fit comfortably into memory."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= MAX_RAM_BYTES:
        return np.empty(shape, dtype=dtype)
    free = shutil.disk_usage(path.parent).free
    if size > 0.95 * free:
        raise DataError(
            f"{path.name} needs {size / 2**30:.1f} GiB, but {str(path.parent)!r} has {free / 2**30:.1f} GiB free. Name "
            "a larger disk with `run_dir=` or `sl.settings.cache_dir`, or ask for fewer `views`."
        )
    logger.info("%s: %.1f GiB on disk, in %s", path.name, size / 2**30, path.parent)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def gather_crops(sources: Sequence[CropSource], px: int, folder: Path, *, show: bool | None = None) -> np.ndarray:
    """Read the crops of several sources, uint8 (n, px, px, 3), in the order of sources and boxes."""
    total = sum(len(s.boxes) for s in sources)
    out = allocate((total, px, px, 3), np.uint8, folder / "crops.npy")
    with progress(None, desc="reading crops", total=total, show=show) as bar:
        start = 0
        for source in sources:
            for positions, crops in iter_crops(source.levels, source.boxes, px):
                out[start + positions] = crops
                bar.update(len(positions))
            start += len(source.boxes)
    return out
