"""Expression finer than a spot: maps of the picture, and cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.space.token_grid import TokenGrid, overlaps
from sealst._data.crops.source import MAX_RAM_BYTES
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Plane
from sealst._section.cells import tokens_under
from sealst._validate import as_columns, check_positive
from sealst.models import SealModel
from sealst.models._local import LocalHead
from sealst.tl._fine.bands import SMOOTH_OVERLAP, TokenSource, bands, n_overlap, n_views, token_source, wanted_tokens
from sealst.tl._fine.cells import pooled, write_cells
from sealst.tl._fine.tokens import add_map, map_key


def local_head(model: SealModel) -> LocalHead:
    """What predicts single patches; an error where the model has none."""
    if model.local is None:
        raise OrderError(
            "The model knows the expression of spots alone. Teach it that of single patches first: "
            "`sl.tl.fit_local(sections, model)`, with the sections it was trained on."
        )
    return model.local


def predict_map(
    sdata: SpatialData,
    model: SealModel,
    genes: Sequence[str],
    resolution_um: float,
    *,
    views: int | str,
    key: str | None,
    image_key: str | None,
    region: str | None,
    table_key: str,
    show: bool | None,
) -> None:
    """Write a map of expression as an image element, see `sealst.tl.predict`."""
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
    shape = tuple(max(1, int(np.ceil(n / side_px - 1e-6))) for n in (grid.height, grid.width))
    if (size := 4 * len(genes) * shape[0] * shape[1]) > MAX_RAM_BYTES:
        raise DataError(
            f"The map has {shape[0]} x {shape[1]} bins of {len(genes)} genes, {size / 2**30:.1f} GiB: ask for fewer "
            "`genes`, or a coarser `resolution_um`."
        )
    key = map_key(plane, key, "expression")
    values = _binned(source, plane, grid, head, _positions(model, genes), (shape[0], shape[1]), side_px, show=show)
    add_map(plane, key, values, side_px, as_columns(list(genes), what="Genes"))
    logger.info("Wrote sdata.images[%r]: %d genes, %d x %d bins of %g µm", key, len(genes), *shape, resolution_um)


def _binned(
    source: TokenSource, plane: Plane, grid: TokenGrid, head: LocalHead, genes: np.ndarray, shape: tuple[int, int],
    side_px: float, *, show: bool | None,
) -> np.ndarray:  # fmt: skip
    """log1p-CP10k of bins, float32 (genes, rows, columns), 0 where nothing was read: means of counts by area.

    Not NaN there, with which spatialdata-plot draws no picture.
    """
    wanted = wanted_tokens(plane, grid)
    down, across = (overlaps(n, grid.token_px, m, side_px) for n, m in zip(grid.shape, shape, strict=True))
    total, area = np.zeros((*shape, len(genes))), np.zeros((*shape, 1))

    def counts(tokens: np.ndarray) -> np.ndarray:
        return head.counts(tokens, genes)

    for band in bands(source, plane, grid, wanted, counts, show=show, desc="predicting the map"):
        part = down[:, band.top : band.top + len(band.values)]
        rows = np.flatnonzero(part.any(axis=1))
        covered = (band.covered & wanted[band.top : band.top + len(band.values)])[..., None]
        for out, values in ((total, band.values * covered), (area, covered.astype(float))):
            out[rows] += np.einsum("rc,cxg,sx->rsg", part[rows], values, across, optimize=True)
    mean = np.divide(total, area, out=np.zeros_like(total), where=area > 0)
    return np.moveaxis(np.log1p(mean), 2, 0).astype(np.float32)


def predict_cells(
    sdata: SpatialData,
    model: SealModel,
    at: str,
    genes: Sequence[str],
    *,
    views: int | str,
    key: str,
    image_key: str | None,
    region: str | None,
    table_key: str,
    facts: dict[str, Any],
    show: bool | None,
    copy: bool,
) -> tuple[SpatialData, AnnData]:
    """Write the expression of cells into their table, see `sealst.tl.predict`."""
    head, source = local_head(model), token_source(model, None, n_views(views))
    plane = _section.plane_of(sdata, source.crop, image_key=image_key, region=region, table_key=table_key)
    cells, grid = _section.outlines(plane, at), plane.grid(source.side, n_overlap(source, SMOOTH_OVERLAP))
    under, chosen = tokens_under(cells, grid), _positions(model, genes)
    wanted = np.zeros(under.shape[1], dtype=bool)
    wanted[under.indices] = True
    made = bands(
        source, plane, grid, wanted.reshape(grid.shape), lambda tokens: head.counts(tokens, chosen), show=show,
        desc="predicting cells",
    )  # fmt: skip
    values = np.log1p(pooled(made, grid, (under,)))
    frame = pd.DataFrame(values, columns=as_columns(list(genes), what="Genes"))
    entry = facts | {
        "at": at,
        "readout": "local",
        "layer": Keys.LOGNORM,
        "views": source.views,
        "image_key": plane.image_key,
    }
    given, table, name = write_cells(
        sdata, plane, at, cells.index.to_numpy(), frame, _section.centres_of(cells), call="predict", key=key,
        entry=entry, copy=copy,
    )  # fmt: skip
    logger.info("Wrote sdata.tables[%r].obsm[%r]: %d genes of %d cells", name, key, len(genes), len(cells))
    return given, table


def _positions(model: SealModel, genes: Sequence[str]) -> np.ndarray:
    return pd.Index(model.panel.genes).get_indexer(pd.Index(genes))
