"""Cells of a section: beside its spots, with counts of their own, and on a grid of patch tokens."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from scipy.sparse import csr_array, csr_matrix
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from sealst._core.space.token_grid import TokenGrid
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section.planes import centres_of
from sealst._section.records import record
from sealst._validate import listed

#: cells that are laid on tokens at once, so that memory does not grow with their number
_CELLS = 20_000


def add_cells(
    sdata: SpatialData, cells: gpd.GeoSeries, counts: csr_matrix, ids: np.ndarray, var: pd.DataFrame,
    *, call: str, entry: dict[str, Any],
) -> None:  # fmt: skip
    """Add the cells of a section that was just read: ``shapes["<section>_cells"]`` and the table that annotates them.

    Parameters
    ----------
    sdata
        A section as from `from_arrays`; the cells are of its patient and so on.
    cells
        Outlines by id, in pixels of the section's picture.
    counts, ids, var
        Raw counts (cells, genes), the ids of their rows, and the genes. Cells are those of the counts that have an
        outline, in this order.
    call, entry
        What reads them, and what it says of itself.
    """
    spots = sdata.tables[Keys.TABLE]
    section = str(spots.obs[Keys.SECTION].iloc[0])
    name, image = Keys.cells(section), sdata.images[Keys.image(section)]
    rows, kept = outlined(cells, ids, section)
    table = AnnData(csr_matrix(counts[rows], dtype=np.float32), var=var)
    table.obs_names = [f"{section}_{one}" for one in kept.index]
    table.obs["region"] = pd.Categorical([name] * len(rows))
    table.obs["cell_id"] = kept.index.to_numpy()
    for key in (Keys.PATIENT, Keys.SECTION, Keys.ORGAN, Keys.TECHNOLOGY):
        table.obs[key] = pd.Categorical([str(spots.obs[key].iloc[0])] * len(rows))
    table.obsm[Keys.SPATIAL] = centres_of(kept)
    left = {"cells_without_outline": len(ids) - len(rows), "outlines_without_counts": len(cells) - len(rows)}
    record(table, call, entry | left)
    sdata.shapes[name] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=kept.to_numpy(), index=kept.index.to_numpy()),
        transformations=get_transformation(image, get_all=True),
    )
    sdata.tables[Keys.related(name, "table")] = TableModel.parse(
        table, region=name, region_key="region", instance_key="cell_id"
    )
    logger.info(
        f"{section}: {len(rows)} cells of {table.n_vars} genes ({left['cells_without_outline']} without an outline and "
        f"{left['outlines_without_counts']} outlines without counts were left out)"
    )


def add_nuclei(sdata: SpatialData, nuclei: gpd.GeoSeries) -> None:
    """Add the nuclei of a section that was just read: ``shapes["<section>_nuclei"]``, one shape a cell.

    Parameters
    ----------
    sdata
        A section as from `from_arrays`.
    nuclei
        Outlines by the id of their cell, in pixels of the section's picture; those of one cell are joined.
    """
    section = str(sdata.tables[Keys.TABLE].obs[Keys.SECTION].iloc[0])
    codes, ids = pd.factorize(nuclei.index)
    shapes = nuclei.to_numpy()
    if len(ids) < len(shapes):
        order = np.argsort(codes, kind="stable")
        groups = np.split(shapes[order], np.flatnonzero(np.diff(codes[order])) + 1)
        shapes = np.array([one[0] if len(one) == 1 else shapely.union_all(shapely.make_valid(one)) for one in groups])
    sdata.shapes[Keys.nuclei(section)] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=shapes, index=ids),
        transformations=get_transformation(sdata.images[Keys.image(section)], get_all=True),
    )
    logger.info(f"{section}: {len(nuclei)} nuclei of {len(ids)} cells")


def outlined(cells: gpd.GeoSeries, ids: np.ndarray, section: str) -> tuple[np.ndarray, gpd.GeoSeries]:
    """Which rows of counts, given the ids of their cells, have an outline, and these outlines.

    Raises
    ------
    DataError
        When none has, or two outlines have the same id.
    """
    if cells.index.has_duplicates:
        raise DataError(f"{section}: cell id(s) {listed(cells.index[cells.index.duplicated()][:3])} occur twice.")
    place = cells.index.get_indexer(pd.Index(ids))
    rows = np.flatnonzero(place >= 0)
    if not len(rows):
        raise DataError(
            f"{section}: no cell with counts has an outline: ids of the counts begin {listed(ids[:3])}, those of the "
            f"outlines {listed(cells.index[:3])}. Are the two files of one run?"
        )
    return rows, cells.iloc[place[rows]]


def tokens_under(cells: gpd.GeoSeries, grid: TokenGrid) -> csr_array:
    """Share of every cell's area on each token, (cells, tokens row by row); of a point, the token that it lies in.

    Parameters
    ----------
    cells
        Polygons or points in pixels of the full-resolution picture.
    grid
        The tokens. What of a cell lies beyond them does not count, so that rows may sum to less than 1.
    """
    parts = [_under(cells.to_numpy()[start : start + _CELLS], grid) for start in range(0, len(cells), _CELLS)]
    rows = np.concatenate([np.full(len(part[0]), 0) + part[0] + i * _CELLS for i, part in enumerate(parts)])
    tokens, share = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    shape = (len(cells), grid.shape[0] * grid.shape[1])
    return csr_array((share, (rows, tokens)), shape=shape, dtype=np.float32)


def _under(cells: np.ndarray, grid: TokenGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell, token and share of all pairs that touch."""
    rows, columns = grid.shape
    side = grid.token_px
    known = np.flatnonzero(~(shapely.is_missing(cells) | shapely.is_empty(cells)))
    bounds = np.floor(shapely.bounds(cells[known]) / side).astype(int)
    left, top, right, bottom = bounds.T
    left, top = left.clip(0, columns), top.clip(0, rows)
    across = (right.clip(-1, columns - 1) - left + 1).clip(0)
    down = (bottom.clip(-1, rows - 1) - top + 1).clip(0)
    n = across * down
    cell = np.repeat(np.arange(len(known)), n)
    # Position of a pair among those of its cell.
    place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    row, column = top[cell] + place // across[cell], left[cell] + place % across[cell]
    area = shapely.area(cells[known])
    share = np.ones(len(cell))
    flat = area[cell] > 0
    if flat.any():
        x, y = column[flat] * side, row[flat] * side
        squares = shapely.box(x, y, x + side, y + side)
        share[flat] = shapely.area(shapely.intersection(cells[known][cell[flat]], squares)) / area[cell[flat]]
    kept = share > 0
    return known[cell[kept]], row[kept] * columns + column[kept], share[kept]


def tokens_around(cells: gpd.GeoSeries, grid: TokenGrid, width_px: float) -> csr_array:
    """Equal shares of the tokens with their centre in the disc of this width around each cell's centre."""
    rows, columns = grid.shape
    centres = centres_of(cells) / grid.token_px - 0.5
    reach = int(np.ceil(width_px / 2 / grid.token_px))
    dy, dx = (a.ravel() for a in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(cells), _CELLS):
        near = centres[start : start + _CELLS]
        nearest = np.floor(np.nan_to_num(near, nan=-1e6) + 0.5).astype(int)
        column, row = nearest[:, :1] + dx, nearest[:, 1:] + dy
        distance = np.hypot(column - near[:, :1], row - near[:, 1:]) * grid.token_px
        inside = (distance <= width_px / 2) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        found.append((start + np.nonzero(inside)[0], (row * columns + column)[inside]))
    cell, token = (np.concatenate([one[k] for one in found]) for k in (0, 1))
    share = 1 / np.bincount(cell, minlength=len(cells)).clip(1)
    return csr_array((share[cell], (cell, token)), shape=(len(cells), rows * columns), dtype=np.float32)
