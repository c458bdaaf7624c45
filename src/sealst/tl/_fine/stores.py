"""Maps in zarr stores of their own, filled row by row, and gone on with where a call was cut off."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sealst import _section
from sealst._core.space.token_grid import TokenGrid
from sealst._errors import DataError
from sealst._logging import logger
from sealst._process.locks import hold
from sealst._section import Plane


@contextmanager
def map_store(
    path: Path,
    what: str,
    facts: Mapping[str, Any],
    *,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    overwrite: bool | None = None,
) -> Iterator[zarr.Array]:
    """Inside a ``with`` block, the array of a map, new or as an earlier call left it.

    Its attribute ``"rows"`` counts what is finished, which the caller keeps.

    Parameters
    ----------
    path
        The store.
    what
        What it is a map of, for messages.
    facts
        What makes it this map and no other; ``"format"`` is what tells a map of this kind.
    shape, chunks, dtype
        Of the array.
    overwrite
        Whether another map there is replaced; None where the caller does not offer that.

    Raises
    ------
    DataError
        When something else is there, or the disk is too small for a new map.
    InUseError
        When another process writes to it.
    """
    if path.exists() and not (path / "zarr.json").is_file():
        raise DataError(f"{str(path)!r} is there and holds no map of {what}; name another `path`.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.parent / f".{path.name}.lock", f"The map of {what} {str(path)!r}"):
        array = None
        if path.exists():
            try:
                array = zarr.open_array(path, mode="r+")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{str(path)!r} holds no map of {what}, or a damaged one; name another `path`."
                ) from error
            held = {name: array.attrs.get(name) for name in facts}
            if held != facts:
                own = held["format"] == facts["format"]
                if not own or not overwrite:
                    differ = ", ".join(name for name, value in facts.items() if held[name] != value)
                    raise DataError(
                        f"{str(path)!r} holds something else than this map (other: {differ}). Name another `path`"
                        + (", or pass `overwrite=True`." if own and overwrite is not None else ".")
                    )
                array = None
        if array is None or overwrite:
            size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
            if size > free:
                raise DataError(
                    f"The map of {what} takes up to {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free at "
                    f"{str(path.parent)!r}; name a `path` on another disk, or ask for less."
                )
            array = zarr.create_array(
                path, shape=shape, chunks=chunks, dtype=dtype, fill_value=0, overwrite=True,
                attributes={**facts, "rows": 0},
            )  # fmt: skip
        if 0 < (done := int(str(array.attrs["rows"]))) < shape[1]:
            logger.info("going on at row %d of %d of %r", done, shape[1], str(path))
        yield array


def picture_digest(plane: Plane, grid: TokenGrid) -> str:
    """What changes with the picture, by its coarsest level, and with where tokens lie and are read."""
    digest = hashlib.sha256(np.ascontiguousarray(plane.levels[-1]).tobytes())
    wanted = _section.tissue_tokens(plane, grid)
    digest.update(repr((grid, wanted is None)).encode() + (b"" if wanted is None else np.packbits(wanted).tobytes()))
    return digest.hexdigest()[:16]
