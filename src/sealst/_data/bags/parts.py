"""What is kept of a slide while it is embedded: its tiles, and the ranges of tiles that are done."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sealst._errors import DataError
from sealst._files import complete_file, scratch
from sealst._process.locks import hold

TILES, _BOXES = "tiles.h5ad", "boxes.npy"
_JOB = "job"
#: formats that keep their pixels in a folder of the same name
_WITH_FOLDER = (".mrxs",)
#: bytes at either end of a file that count for its digest
_ENDS = 2**16
#: genes whose columns are gathered at a time
_COLUMNS = 256


def file_digest(path: Path) -> str:
    """Digest of a slide: name, size, time of change and both ends of each of its files.

    A slide of gigabytes is not read. A copy has another time unless that was kept, and counts as changed then.
    """
    digest = hashlib.sha256()
    if not path.exists():
        raise DataError(f"No slide at {str(path)!r}.")
    # A DICOM slide is a folder. Of other formats, a folder of the same name may be anything, such as results.
    folder = path.with_suffix("") if path.suffix.lower() in _WITH_FOLDER else path
    inside = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    for file in [*([path] if path.is_file() else []), *inside]:
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        with open(file, "rb") as handle:
            digest.update(handle.read(_ENDS))
            handle.seek(max(0, stat.st_size - _ENDS))
            digest.update(handle.read(_ENDS))
    return digest.hexdigest()


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """Inside a ``with`` block, a folder of this run alone in `out`; folders that killed runs left are removed."""
    # Workers may be of other users: it has the rights that the umask gives.
    with scratch(out / _JOB) as folder:
        yield folder


@dataclass(frozen=True)
class Parts:
    """Folder of a slide that is not finished.

    Tiles are embedded by ranges of rows of their table; each range is a file that is there completely or not at all. A
    range is locked while it is worked on, so that several processes (also of several jobs) share the work.
    """

    folder: Path
    tiles_per_task: int

    @property
    def tiles(self) -> Path:
        """The table of tiles."""
        return self.folder / TILES

    def boxes(self) -> np.ndarray:
        """Squares of the tiles in pixels of the full-resolution image, (n, 4)."""
        return np.load(self.folder / _BOXES)

    def write_boxes(self, boxes: np.ndarray) -> None:
        """Keep the squares of the tiles, in the order of their table."""
        with complete_file(self.folder / _BOXES) as path, open(path, "wb") as file:
            np.save(file, np.asarray(boxes, dtype=np.float64))

    def is_planned(self) -> bool:
        """Whether the tiles are known. Their table is written last."""
        return self.tiles.is_file() and (self.folder / _BOXES).is_file()

    def starts(self, n_tiles: int) -> list[int]:
        """First rows of all ranges."""
        return list(range(0, n_tiles, self.tiles_per_task))

    def is_done(self, start: int) -> bool:
        """Whether a range is done."""
        return self._path(start).is_file()

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep what was computed for a range."""
        with complete_file(self._path(start)) as path, open(path, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, start: int, key: str) -> np.ndarray:
        """One array of a range; the others are not read."""
        with np.load(self._path(start), allow_pickle=False) as file:
            return file[key]

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Hold the lock of a range; False where the slide was finished by another process meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder / f".{name}.lock", f"Range {name} of {str(self.folder)!r}"):
            try:
                yield self.is_planned()
            finally:
                if not self.is_planned():
                    self.remove()

    def remove(self) -> None:
        """Remove the folder, and what other parameters left of the slide."""
        # Its parent is the slide's.
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.npz"


# -- the table of a slide, filled range by range ----------------------------------------------------------------------
def append_array(obsm: h5py.Group, key: str, parts: Parts, n: int) -> None:
    """Add an array of all ranges to ``.obsm`` of a table on disk, one range in memory at a time."""
    first = parts.read(0, key)
    data = obsm.create_dataset(key, shape=(n, *first.shape[1:]), dtype=first.dtype)
    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for start in parts.starts(n):
        values = parts.read(start, key)
        data[start : start + len(values)] = values


def append_frame(obsm: h5py.Group, key: str, parts: Parts, *, names: np.ndarray, columns: Sequence[str]) -> None:
    """Add a DataFrame of all ranges to ``.obsm`` of a table on disk, some columns in memory at a time."""
    text = h5py.string_dtype()
    group = obsm.create_group(key)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs.create("column-order", np.array(columns, dtype=object), dtype=text)
    index = group.create_dataset("_index", data=np.asarray(names, dtype=object), dtype=text)
    index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for first in range(0, len(columns), _COLUMNS):
        some = columns[first : first + _COLUMNS]
        block = np.concatenate([parts.read(s, key)[:, first : first + len(some)] for s in parts.starts(len(names))])
        for column, values in zip(some, block.T, strict=True):
            data = group.create_dataset(column, data=np.ascontiguousarray(values))
            data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
