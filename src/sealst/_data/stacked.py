"""Several arrays as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Stacked:
    """Arrays one below the other, as one; only what is asked for is read.

    Parameters
    ----------
    parts
        Arrays, or what stands for one on disk: with a length, and rows at an array of positions (or at a tuple of such
        arrays, one per axis).
    row_shape, dtype
        Of a row.
    empty
        Makes the array that rows are gathered in, from shape and `dtype`.
    """

    def __init__(
        self, parts: Sequence[Any], row_shape: Sequence[int], dtype: Any, *, empty: Callable[..., Any] = np.empty
    ) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([0, *(len(part) for part in self._parts)])[1:]
        self.shape: tuple[int, ...] = (sum(map(len, self._parts)), *row_shape)
        self.dtype = dtype
        self._empty = empty

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return self[np.arange(start, stop, step)]
            begins = self._ends - [len(part) for part in self._parts]
            inside = [(max(0, start - begin), max(0, stop - begin)) for begin in begins]
            found = [part[a:b] for part, (a, b) in zip(self._parts, inside, strict=True) if a < min(b, len(part))]
            if len(found) == 1:
                return found[0]
            return np.concatenate(found) if found else self._empty((0, *self.shape[1:]), dtype=self.dtype)
        rows, *others = (np.asarray(axis) for axis in (key if isinstance(key, tuple) else (key,)))
        out = self._empty((len(rows), *self.shape[1 + len(others) :]), dtype=self.dtype)
        owner = np.searchsorted(self._ends, rows, side="right")
        for i in np.unique(owner):
            mine = np.flatnonzero(owner == i)
            # In the order of the disk.
            mine = mine[np.lexsort([axis[mine] for axis in (*reversed(others), rows)])]
            local = rows[mine] - (self._ends[i] - len(self._parts[i]))
            out[mine] = self._parts[i][(local, *(axis[mine] for axis in others)) if others else local]
        return out
