"""Large arrays that live on disk for as long as somebody holds them."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from sealst._errors import DataError

#: bytes of one file: as many files are open as blocks are in use
_BLOCK = 2**30
#: where an array may begin in a block, in bytes
_ALIGNED = 64


class Arena:
    """Arrays in files without a name, mapped into memory, from which the system drops them when it needs the room.

    A file goes with the last array in it, and with the process, however that ends.

    Examples
    --------
    >>> arena = Arena(Path(tempfile.gettempdir()))
    >>> kept = arena.keep(np.arange(3.0))
    >>> kept.tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self, folder: Path, *, block: int = _BLOCK) -> None:
        self._folder, self._size = folder, block
        self._block, self._used = np.empty(0, dtype=np.uint8), 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
        """Array of zeros to be filled."""
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not n:
            return np.zeros(shape, dtype)
        if self._used + n > len(self._block):
            self._block, self._used = self._mapped(max(self._size, n)), 0
        part = self._block[self._used : self._used + n]
        self._used += -(-n // _ALIGNED) * _ALIGNED
        return part.view(dtype).reshape(shape)

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Copy of an array of numbers; one of text or objects as it is."""
        if values.dtype.hasobject or values.dtype.kind in "US":
            return values
        kept = self.empty(values.shape, values.dtype)
        kept[...] = values
        return kept

    def _mapped(self, size: int) -> np.ndarray:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Pages of a mapped file that find no room on the disk end the process without a word.
        if size > 0.95 * (free := shutil.disk_usage(self._folder).free):
            raise DataError(
                f"{size / 2**30:.1f} GiB of arrays that do not fit into memory find {free / 2**30:.1f} GiB free in "
                f"{str(self._folder)!r}. Name a folder on a larger disk with `sl.settings.cache_dir`."
            )
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # Others write to the disk, too.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.uint8)
