"""Crops on disk: a sharded zarr store that is resumable, checksummed and safe against two writers.

Layout (zarr v3 group): ``crops`` (n, px, px, 3) uint8, not compressed, a CRC-32C with every inner chunk; ``boxes``
(n, 4) float64, the squares they were cut from; both in the order in which the image was read. A shard is one file that
appears whole or not at all, so that what an interrupted run has written can be kept. The attribute ``resampling`` says
how they were resized: crops that differ by a grey level are other crops.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec

from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.reader import RESAMPLING, iter_crops, prefetch, read_crops, reading_order
from sealst._errors import DataError
from sealst._files import put_back, scratch, sweep, take_place
from sealst._logging import logger, progress
from sealst._process.locks import hold

_FORMAT = "sealst-crops-1"
#: what stores were resized by that do not say so
_FIRST = 1
_ATTRIBUTES = {"format": _FORMAT, "resampling": RESAMPLING}
_SHARD = 256
#: crops in an inner chunk: few enough for random access, enough to amortise the overhead of a chunk
_INNER = 8
_DECIMALS = 3
_CHECKED = 4
_ENDS = [0, -1]


def _names(boxes: np.ndarray) -> pd.Index:
    rounded = np.ascontiguousarray(np.asarray(boxes, dtype=float).reshape(-1, 4).round(_DECIMALS) + 0.0)
    return pd.Index([row.tobytes() for row in rounded])


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


class CropCache:
    """Crops of one image that `write_cache` wrote.

    Parameters
    ----------
    path
        Folder of the store.

    Raises
    ------
    DataError
        When the folder is absent, is no store of crops, is not complete, or was written by a version that resized
        crops in another way.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        put_back(self.path)
        try:
            group = zarr.open_group(self.path, mode="r")
        except (OSError, ValueError, KeyError) as error:
            if not self.path.exists():
                raise DataError(f"No crops at {str(path)!r}; run `sl.pp.cache_crops(sdata)`.") from error
            raise DataError(f"{str(path)!r} is no store of crops; name another `path=`.") from error
        if group.attrs.get("format") != _FORMAT:
            raise DataError(f"{str(path)!r} is no store of crops; name another `path=`.")
        if not group.attrs.get("complete"):
            raise DataError(
                f"The crops at {str(path)!r} are incomplete; run `sl.pp.cache_crops(sdata)` to finish them."
            )
        if group.attrs.get("resampling", _FIRST) != RESAMPLING:
            raise DataError(
                f"The crops at {str(path)!r} were resized by another version of sealst, which differs by a grey level "
                "here and there. Write them again with `sl.pp.cache_crops(sdata, overwrite=True)`."
            )
        self._crops, self.boxes = _array(group, "crops"), np.asarray(_array(group, "boxes")[:])
        self._check_present(range(_n_shards(len(self.boxes))))
        self.px = int(self._crops.shape[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @cached_property
    def _slots(self) -> pd.Series:
        names = _names(self.boxes)
        first = ~names.duplicated()
        return pd.Series(np.arange(len(names))[first], index=names[first])

    def slots(self, boxes: np.ndarray) -> np.ndarray:
        """Where boxes stand in the store, (n,); -1 for those that it does not hold."""
        return self._slots.reindex(_names(boxes)).fillna(-1).to_numpy(dtype=int)

    def _check_present(self, shards: Iterable[int]) -> None:
        # What is absent would be read as black.
        if any(not _shard(self.path, int(i)).exists() for i in shards):
            raise DataError(
                f"The crops at {str(self.path)!r} are damaged (a file is missing). Write them again with "
                "`sl.pp.cache_crops(sdata, overwrite=True)`."
            )

    def read(self, slots: Sequence[int] | np.ndarray) -> np.ndarray:
        """Crops at positions of the store, uint8 (n, px, px, 3), in the order asked."""
        wanted = np.asarray(slots, dtype=int)
        out = np.empty((len(wanted), self.px, self.px, 3), dtype=np.uint8)
        order = np.argsort(wanted, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(wanted[order]) != 1) + 1) if len(wanted) else []
        for run in runs:
            try:
                out[run] = self._crops[int(wanted[run[0]]) : int(wanted[run[-1]]) + 1]
            except (ValueError, OSError, RuntimeError) as error:
                raise DataError(
                    f"The crops at {str(self.path)!r} are damaged ({error}). Write them again with "
                    "`sl.pp.cache_crops(sdata, overwrite=True)`."
                ) from error
        # Afterwards, as another process may replace the store meanwhile.
        self._check_present(np.unique(wanted // _SHARD))
        return out

    def holds(self, levels: Sequence[Any], boxes: np.ndarray, px: int) -> bool:
        """Whether the store holds these boxes of this image; some crops are compared with the image itself."""
        slots = self.slots(boxes)
        if px != self.px or (slots < 0).any():
            return False
        some = np.unique(np.linspace(0, len(boxes) - 1, min(_CHECKED, len(boxes))).astype(int))
        return _alike(self.read(slots[some]), levels, boxes[some])


def iter_cached(cache: CropCache, boxes: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions into `boxes` and their crops, in the order of the store; as `iter_crops`."""
    slots = cache.slots(boxes)
    order = np.argsort(slots, kind="stable")
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        yield positions, cache.read(slots[positions])


class CachedRows:
    """Some crops of a store as an array, read when they are indexed; cheap to send to worker processes."""

    def __init__(self, cache: CropCache, slots: np.ndarray) -> None:
        self._cache, self._slots = cache, slots

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._cache.read(self._slots[rows])


def _create(path: Path, boxes: np.ndarray, px: int) -> Any:
    group = zarr.create_group(path, overwrite=True, attributes={**_ATTRIBUTES, "complete": False})
    group.create_array("boxes", data=boxes)
    return group.create_array(
        "crops",
        shape=(len(boxes), px, px, 3),
        chunks=(_INNER, px, px, 3),
        shards=(_SHARD, px, px, 3),
        dtype="uint8",
        fill_value=0,
        compressors=[Crc32cCodec()],
        # Black crops are written like any other, so that an absent shard is a loss.
        config={"write_empty_chunks": True},
    )


def _resumable(path: Path, boxes: np.ndarray, px: int) -> Any | None:
    """The array of an interrupted run for the very same boxes, else None."""
    if any(one.is_symlink() for one in path.rglob("*")):
        # Shards would be written wherever it leads.
        return None
    try:
        group = zarr.open_group(path, mode="r+")
        alike = all(group.attrs.get(key) == value for key, value in _ATTRIBUTES.items())
        same = alike and _names(_array(group, "boxes")[:]).equals(_names(boxes))
        array = _array(group, "crops")
    except (OSError, ValueError, KeyError):
        return None
    return array if same and array.shape[1] == px else None


def _n_shards(n: int) -> int:
    return -(-n // _SHARD)


def _shard(path: Path, i: int) -> Path:
    return path / "crops" / "c" / str(i) / "0" / "0" / "0"


def _missing_shards(path: Path, array: Any, levels: Sequence[Any], boxes: np.ndarray) -> list[int]:
    """Shards that are absent, damaged, or of another image (their first and last crops are cut again)."""
    missing = []
    for i in range(_n_shards(len(boxes))):
        part = slice(i * _SHARD, min((i + 1) * _SHARD, len(boxes)))
        try:
            present = _shard(path, i).exists() and _alike(array[part][_ENDS], levels, boxes[part][_ENDS])
        except (ValueError, OSError, RuntimeError):
            present = False
        if not present:
            missing.append(i)
    return missing


def _alike(crops: np.ndarray, levels: Sequence[Any], boxes: np.ndarray) -> bool:
    """Whether crops are those of an image, but for what another version of zarr or of a codec makes of its pixels."""
    fresh = read_crops(levels, boxes, crops.shape[1]).astype(int)
    return bool(np.abs(fresh - crops).mean(axis=(1, 2, 3)).max(initial=0) < 1)


def write_cache(
    path: Path,
    levels: Sequence[Any],
    boxes: np.ndarray,
    px: int,
    *,
    section: str | None = None,
    overwrite: bool = False,
    show: bool | None = None,
) -> CropCache:
    """Cut crops and keep them on disk; continues an interrupted run, waits for another writer.

    Parameters
    ----------
    path
        Folder of the store.
    levels, boxes, px
        As for `iter_crops`.
    section
        Name of the section, to speak of its crops of a single colour; None leaves these alone.
    overwrite
        Whether to replace a complete store of other crops.
    show
        Progress bar; None follows the settings.

    Raises
    ------
    DataError
        When another image's or other spots' crops are at `path`, all crops are of a single colour, or the disk is too
        small.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_name(f".{path.name}.lock"), f"The store of crops {str(path)!r}"):
        part = path.with_name(f".{path.name}.part")
        if part.is_symlink():
            # It would be followed.
            part.unlink()
        sweep(path)
        if path.exists() and not overwrite:
            done = CropCache(path)
            if done.holds(levels, boxes, px):
                # What a process that was killed at the very end had replaced.
                shutil.rmtree(part, ignore_errors=True)
                return done
            raise DataError(
                f"{str(path)!r} holds crops of another image or of other spots; replace them with `overwrite=True`."
            )
        if path.exists() and not (path / "crops" / "zarr.json").exists():
            raise DataError(f"{str(path)!r} is no store of crops and is not replaced; name another `path=`.")
        ordered = boxes[reading_order(levels, boxes, px)]
        array = _resumable(part, ordered, px)
        if array is None:
            shutil.rmtree(part, ignore_errors=True)
            array = _create(part, ordered, px)
        missing = _missing_shards(part, array, levels, ordered)
        size, free = len(missing) * _SHARD * px * px * 3, shutil.disk_usage(path.parent).free
        if size > 0.95 * free:
            raise DataError(
                f"The crops need {size / 2**30:.1f} GiB, but {str(path.parent)!r} has {free / 2**30:.1f} GiB free. "
                "Name a folder on a larger disk with `path=`."
            )
        slots = np.flatnonzero(np.isin(np.arange(len(ordered)) // _SHARD, missing))
        if len(slots) < len(ordered):
            logger.info("%d of %d crops are already on disk", len(ordered) - len(slots), len(ordered))
        with progress(None, desc="caching crops", total=len(slots), show=show) as bar:
            # Boxes are in reading order and only the last shard is short, so every batch is one whole shard.
            read = prefetch(iter_crops(levels, ordered[slots], px, batch_size=_SHARD), depth=1)
            if section is not None:
                read = PlainCrops(section, total=len(ordered)).watch(read)
            try:
                for positions, crops in read:
                    first = int(slots[positions[0]])
                    array[first : first + len(crops)] = crops
                    bar.update(len(crops))
            except DataError:
                # Crops without a picture are not worth going on with.
                shutil.rmtree(part, ignore_errors=True)
                raise
        for left in part.rglob("*.partial"):
            # zarr's, of a process that was killed.
            left.unlink()
        zarr.open_group(part, mode="r+").attrs["complete"] = True
        with scratch(path) as aside:
            take_place(part, path, aside)
        # A reader of the old store is told that it is gone.
        shutil.rmtree(part, ignore_errors=True)
    return CropCache(path)
