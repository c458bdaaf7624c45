"""Sparse matrices as files hold them: scipy trusts their indices, and reads or writes beyond its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from sealst._errors import DataError

#: indices that are looked at together
_BLOCK = 1 << 24


def check_bounds(values: Any, indices: Any, indptr: Any, shape: tuple[int, int], *, where: str) -> None:
    """Refuse a compressed matrix whose parts do not belong together, before scipy sees it.

    Parameters
    ----------
    values, indices, indptr
        Its arrays, in memory or of a file (h5py).
    shape
        Rows and columns as they are compressed: ``indptr`` runs over the first, ``indices`` over the second.
    where
        What holds it, for messages.

    Raises
    ------
    DataError
        When values are no numbers, indices lie outside the matrix, or ``indptr`` does not rise from 0 to the number of
        values.
    """
    n_major, n_minor = int(shape[0]), int(shape[1])
    starts = np.asarray(indptr[:])
    ends = int(starts[-1]) if len(starts) else -1
    why = ""
    if starts.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        why = f"`indptr` and `indices` are {starts.dtype} and {indices.dtype}, no whole numbers"
    elif values.dtype.kind not in "biufc":
        why = f"its values are {values.dtype}, no numbers"
    elif len(starts) != n_major + 1:
        why = f"`indptr` has {len(starts)} entries, {n_major + 1} are needed"
    elif starts[0] != 0 or (starts[1:] < starts[:-1]).any():
        why = "`indptr` does not rise from 0"
    elif not ends == len(indices) == len(values):
        why = f"`indptr` ends at {ends}, but there are {len(indices)} indices and {len(values)} values"
    else:
        for first in range(0, len(indices), _BLOCK):
            part = np.asarray(indices[first : first + _BLOCK])
            if (low := int(part.min())) < 0 or (high := int(part.max())) >= n_minor:
                found = low if low < 0 else high
                why = f"`indices` hold {found}, outside 0 to {n_minor - 1}"
                break
    if why:
        raise DataError(f"The sparse matrix in {where} is damaged: {why}. Copy or export it again.")


def check_sparse(matrix: Any, *, where: str) -> None:
    """Refuse a sparse matrix with positions outside its shape; what is not sparse passes."""
    if not sp.issparse(matrix):
        return
    if matrix.format in ("csr", "csc"):
        shape = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
        check_bounds(matrix.data, matrix.indices, matrix.indptr, shape, where=where)
    elif matrix.format == "coo":
        for at, n in zip(matrix.coords, matrix.shape, strict=True):
            if len(at) and not (at.min() >= 0 and at.max() < n):
                raise DataError(
                    f"The sparse matrix in {where} is damaged: it has entries at {at.min()} to {at.max()}, outside 0 "
                    f"to {n - 1}. Make it again."
                )


def check_table(table: Any, *, where: str) -> None:
    """Refuse a table (AnnData) that was read from a file, where any of its sparse matrices is damaged."""
    for slot, matrix in _matrices(table):
        check_sparse(matrix, where=f"{where} ({slot})")


def _matrices(table: Any) -> Iterator[tuple[str, Any]]:
    if table.isbacked:
        return
    yield "X", table.X
    if table.raw is not None:
        yield "raw", table.raw.X
    for slot in ("layers", "obsm", "varm", "obsp", "varp"):
        for name, value in getattr(table, slot).items():
            yield f"{slot}[{name!r}]", value
