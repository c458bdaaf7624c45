"""Transcripts and cells of a Xenium output folder, pooled into squares of the H&E image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import scipy.sparse as sp
import shapely

from sealst._core.genes.names import is_control
from sealst._core.space.geometry import apply_affine
from sealst._core.space.pooling import PointCounter, SquareGrid, pool_rows, sum_columns
from sealst._errors import DataError, ScaleError
from sealst._files import visible
from sealst._logging import warn
from sealst._validate import check_counts, listed
from sealst.io._matrix10x import GENES, read_h5, read_mtx

_TRANSCRIPTS = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_OUTLINES = ("cell_boundaries.parquet", "cell_boundaries.csv.gz", "cell_boundaries.csv")
_NUCLEI = ("nucleus_boundaries.parquet", "nucleus_boundaries.csv.gz", "nucleus_boundaries.csv")
_MATRIX, _MATRIX_FOLDER = "cell_feature_matrix.h5", "cell_feature_matrix"
#: share of transcripts outside the image that is said, and by which an inverted alignment must fit better
_NOTABLE = 0.05
DIRECTION = "It must map pixels of the H&E to pixels of the morphology image, as Xenium Explorer writes it."
#: transcripts read at a time, and bytes of a csv file
_BATCH, _BLOCK = 1 << 18, 1 << 24
# What arrow, pandas and h5py raise for damaged, empty or binary files.
_READ_ERRORS = (pa.ArrowException, ValueError, OSError, EOFError, KeyError)


@dataclass(frozen=True)
class Frame:
    """Where the positions of a run, in µm, lie in its H&E image."""

    grid: SquareGrid
    #: 3 x 3 affine from µm to pixels of the H&E
    to_image: np.ndarray
    #: the same, had the alignment been given in the opposite direction
    opposite: np.ndarray


class Pooled(NamedTuple):
    """Counts of the squares that hold something."""

    squares: np.ndarray
    counts: sp.csr_matrix
    #: indexed by gene symbol, with `gene_ids` where they are known
    var: pd.DataFrame
    #: what was read and what was left out
    tally: dict[str, int]


@dataclass
class _Locator:
    """Counts what lies in the image, and what would if the alignment were turned round."""

    frame: Frame
    total: int = 0
    inside: int = 0
    inside_opposite: int = 0
    without_position: int = 0

    def locate(self, um: np.ndarray) -> np.ndarray:
        finite = np.isfinite(um).all(axis=1)
        squares = self.frame.grid.locate(apply_affine(self.frame.to_image, um))
        self.without_position += int((~finite).sum())
        self.total += int(finite.sum())
        self.inside += int((squares >= 0).sum())
        self.inside_opposite += int(self.frame.grid.inside(apply_affine(self.frame.opposite, um)).sum())
        return squares

    def check(self, what: str, max_outside: float) -> dict[str, int]:
        """Refuse an alignment that puts too much outside the image; otherwise what was left out."""
        outside = self.total - self.inside
        size = f"{self.frame.grid.width:.0f} x {self.frame.grid.height:.0f} px"
        text = f"{outside} of {self.total} {what} lie outside the H&E image ({size})"
        if self.inside_opposite > max(self.inside + _NOTABLE * self.total, self.total / 2):
            raise ScaleError(
                f"{text}, but {self.inside_opposite} lie inside when the alignment is inverted: it is given in the "
                f"wrong direction. {DIRECTION} Pass `alignment=np.linalg.inv(matrix)`."
            )
        if outside > max_outside * self.total:
            raise ScaleError(
                f"{text}. Does the alignment belong to this image, and is the image the one it was made for (not a "
                "downsampled copy)? Raise `max_outside` if the picture truly shows only a part of the section."
            )
        if outside > _NOTABLE * self.total:
            warn(f"{text} and are left out. If it shows the whole section, the alignment is not its own.")
        return {"outside_image": outside, "without_position": self.without_position}


def pool_transcripts(folder: Path, frame: Frame, *, min_qv: float, max_outside: float) -> Pooled:
    """Count the transcripts of genes by square and gene, batch by batch."""
    path = find_file(folder, _TRANSCRIPTS)
    if path is None:
        raise DataError(
            f"No transcripts in {str(folder)!r}: expected {listed(_TRANSCRIPTS)}; it holds {listed(visible(folder))}. "
            f"With {_MATRIX} (or the folder {_MATRIX_FOLDER}) and cells.parquet, `source='cells'` pools the cells "
            "instead."
        )
    counter, placed = PointCounter(), _Locator(frame)
    columns: dict[str, int] = {}
    tally = {"transcripts": 0, "controls": 0, "low_quality": 0}
    for batch in _batches(path):
        gene = batch.gene & (batch.codes >= 0)
        seen = np.bincount(batch.codes[gene], minlength=len(batch.names)) > 0
        lookup = np.full(len(batch.names) + 1, -1)
        for code in np.flatnonzero(seen):
            if not is_control(name := batch.names[code]):
                lookup[code] = columns.setdefault(name, len(columns))
        feature = np.where(gene, lookup[batch.codes], -1)
        # A quality that is missing is no quality.
        good = batch.qv >= min_qv
        used = (feature >= 0) & good
        squares = placed.locate(batch.um[used])
        counter.add(squares[squares >= 0], feature[used][squares >= 0])
        tally["transcripts"] += len(feature)
        tally["controls"] += int((feature < 0).sum())
        tally["low_quality"] += int(((feature >= 0) & ~good).sum())
    tally |= placed.check("transcripts", max_outside)
    if not placed.inside:
        raise DataError(f"{path.name} leaves no transcript of a gene ({tally_text(tally)}). Is `min_qv` too high?")
    squares, counts = counter.total(len(columns))
    genes = np.array(list(columns), dtype=object)
    order = np.argsort(genes)
    return Pooled(squares, counts[:, order], pd.DataFrame(index=pd.Index(genes[order])), tally)


def pool_cells(folder: Path, frame: Frame, *, max_outside: float) -> Pooled:
    """Sum the counts of the cells whose centroid lies in a square."""
    cells, matrix = read_cells(folder), find_file(folder, (_MATRIX, _MATRIX_FOLDER))
    if cells is None or matrix is None:
        raise DataError(
            f"`source='cells'` needs {_MATRIX} and one of {listed(_CELLS)} in {str(folder)!r} (or the folder "
            f"{_MATRIX_FOLDER} in place of the matrix); it holds {listed(visible(folder))}."
        )
    counts, barcodes, var = _cell_counts(matrix)
    rows = barcodes.get_indexer(cells.index)
    if not (rows >= 0).any():
        raise DataError(
            f"No cell of the cells file is in {matrix.name}: its ids begin {listed(cells.index[:3])}, those of the "
            f"matrix {listed(barcodes[:3])}. The two files belong to different runs."
        )
    placed = _Locator(frame)
    squares = placed.locate(cells.to_numpy(dtype=float)[rows >= 0])
    tally = {"cells": len(cells), "cells_without_counts": int((rows < 0).sum())}
    tally |= placed.check("cells", max_outside)
    if not placed.inside:
        raise DataError(f"The cells file leaves no cell in the image ({tally_text(tally)}).")
    return Pooled(*pool_rows(counts[rows[rows >= 0]], squares), var, tally)


def _cell_counts(matrix: Path) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame]:
    """Counts of genes by cell, the ids of the cells, and the genes; names that occur twice are summed."""
    x, ids, features = read_mtx(matrix, "") if matrix.is_dir() else read_h5(matrix)
    if "feature_types" in features:
        of_genes = (features["feature_types"] == GENES).to_numpy()
        x, features = x[:, of_genes], features[of_genes]
    barcodes = pd.Index(ids)
    if barcodes.has_duplicates:
        raise DataError(f"{matrix.name}: cell id(s) {listed(barcodes[barcodes.duplicated()][:3])} occur twice.")
    check_counts(x, where=matrix.name, kept="take the matrix as the instrument wrote it.")
    names = pd.Index(features["symbol"])
    gene = np.array([not is_control(n) for n in names], dtype=bool)
    counts, first = sum_columns(x[:, gene], names[gene])
    return counts, barcodes, features[["gene_ids"]].set_axis(names, axis=0)[gene].iloc[first].rename_axis(None)


def outlined_cells(folder: Path, frame: Frame) -> tuple[gpd.GeoSeries, sp.csr_matrix, np.ndarray, pd.DataFrame]:
    """Outlines of the cells by id, in pixels of the H&E; and counts of genes by cell, their ids, and the genes."""
    path, matrix = find_file(folder, _OUTLINES), find_file(folder, (_MATRIX, _MATRIX_FOLDER))
    if path is None or matrix is None:
        raise DataError(
            f"`cells=True` needs {_MATRIX} (or the folder {_MATRIX_FOLDER}) and one of {listed(_OUTLINES)} in "
            f"{str(folder)!r}; it holds {listed(visible(folder))}."
        )
    counts, barcodes, var = _cell_counts(matrix)
    return _polygons(path, frame), counts, barcodes.to_numpy(), var


def outlined_nuclei(folder: Path, frame: Frame) -> gpd.GeoSeries:
    """Outlines of the nuclei by the id of their cell, which may have several, in pixels of the H&E."""
    if (path := find_file(folder, _NUCLEI)) is None:
        raise DataError(
            f"`nuclei=True` needs one of {listed(_NUCLEI)} in {str(folder)!r}; it holds {listed(visible(folder))}."
        )
    return _polygons(path, frame, by="label_id")


def _polygons(path: Path, frame: Frame, by: str | None = None) -> gpd.GeoSeries:
    """Polygons of a table of vertices by the id of the cell; where it has a column `by`, one for each of its values."""
    needed = ["cell_id", "vertex_x", "vertex_y"]
    try:
        is_parquet = path.suffix == ".parquet"
        held = pa.parquet.read_schema(path).names if is_parquet else pd.read_csv(path, nrows=0).columns
        _check_columns(path, needed, held)
        wanted = [*needed, by] if by in held else needed
        table = pd.read_parquet(path, columns=wanted) if is_parquet else pd.read_csv(path, usecols=wanted)
        if by is not None:
            # A nucleus may be of no cell.
            table = table[table["cell_id"].notna()]
        codes, _ = pd.factorize(table["cell_id"])
        if by in held:
            codes, _ = pd.factorize(pd.MultiIndex.from_arrays([codes, table[by]]))
        # Vertices of a polygon follow each other, as a rule.
        order = np.argsort(codes, kind="stable")
        xy = apply_affine(frame.to_image, table[needed[1:]].to_numpy(dtype=float)[order])
        if not np.isfinite(xy).all():
            raise DataError(f"{path.name} holds vertices without a position; is the file damaged?")
        polygons = shapely.polygons(shapely.linearrings(xy, indices=codes[order]))
    except (*_READ_ERRORS, shapely.errors.GEOSException) as error:
        raise _unreadable(path, error) from error
    first = order[np.flatnonzero(np.diff(codes[order], prepend=-1))]
    return gpd.GeoSeries(polygons, index=pd.Index(_texts(table["cell_id"].to_numpy()[first])))


def _texts(ids: Iterable[Any]) -> list[str]:
    """Ids of cells, which early versions store as bytes or numbers."""
    return [one.decode() if isinstance(one, bytes) else str(one) for one in ids]


def read_cells(folder: Path) -> pd.DataFrame | None:
    """Centroids of the cells in µm, columns x and y, indexed by cell id; None where the file is absent."""
    path = find_file(folder, _CELLS)
    if path is None:
        return None
    needed = ["cell_id", "x_centroid", "y_centroid"]
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        _check_columns(path, needed, table.columns)
        frame = table[needed[1:]].astype(float)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    frame.index = pd.Index(_texts(table["cell_id"]))
    if frame.index.has_duplicates:
        raise DataError(f"{path.name}: cell id(s) {listed(frame.index[frame.index.duplicated()][:3])} occur twice.")
    return frame


class _Batch(NamedTuple):
    um: np.ndarray
    qv: np.ndarray
    #: index into `names`, -1 where the feature has no name
    codes: np.ndarray
    names: list[str]
    gene: np.ndarray


def _batches(path: Path) -> Iterator[_Batch]:
    needed, optional = ["x_location", "y_location", "feature_name", "qv"], "is_gene"
    try:
        is_parquet = path.suffix == ".parquet"
        file = pa.parquet.ParquetFile(path, pre_buffer=False) if is_parquet else None
        found = file.schema_arrow.names if file else pd.read_csv(path, nrows=0).columns
        _check_columns(path, needed, found)
        columns = [*needed, *([optional] if optional in found else [])]
        if file:
            batches = file.iter_batches(batch_size=_BATCH, columns=columns)
        else:
            known: dict[str, pa.DataType] = {"feature_name": pa.string(), "is_gene": pa.bool_()}
            types = {column: known.get(column, pa.float64()) for column in columns}
            convert = pa.csv.ConvertOptions(include_columns=columns, column_types=types)
            block = pa.csv.ReadOptions(block_size=_BLOCK)
            batches = pa.csv.open_csv(path, read_options=block, convert_options=convert)
        yield from map(_decode, batches)
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _decode(batch: pa.RecordBatch) -> _Batch:
    def numbers(name: str) -> np.ndarray:
        return batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)

    names = batch.column("feature_name")
    if pa.types.is_dictionary(names.type):
        names = names.dictionary_decode()
    # Early versions store the names as bytes.
    encoded = pc.dictionary_encode(names.cast(pa.string()))
    gene = np.ones(len(names), dtype=bool)
    if "is_gene" in batch.schema.names:
        gene = batch.column("is_gene").cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    um = np.column_stack([numbers("x_location"), numbers("y_location")])
    return _Batch(um, numbers("qv"), codes, encoded.dictionary.to_pylist(), gene)


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """First of `names` in a folder; where none is there, with the prefix that downloads have in front of them."""
    held = visible(folder)
    if exact := [held[name] for name in names if name in held]:
        return exact[0]
    for name in names:
        prefixed = [path for found, path in held.items() if found.endswith((f"_{name}", f"-{name}", f".{name}"))]
        if len(prefixed) > 1:
            raise DataError(
                f"{str(folder)!r} holds files of several runs, {listed(path.name for path in prefixed)}; keep those of "
                "one."
            )
        if prefixed:
            return prefixed[0]
    return None


def _check_columns(path: Path, needed: Sequence[str], found: Sequence[str]) -> None:
    if missing := [c for c in needed if c not in found]:
        raise DataError(f"{path.name} lacks the column(s) {listed(missing)}; found: {listed(found, 20)}.")


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(f"{path.name} could not be read, it is damaged or incomplete: {error}. Copy it again.")


def tally_text(tally: dict[str, int]) -> str:
    """Numbers of a tally as text."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in tally.items())
