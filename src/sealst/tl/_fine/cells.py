"""Embeddings of cells: the patch tokens under each one, and those around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_array
from spatialdata import SpatialData
from spatialdata.models import TableModel

from sealst import _section
from sealst._core.space.geometry import CropSpec
from sealst._core.space.token_grid import Band, TokenGrid
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Plane
from sealst._section.cells import tokens_around, tokens_under
from sealst._validate import check_positive
from sealst.models import Encoder, SealModel
from sealst.tl._fine.bands import SMOOTH_OVERLAP, TokenSource, bands, n_overlap, n_views, token_source


def embed_cells(
    sdata: SpatialData,
    model: SealModel | Encoder,
    at: str,
    *,
    surroundings_um: float,
    views: int | str,
    crop_um: float | None,
    image_key: str | None,
    region: Any,
    table_key: str,
    key: str,
    show: bool | None,
    copy: bool,
) -> tuple[SpatialData, AnnData]:
    """Embed the cells of an element and write them into their table; see `sealst.tl.embed`."""
    _section.needs_pixels(sdata)
    if region is not None and not isinstance(region, str):
        raise DataError("Cells are embedded on one picture at a time: name one `region`.")
    source = token_source(model, crop_of(sdata, model, crop_um, table_key), n_views(views))
    plane = _section.plane_of(sdata, source.crop, image_key=image_key, region=region, table_key=table_key)
    n = n_overlap(source, SMOOTH_OVERLAP)
    ids, values, centres = cell_embeddings(plane, source, at, surroundings_um=surroundings_um, n_overlap=n, show=show)
    entry = source.facts | {"modality": "cells", "crop_um": source.crop.crop_um, "views": source.views, "at": at}
    entry |= {"surroundings_um": float(surroundings_um), "token_um": source.token_um, "image_key": plane.image_key}
    frame = pd.DataFrame(values)
    given, table, name = write_cells(
        sdata, plane, at, ids, frame, centres, call="embed", key=key, entry=entry, copy=copy
    )
    logger.info(
        "Wrote sdata.tables[%r].obsm[%r]: %d cells, %d dimensions (tokens of %.3g µm)",
        *(name, key, int(np.isfinite(values[:, 0]).sum()), values.shape[1], source.token_um),
    )
    return given, table


def crop_of(sdata: SpatialData, model: SealModel | Encoder, crop_um: float | None, table_key: str) -> CropSpec | None:
    """Crops that a model takes: an encoder those that were paired, or squares of `crop_um` at its own input size."""
    if isinstance(model, SealModel):
        if crop_um is not None and crop_um != model.crop.crop_um:
            raise DataError(f"`crop_um` is {crop_um:g}, but the model was trained on {model.crop.crop_um:g} µm.")
        return model.crop
    table = _section.get_table(sdata, table_key) if table_key in sdata.tables else None
    regions = [] if table is None else _section.regions_of(table)
    if table is not None and (paired := [one for one in regions if _section.has_crops(table, one)]):
        return _section.crop_size(table, paired, crop_um)
    if crop_um is None:
        return None
    check_positive("crop_um", crop_um)
    return CropSpec(float(crop_um), model.spec.input_px)


def cell_embeddings(
    plane: Plane, source: TokenSource, at: str, *, surroundings_um: float, n_overlap: int, show: bool | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embed the cells of an element.

    Returns
    -------
    Their ids (n,); embeddings (n, 2 * width), the mean of the tokens under each cell and beside it the mean of those
    around it, NaN where no token was read; and their centres (x, y) in pixels of the picture.
    """
    check_positive("surroundings_um", surroundings_um)
    cells = _section.outlines(plane, at)
    grid = plane.grid(source.side, n_overlap)
    around_px = surroundings_um / plane.mpp
    under, around = tokens_under(cells, grid), tokens_around(cells, grid, around_px)
    # No cell without its surroundings: what is under it counts where it is large.
    wanted = np.zeros(under.shape[1], dtype=bool)
    wanted[under.indices] = wanted[around.indices] = True
    if not under.nnz:
        raise DataError(
            f"No cell of {at!r} lies on image {plane.image_key!r}. Do they share a coordinate system, in pixels of the "
            "full-resolution image?"
        )
    found = bands(source, plane, grid, wanted.reshape(grid.shape), show=show, desc="embedding cells")
    return cells.index.to_numpy(), pooled(found, grid, (under, around)), _section.centres_of(cells)


def pooled(found: Iterable[Band], grid: TokenGrid, shares: tuple[csr_array, ...]) -> np.ndarray:
    """Weighted means of tokens by rows of each matrix of shares, side by side; NaN where nothing was covered."""
    columns, n = grid.shape[1], shares[0].shape[0]
    by_token = [one.tocsc() for one in shares]
    # The first band tells how wide a token is.
    out, weight = np.empty((len(shares), n, 0), dtype=np.float32), np.zeros((len(shares), n, 1), dtype=np.float32)
    for band in found:
        rows, _, width = band.values.shape
        if not out.shape[2]:
            out = np.zeros((len(shares), n, width), dtype=np.float32)
        tokens, covered = band.values.reshape(-1, width), band.covered.reshape(-1, 1).astype(np.float32)
        span = slice(band.top * columns, (band.top + rows) * columns)
        for k, matrix in enumerate(by_token):
            part = matrix[:, span].tocsr()
            own = np.flatnonzero(np.diff(part.indptr))
            out[k, own] += part[own] @ tokens
            weight[k, own] += part[own] @ covered
    return np.concatenate(out / np.where(weight > 0, weight, np.nan), axis=1)


def write_cells(
    sdata: SpatialData, plane: Plane, at: str, ids: np.ndarray, values: pd.DataFrame, centres: np.ndarray,
    *, call: str, key: str, entry: dict[str, Any], copy: bool,
) -> tuple[SpatialData, AnnData, str]:  # fmt: skip
    """Write values of cells into the table that annotates them, or into a new one; see `sealst.tl.embed`.

    A frame without named columns becomes an array. Rows of other elements keep what they have from a call of the kind.
    """
    held = _section.annotated(sdata, at)
    if held is None:
        name, target, rows = Keys.related(at, "table"), _new_table(plane, at, ids, centres), np.arange(len(ids))
    else:
        name, region = held
        place = pd.Index(ids).get_indexer(pd.Index(region.ids))
        rows, values = region.rows[place >= 0], values.iloc[place[place >= 0]]
        if not len(rows):
            raise DataError(
                f"No row of table {name!r} has the id of a cell of {at!r}: {list(region.ids[:3])} against "
                f"{list(ids[:3])}."
            )
        target = sdata.tables[name].copy() if copy else sdata.tables[name]
    out = pd.DataFrame(np.nan, index=target.obs_names, columns=values.columns, dtype=np.float32)
    before, stored = _section.recorded(target, call).get(key, {}), target.obsm.get(key)
    facts = {k: value for k, value in entry.items() if np.isscalar(value) and k not in ("at", "image_key")}
    if stored is not None and all(before.get(k) == value for k, value in facts.items()):
        stored = pd.DataFrame(stored, index=target.obs_names)
        out = stored.copy() if stored.columns.equals(values.columns) else out
    if held is not None:
        out.iloc[held[1].rows] = np.nan
    out.iloc[rows] = values.to_numpy()
    target.obsm[key] = out.to_numpy() if isinstance(values.columns, pd.RangeIndex) else out
    _section.record_slot(target, call, key, entry)
    if copy:
        return _section.with_table(sdata, name, target), target, name
    if held is None:
        sdata.tables[name] = target
    return sdata, target, name


def _new_table(plane: Plane, at: str, ids: np.ndarray, centres: np.ndarray) -> AnnData:
    """A table without genes, a row for each cell."""
    section = plane.image_key.removesuffix("_he")
    columns = {"region": pd.Categorical([at] * len(ids)), "instance_id": ids}
    obs = pd.DataFrame(columns, index=[f"{at}_{i}" for i in ids])
    obs[Keys.SECTION] = section
    table = ad.AnnData(obs=obs)
    table.obsm[Keys.SPATIAL] = _section.on_canvas(plane, centres)
    return TableModel.parse(table, region=at, region_key="region", instance_key="instance_id")
