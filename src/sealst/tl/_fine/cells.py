"""Embeddings and expression of cells: of the patch tokens under each one, and of those around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Plane
from sealst._section.cells import tokens_around, tokens_under
from sealst._validate import as_columns, check_positive, listed
from sealst.models import Encoder, SealModel
from sealst.models._local import LocalHead
from sealst.tl._fine.bands import SMOOTH_OVERLAP, TokenSource, bands, n_overlap, n_views, token_source


@dataclass(frozen=True, eq=False)
class _Cells:
    """What was read of the cells of an element."""

    ids: np.ndarray
    #: (x, y) in pixels of the picture
    centres: np.ndarray
    #: (n, 2 * width), the mean of the tokens under each cell and beside it the mean of those around it; (n, 0) where it
    #: was not asked for
    embedding: np.ndarray
    #: counts per 10,000 of the genes that were asked for, (n, genes); (n, 0) without any
    counts: np.ndarray


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
    region = one_region(region)
    source = token_source(model, crop_of(sdata, model, crop_um, table_key), n_views(views))
    plane = _section.plane_of(sdata, source.crop, image_key=image_key, region=region, table_key=table_key)
    cells = _read_cells(plane, source, at, surroundings_um=surroundings_um, show=show, desc="embedding cells")
    given, table, _ = _write_embedding(sdata, plane, source, at, cells, key, surroundings_um, copy=copy)
    return given, table


def predict_cells(
    sdata: SpatialData,
    model: SealModel,
    at: str,
    genes: Sequence[str],
    *,
    surroundings_um: float,
    views: int | str,
    key: str,
    embedding_key: str | None,
    image_key: str | None,
    region: str | None,
    table_key: str,
    facts: dict[str, Any],
    show: bool | None,
    copy: bool,
) -> tuple[SpatialData, AnnData]:
    """Write the expression of cells into their table, and their embeddings where a slot is named.

    See `sealst.tl.predict`.
    """
    head, source = local_head(model), token_source(model, None, n_views(views))
    plane = _section.plane_of(sdata, source.crop, image_key=image_key, region=region, table_key=table_key)
    chosen = gene_positions(model, genes)
    cells = _read_cells(
        plane, source, at, surroundings_um=None if embedding_key is None else surroundings_um,
        function=lambda tokens: head.counts(tokens, chosen), show=show, desc="predicting cells",
    )  # fmt: skip
    frame = pd.DataFrame(np.log1p(cells.counts), columns=as_columns(list(genes), what="Genes"))
    given = sdata
    if embedding_key is not None:
        given, _, _ = _write_embedding(sdata, plane, source, at, cells, embedding_key, surroundings_um, copy=copy)
    entry = facts | {"at": at, "layer": Keys.LOGNORM, "views": source.views}
    entry["image_key"] = plane.image_key
    # A copy that was made already is written to.
    given, table, name = write_cells(
        given, plane, at, cells, frame, call="predict", key=key, entry=entry, copy=copy and embedding_key is None
    )
    logger.info("Wrote sdata.tables[%r].obsm[%r]: %d genes of %d cells", name, key, len(genes), len(cells.ids))
    return given, table


def one_region(region: str | Sequence[str] | None) -> str | None:
    """The region whose picture is read; an error where several are named."""
    if region is None or isinstance(region, str):
        return region
    if len(region) != 1:
        raise DataError(f"Cells and maps are of one picture at a time: name one `region`, found {listed(region)}.")
    return region[0]


def local_head(model: SealModel) -> LocalHead:
    """What predicts single patches; an error where the model has none."""
    if model.local is None:
        raise OrderError(
            "The model knows the expression of spots alone. Teach it that of single patches first: "
            "`sl.tl.fit_local(sections, model)`, with the sections it was trained on."
        )
    return model.local


def gene_positions(model: SealModel, genes: Sequence[str]) -> np.ndarray:
    """Positions of genes in a model's panel."""
    return pd.Index(model.panel.genes).get_indexer(pd.Index(genes))


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


def _read_cells(
    plane: Plane,
    source: TokenSource,
    at: str,
    *,
    surroundings_um: float | None,
    function: Callable[[np.ndarray], np.ndarray] | None = None,
    show: bool | None,
    desc: str,
) -> _Cells:
    """Read the tokens of cells once, for embeddings (where `surroundings_um` is given), for counts, or for both.

    Values are NaN where no token was read. `function` makes counts of tokens.
    """
    cells, grid = _section.outlines(plane, at), plane.grid(source.side, n_overlap(source, SMOOTH_OVERLAP))
    under = tokens_under(cells, grid)
    if not under.nnz:
        raise DataError(
            f"No cell of {at!r} lies on image {plane.image_key!r}. Do they share a coordinate system, in pixels of the "
            "full-resolution image?"
        )
    wanted = np.zeros(under.shape[1], dtype=bool)
    wanted[under.indices] = True
    width, shares = source.width, [(under, slice(None))]
    made = function
    if surroundings_um is not None:
        check_positive("surroundings_um", surroundings_um)
        around = tokens_around(cells, grid, surroundings_um / plane.mpp)
        # No cell without its surroundings: what is under it counts where it is large.
        wanted[around.indices] = True
        shares = [(under, slice(None, width)), (around, slice(None, width))]
        if function is not None:
            shares.append((under, slice(width, None)))

            def made(tokens: np.ndarray) -> np.ndarray:
                return np.concatenate([tokens, function(tokens)], axis=-1)

    found = pooled(bands(source, plane, grid, wanted.reshape(grid.shape), made, show=show, desc=desc), grid, shares)
    none = np.empty((len(cells), 0), dtype=np.float32)
    return _Cells(
        cells.index.to_numpy(),
        _section.centres_of(cells),
        none if surroundings_um is None else np.concatenate(found[:2], axis=1),
        none if function is None else found[-1],
    )


def pooled(found: Iterable[Band], grid: TokenGrid, shares: Sequence[tuple[csr_array, slice]]) -> list[np.ndarray]:
    """Weighted means of some values of tokens, by rows of a matrix of shares; NaN where nothing was covered."""
    columns, n = grid.shape[1], shares[0][0].shape[0]
    by_token = [(one.tocsc(), part) for one, part in shares]
    # The first band tells how wide a token is.
    out: list[np.ndarray] = []
    weight = np.zeros((len(shares), n, 1), dtype=np.float32)
    for band in found:
        rows, _, width = band.values.shape
        if not out:
            out = [np.zeros((n, len(range(width)[part])), dtype=np.float32) for _, part in by_token]
        tokens, covered = band.values.reshape(-1, width), band.covered.reshape(-1, 1).astype(np.float32)
        span = slice(band.top * columns, (band.top + rows) * columns)
        for k, (matrix, part) in enumerate(by_token):
            mine = matrix[:, span].tocsr()
            own = np.flatnonzero(np.diff(mine.indptr))
            out[k][own] += mine[own] @ tokens[:, part]
            weight[k, own] += mine[own] @ covered
    return [values / np.where(share > 0, share, np.nan) for values, share in zip(out, weight, strict=True)]


def _write_embedding(
    sdata: SpatialData, plane: Plane, source: TokenSource, at: str, cells: _Cells, key: str, surroundings_um: float,
    *, copy: bool,
) -> tuple[SpatialData, AnnData, str]:  # fmt: skip
    entry = source.facts | {"modality": "cells", "crop_um": source.crop.crop_um, "views": source.views, "at": at}
    entry |= {"surroundings_um": float(surroundings_um), "token_um": source.token_um, "image_key": plane.image_key}
    frame = pd.DataFrame(cells.embedding)
    given, table, name = write_cells(sdata, plane, at, cells, frame, call="embed", key=key, entry=entry, copy=copy)
    logger.info(
        "Wrote sdata.tables[%r].obsm[%r]: %d cells, %d dimensions (tokens of %.3g µm)",
        *(name, key, int(np.isfinite(frame[0]).sum()), frame.shape[1], source.token_um),
    )
    return given, table, name


def write_cells(
    sdata: SpatialData, plane: Plane, at: str, cells: _Cells, values: pd.DataFrame,
    *, call: str, key: str, entry: dict[str, Any], copy: bool,
) -> tuple[SpatialData, AnnData, str]:  # fmt: skip
    """Write values of cells into the table that annotates them, or into a new one; see `sealst.tl.embed`.

    A frame without named columns becomes an array. Rows of other elements keep what they have from a call of the kind.
    """
    ids = cells.ids
    held = _section.annotated(sdata, at)
    if held is None:
        name, target, rows = Keys.related(at, "table"), _new_table(plane, at, ids, cells.centres), np.arange(len(ids))
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
