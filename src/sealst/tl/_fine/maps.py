"""Maps of expression, finer than a spot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import dask.array as da
import numpy as np
import zarr
from scipy.sparse import csr_array
from spatialdata import SpatialData

from sealst import _section
from sealst._core.space.token_grid import Band, TokenGrid, overlaps
from sealst._data.crops.source import MAX_RAM_BYTES
from sealst._errors import DataError
from sealst._files import absolute
from sealst._logging import logger
from sealst._section import Plane
from sealst._validate import as_columns, check_positive
from sealst.models import SealModel
from sealst.models._local import LocalHead
from sealst.tl._fine.bands import (
    SMOOTH_OVERLAP,
    TokenSource,
    n_overlap,
    n_views,
    places_of,
    portions,
    token_source,
    wanted_tokens,
)
from sealst.tl._fine.cells import gene_positions, local_head
from sealst.tl._fine.stores import map_store, picture_digest
from sealst.tl._fine.tokens import add_map, map_key

FORMAT = "sealst-expression-map-1"
#: genes, rows and columns of bins in a chunk on disk: about what a row of crops finishes
_CHUNK = (64, 8, 512)
#: of what a portion of genes says of the tokens of a row of crops
_PORTION_BYTES = 1 << 25


def predict_map(
    sdata: SpatialData,
    model: SealModel,
    genes: Sequence[str],
    resolution_um: float,
    *,
    path: str | PathLike[str] | None,
    views: int | str,
    key: str | None,
    image_key: str | None,
    region: str | None,
    table_key: str,
    facts: dict[str, Any],
    show: bool | None,
) -> None:
    """Write a map of expression as an image element, see `sealst.tl.predict`; `facts` are what is said of it."""
    head, source = local_head(model), token_source(model, None, n_views(views))
    check_positive("resolution_um", resolution_um)
    if resolution_um < source.token_um * 0.999:
        raise DataError(
            f"`resolution_um` is {resolution_um:g}, but the model sees patches of {source.token_um:.3g} µm; ask for "
            "that or more."
        )
    plane = _section.plane_of(sdata, source.crop, image_key=image_key, region=region, table_key=table_key)
    grid = plane.grid(source.side, n_overlap(source, SMOOTH_OVERLAP))
    side_px = resolution_um / plane.mpp
    n_rows, n_columns = (max(1, int(np.ceil(n / side_px - 1e-6))) for n in (grid.height, grid.width))
    shape, size = (len(genes), n_rows, n_columns), 4 * len(genes) * n_rows * n_columns
    if path is None and size > MAX_RAM_BYTES:
        raise DataError(
            f"The map has {n_rows} x {n_columns} bins of {len(genes)} genes, {size / 2**30:.1f} GiB: name a `path` to "
            "keep it on disk, or ask for fewer `genes`, or a coarser `resolution_um`."
        )
    key = map_key(plane, key, "expression")
    names, chosen = as_columns(list(genes), what="Genes"), gene_positions(model, genes)
    wanted = wanted_tokens(plane, grid)
    logger.info(
        "a map of %d x %d bins of %d genes: %d crops through the encoder%s, %.3g GiB %s",
        *(n_rows, n_columns, len(genes), len(places_of(plane, grid, wanted))),
        f", {source.views} views of each" if source.views > 1 else "",
        *(size / 2**30, "in memory" if path is None else "on disk, less what compression saves"),
    )
    values: Any
    if path is None:
        values = np.zeros(shape, dtype=np.float32)
        _fill(values, source, plane, grid, wanted, head, chosen, side_px, show=show)
    else:
        made: dict[str, Any] = source.facts | {"format": FORMAT, "views": source.views, "bin_um": float(resolution_um)}
        made |= {"local": head.digest, "overlap": grid.overlap, "picture": picture_digest(plane, grid)}
        made["genes"] = hashlib.sha256("\n".join(genes).encode()).hexdigest()[:16]
        chunks = tuple(min(n, m) for n, m in zip(shape, _CHUNK, strict=True))
        where = absolute(path)
        with map_store(where, "expression", made, shape=shape, chunks=chunks, dtype="float32") as array:
            done = int(str(array.attrs["rows"]))
            if done < n_rows:
                _fill(array, source, plane, grid, wanted, head, chosen, side_px, show=show, done=done)
        values = da.from_zarr(array)
    add_map(plane, key, values, side_px, names)
    own = {"resolution_um": float(resolution_um), "views": source.views, "image_key": plane.image_key}
    _section.record_map(sdata, key, facts | own, table_key)
    logger.info(
        "Wrote sdata.images[%r]: %d genes, %d x %d bins of %g µm", key, len(genes), n_rows, n_columns, resolution_um
    )


def _fill(
    out: Any, source: TokenSource, plane: Plane, grid: TokenGrid, wanted: np.ndarray, head: LocalHead,
    genes: np.ndarray, side_px: float, *, show: bool | None, done: int = 0,
) -> None:  # fmt: skip
    """Write log1p-CP10k of bins, (genes, rows, columns): means of counts by area; what nothing was read of stays 0.

    Not NaN there, with which spatialdata-plot draws no picture. Rows before `done` are finished.
    """
    n_rows, n_columns = out.shape[1:]
    bytes_per_gene = 4 * grid.side * grid.shape[1]
    step = max(1, _PORTION_BYTES // bytes_per_gene)
    # Whole chunks, where there are several.
    step -= step % _CHUNK[0] if step > _CHUNK[0] else 0
    parts = [slice(start, start + step) for start in range(0, len(genes), step)]

    def function(part: slice) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
        own = genes[part]
        return len(own), lambda tokens: head.counts(tokens, own)

    across = csr_array(overlaps(grid.shape[1], grid.token_px, n_columns, side_px))
    # The row of crops whose tokens begin with, or before, the first bins that are not finished.
    first = min(int(done * side_px / grid.token_px + 1e-6) // grid.step, grid.crops[0] - 1)
    rows, total, area = done, np.zeros((0, n_columns, len(genes))), np.zeros((0, n_columns))
    made = portions(
        source, plane, grid, wanted, [function(part) for part in parts], first=first, show=show,
        desc="predicting the map",
    )  # fmt: skip
    for number, some in enumerate(made, start=first):
        last = number == grid.crops[0] - 1
        top = number * grid.step
        bottom = grid.shape[0] if last else top + grid.step
        # Bins that these tokens reach into, and those that no later ones do.
        reached = min(n_rows, int(np.ceil(bottom * grid.token_px / side_px - 1e-6)))
        whole = n_rows if last else min(n_rows, int(bottom * grid.token_px / side_px + 1e-6))
        more = max(0, max(reached, whole) - rows - len(total))
        total = np.concatenate([total, np.zeros((more, *total.shape[1:]))])
        area = np.concatenate([area, np.zeros((more, n_columns))])
        down = _overlaps_from(rows, len(total), top, bottom - top, grid.token_px, side_px)
        for k, (part, band) in enumerate(zip(parts, some, strict=False)):
            covered = band.covered & wanted[top:bottom]
            if not k:
                area += down @ (across @ covered.T.astype(float)).T
            total[:, :, part] += _binned(band, covered, down, across)
        if (n := max(0, whole - rows)) > 0:
            for part in parts:
                mean = np.divide(
                    total[:n, :, part], area[:n, :, None], out=np.zeros_like(total[:n, :, part]),
                    where=area[:n, :, None] > 0,
                )  # fmt: skip
                if mean.any():
                    out[part, rows : rows + n] = np.moveaxis(np.log1p(mean), 2, 0).astype(np.float32)
            rows, total, area = rows + n, total[n:], area[n:]
            if isinstance(out, zarr.Array):
                out.attrs["rows"] = rows


def _binned(band: Band, covered: np.ndarray, down: np.ndarray, across: csr_array) -> np.ndarray:
    """Sums over bins of counts of tokens, times their area: (rows, columns, genes)."""
    n, columns, genes = band.values.shape
    flat = np.moveaxis(band.values * covered[..., None], 1, 0).reshape(columns, n * genes)
    wide = (across @ flat.astype(float)).reshape(-1, n, genes)
    return np.einsum("rc,scg->rsg", down, wide, optimize=True)


def _overlaps_from(first: int, n: int, top: int, n_tokens: int, token: float, side: float) -> np.ndarray:
    """As `overlaps`, of `n` bins from one on with tokens from another on: (bins, tokens)."""
    bins, tokens = first + np.arange(n), top + np.arange(n_tokens)
    low = np.maximum.outer(bins * side, tokens * token)
    return np.clip(np.minimum.outer((bins + 1) * side, (tokens + 1) * token) - low, 0, None)
