"""Keep the crops of a section on disk, so that repeated passes need not decode the image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spatialdata import SpatialData

from sealst import _section
from sealst._data.crops.cache import write_cache
from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import absolute
from sealst._keys import Keys
from sealst._logging import logger
from sealst._settings import settings
from sealst._validate import listed


@documented
def cache_crops(
    sdata: SpatialData,
    path: str | Path | None = None,
    *,
    crop_um: float | None = None,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Cut the paired crops once and keep them on disk; training and embedding then read them from there.

    Worth it where the image is slow to decode (whole slides, JPEG 2000) or crops are read many times. A crop of 224 px
    takes 147 KiB. The store is a sharded zarr with a checksum for every few crops. An interrupted run is continued;
    when two processes write the same store, the second waits and then uses what the first has written. Before crops are
    read from a store its squares and some of its pixels are compared with the image, so that a store of other crops is
    never used: a warning says so and the image is read instead.

    Parameters
    ----------
    sdata
        Section(s) with crops, see `sealst.pp.pair_crops`.
    path
        Folder to write to; with several regions one store for each is made inside it. By default
        ``sl.settings.cache_dir / "crops"``.
    crop_um
        Which of the paired crop sizes to keep, in µm; default the first.
    %(region)s
    %(table_key)s
    overwrite
        Whether to replace a store that holds other crops.
    %(progress)s

    Returns
    -------
    None; writes

    - ``<path>/<section>-<digest>.zarr``: ``crops`` uint8 (n, px, px, 3) and ``boxes`` float64 (n, 4), in the order in
      which the image was read
    - ``table.uns["sealst"]["crop_caches"][region][<µm>]``: path of the store

    Raises
    ------
    OrderError
        When `sealst.pp.pair_crops` has not run.
    DataError
        When `path` holds something else, the disk is too small, or no spot has a usable crop.

    Examples
    --------
    >>> sl.pp.pair_crops(sdata)  # doctest: +SKIP
    >>> sl.pp.cache_crops(sdata, "crops")  # doctest: +SKIP
    """
    _section.needs_pixels(sdata)
    table = _section.get_table(sdata, table_key)
    folder = settings.cache_dir / "crops" if path is None else absolute(path)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"`path` {str(folder)!r} is a file; name a folder.")
    stored = {name: dict(known) for name, known in _section.recorded(table, "crop_caches").items()}
    sources = []
    for one in _section.regions_of(table, region):
        crops = _section.region_crops(sdata, table, one, crop_um)
        if not crops.usable.any():
            raise DataError(
                f"No spot of {one.name!r} has a usable crop; `.obs['crop_reason']` says "
                f"{listed(table.obs[Keys.CROP_REASON].iloc[one.rows].unique())}."
            )
        sources.append((crops, crops.source))
    for crops, source in sources:
        one, definition, px = crops.region, crops.definition, crops.crop_px
        # The store is named by what is cut, so that other sizes, spots or stains get a store of their own.
        rounded = source.boxes.round(3) + 0.0
        cut = rounded[np.lexsort(rounded.T)].tobytes() + f"{px} {definition['image_key']}".encode()
        target = (folder / f"{one.section}-{hashlib.sha256(cut).hexdigest()[:12]}.zarr").absolute()
        options: Any = {"section": one.section, "overwrite": overwrite, "show": progress}
        cache = write_cache(target, source.levels, source.boxes, px, **options)
        stored.setdefault(one.name, {})[f"{definition['crop_um']:g}"] = str(target)
        logger.info("%s: %d crops in %s", one.section, len(cache.boxes), target)
    _section.record(table, "crop_caches", stored)
