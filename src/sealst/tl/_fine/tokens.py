"""Patch tokens of a whole picture as an image element."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import BaseTransformation, Scale, Sequence, get_transformation

from sealst import _section
from sealst._core.space.token_grid import TokenGrid
from sealst._core.space.views import check_views
from sealst._data.crops.source import MAX_RAM_BYTES
from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import absolute
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Plane
from sealst._validate import check_slot
from sealst.models import Encoder, SealModel
from sealst.tl._embed.inputs import resolved
from sealst.tl._fine.bands import OVERLAP, TokenSource, bands, n_overlap, token_source, wanted_tokens
from sealst.tl._fine.cells import crop_of
from sealst.tl._fine.stores import map_store, picture_digest

FORMAT = "sealst-token-map-1"
#: columns of tokens in a chunk on disk
_COLUMNS = 128
#: float16 holds no more
_HALF_LIMIT = 6e4


@documented
def token_map(
    sdata: SpatialData,
    model: SealModel | Encoder | str,
    path: str | PathLike[str] | None = None,
    *,
    views: int = 1,
    overlap: float = OVERLAP,
    crop_um: float | None = None,
    pretrained: bool = True,
    key_added: str | None = None,
    image_key: str | None = None,
    region: str | None = None,
    table_key: str = Keys.TABLE,
    overwrite: bool = False,
    device: str | None = None,
    progress: bool | None = None,
) -> None:
    """Stitch the encoder's patch tokens into a map of the picture, and add it as an image element.

    A vision transformer says something of every patch of a crop, about 7 µm wide; an embedding is their mean or a
    summary. Here overlapping crops are read across the picture and their patch tokens put side by side. Where crops
    overlap, tokens are averaged, and those at a crop's border count less, as they see less of what is around them.

    Parameters
    ----------
    sdata
        Section with an H&E image. Where `sealst.pp.tissue` has run, tokens are read on tissue alone.
    model
        A SEAL model, whose adapter has its part in the tokens, or an encoder or its name, see `sealst.tl.embed`.
    path
        New zarr store for the map, which is read from there lazily: what is there of a call that was cut off is gone on
        with. Without a path the map stays in memory, up to 2 GiB.
    views
        Over how many flips and rotations of each crop tokens are averaged, 1 to 8.
    overlap
        Share of its side that a crop has in common with the next, 0 to 0.75. The cost grows with 1 / (1 - overlap)².
    crop_um, pretrained
        For an encoder: which of the paired crop sizes to read, and whether to load weights, see `sealst.tl.embed`.
    key_added
        Name of the element; default ``"<image>_tokens"``. An element of this name is replaced.
    image_key, region
        The picture, by its name or by the region of the table that it belongs to; by default the only one.
    %(table_key)s
    overwrite
        Whether to replace what is at `path`.
    %(model.device)s
    %(progress)s

    Returns
    -------
    None; adds ``sdata.images["<image>_tokens" | key_added]``: (width, rows, columns), float16, 0 where nothing was
    read, in the coordinate systems of the picture.

    Raises
    ------
    DataError
        When the encoder has no patch tokens (a convolutional network), the map is too large for memory, or `path` holds
        something else.
    ScaleError
        When nothing says what a pixel measures.

    Examples
    --------
    >>> sl.tl.token_map(sdata, model, "tokens.zarr")  # doctest: +SKIP
    >>> sdata.images["s1_he_tokens"].shape  # doctest: +SKIP
    (384, 571, 642)
    """
    _section.needs_pixels(sdata)
    if key_added is not None:
        check_slot(key_added)
    made = resolved(model, pretrained=pretrained, device=device)
    source = token_source(made, crop_of(sdata, made, crop_um, table_key), check_views(views))
    plane = _section.plane_of(sdata, source.crop, image_key=image_key, region=region, table_key=table_key)
    grid = plane.grid(source.side, n_overlap(source, overlap))
    shape = (source.width, *grid.shape)
    key = map_key(plane, key_added, "tokens")
    if path is None:
        if 2 * np.prod(shape) > MAX_RAM_BYTES:
            raise DataError(
                f"The map has {shape[1]} x {shape[2]} tokens of {shape[0]} values, {2 * np.prod(shape) / 2**30:.1f} "
                "GiB: name a `path` to keep it on disk."
            )
        values: Any = np.zeros(shape, dtype=np.float16)
        _fill(values, source, plane, grid, show=progress)
    else:
        values = da.from_zarr(_on_disk(absolute(path), source, plane, grid, overwrite=overwrite, show=progress))
    add_map(plane, key, values, grid.token_px)
    logger.info("Wrote sdata.images[%r]: %d x %d tokens of %.3g µm", key, *grid.shape, source.token_um)


def map_key(plane: Plane, key_added: str | None, what: str) -> str:
    """Name of the element that a map becomes; an error where that would replace a picture."""
    key = key_added or Keys.related(plane.image_key, what)
    images = plane.sdata.images
    if key in images and _section.image_levels(images[key])[0].dtype.kind != "f":
        raise DataError(
            f"`sdata.images[{key!r}]` is a picture, which a map must not replace; name another `key_added`."
        )
    return key


def add_map(plane: Plane, key: str, values: Any, pixel: float, channels: list[str] | None = None) -> None:
    """Add an image element (c, y, x) whose pixels are squares of `pixel` pixels of the picture, aligned to it."""
    systems = get_transformation(plane.image, get_all=True)
    scale = Scale([pixel, pixel], axes=("x", "y"))
    transformations: dict[str, BaseTransformation] = {name: Sequence([scale, to]) for name, to in systems.items()}
    array = xr.DataArray(values, dims=("c", "y", "x"))
    element = Image2DModel.parse(array, c_coords=channels, transformations=transformations)
    if key in plane.sdata.images:
        del plane.sdata.images[key]
    plane.sdata.images[key] = element


def _fill(out: Any, source: TokenSource, plane: Plane, grid: TokenGrid, *, show: bool | None, first: int = 0) -> None:
    """Write bands of tokens into an array (width, rows, columns), from a row of crops on."""
    wanted = wanted_tokens(plane, grid)
    for band in bands(source, plane, grid, wanted, first=first, show=show, desc="reading tokens"):
        if not np.abs(band.values).max(initial=0) < _HALF_LIMIT:
            raise DataError(f"Tokens of {source.encoder.spec.key!r} are too large for float16.")
        rows = slice(band.top, band.top + len(band.values))
        out[:, rows] = np.moveaxis(band.values, 2, 0).astype(np.float16)
        if isinstance(out, zarr.Array):
            out.attrs["rows"] = rows.stop
    if isinstance(out, zarr.Array):
        out.attrs["rows"] = grid.shape[0]


def _on_disk(
    path: Path, source: TokenSource, plane: Plane, grid: TokenGrid, *, overwrite: bool, show: bool | None
) -> zarr.Array:
    """The map in a store that is filled here, or was (in part) by an earlier call of the same kind."""
    facts: dict[str, Any] = source.facts | {"format": FORMAT, "views": source.views, "crop_um": source.crop.crop_um}
    facts |= {"crop_px": source.crop.crop_px, "overlap": grid.overlap, "picture": picture_digest(plane, grid)}
    shape = (source.width, *grid.shape)
    chunks = (source.width, grid.step, min(_COLUMNS, shape[2]))
    with map_store(path, "tokens", facts, shape=shape, chunks=chunks, dtype="float16", overwrite=overwrite) as array:
        done = int(str(array.attrs["rows"]))
        if done < grid.shape[0]:
            _fill(array, source, plane, grid, show=show, first=done // grid.step)
    return array
