"""Cells that Space Ranger 4 segments in Visium HD, beside bins or alone."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData

from sealst._core.space.geometry import agreed
from sealst._core.space.pooling import SquareGrid, pool_rows
from sealst._errors import DataError
from sealst._files import visible
from sealst._keys import Keys
from sealst._logging import warn
from sealst._section import centres_of, record
from sealst._section.arrays import from_arrays
from sealst._section.cells import add_cells, add_nuclei, outlined
from sealst._section.pyramid import SlideImage
from sealst._validate import check_counts, check_positive, listed, section_name
from sealst.io._matrix10x import read_h5
from sealst.io._spaceranger.folders import Counts, Outs, gene_counts, read_factors
from sealst.io._spaceranger.picture import Picture, check_picture, choose_picture

_FOLDER = "segmented_outputs"
_OUTLINES, _MATRIX = "cell_segmentations.geojson", "filtered_feature_cell_matrix.h5"
_NUCLEI = "nucleus_segmentations.geojson"
#: in the names of copies of the outlines, with clusters beside the ids
_COPY = "graphclust_annotated_"


def is_segmented(folder: Path) -> bool:
    """Whether a folder holds counts of segmented cells, or is the folder of them."""
    return any(name.endswith((_FOLDER, _OUTLINES, "feature_cell_matrix.h5")) for name in visible(folder))


def read_cells(root: Path, scale: float) -> tuple[gpd.GeoSeries, Counts]:
    """Outlines of segmented cells by id, in pixels of a picture of this scale, and their counts of genes."""
    outlines, matrix = _outlines(_file(root, _OUTLINES), scale), _file(root, _MATRIX)
    counts = gene_counts(matrix, *read_h5(matrix))
    check_counts(counts.x, where=matrix.name, kept="take the matrix as Space Ranger wrote it.")
    return outlines, counts


def read_nuclei(root: Path, scale: float) -> gpd.GeoSeries:
    """Outlines of nuclei by the id of their cell, likewise."""
    return _outlines(_file(root, _NUCLEI, option="nuclei"), scale)


def _outlines(path: Path, scale: float) -> gpd.GeoSeries:
    try:
        frame = gpd.read_file(path)
        frame = frame[frame.geometry.geom_type.isin(["Polygon", "MultiPolygon"])]
        if "cell_id" not in frame or not len(frame):
            raise DataError(f"{path.name} holds no cells: found {len(frame)} polygons, expected some with 'cell_id'.")
        ids = [f"cellid_{one:09d}-1" for one in frame["cell_id"].astype(int)]
        polygons = shapely.transform(frame.geometry.to_numpy(), lambda xy: xy * scale)
    except DataError:
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise DataError(f"{path.name} could not be read as GeoJSON of cells: {error}. Copy it again.") from error
    return gpd.GeoSeries(polygons, index=pd.Index(ids))


def segmented_mpp(root: Path, *, cells: bool) -> float | None:
    """µm per pixel of the picture that `cells` (or nuclei) were found in, as Space Ranger states it beside them."""
    outs = _outs(root, _OUTLINES) if cells else _outs(root, _NUCLEI, option="nuclei")
    return read_factors(outs).get("microns_per_pixel")


def _outs(root: Path, wanted: str, *, option: str = "cells") -> Outs:
    path = _file(root, wanted, option=option)
    return Outs(path.parent, path.name.removesuffix(wanted))


def _file(root: Path, wanted: str, *, option: str = "cells") -> Path:
    """A file of the cells, plain or with the prefix of a download; `root` is their folder or has it inside."""
    held = visible(root)
    inside = [visible(path) for name, path in held.items() if name.endswith(_FOLDER) and path.is_dir()]
    found = [path for one in (*inside, held) for name, path in one.items() if name.endswith(wanted)]
    found = [path for path in found if _COPY not in path.name] or found
    if len(found) != 1:
        raise DataError(
            f"`{option}=True` needs one '{wanted}' in the folder '{_FOLDER}' of {str(root)!r}, as Space Ranger 4 "
            f"writes it; found {listed(path.name for path in found)}. The folder holds {listed(held)}."
        )
    return found[0]


def read_without_bins(
    root: Path,
    image: str | PathLike[str] | np.ndarray | SlideImage | None,
    *,
    bin_um: int,
    section: str | None,
    patient: str | None,
    organ: str,
    mpp: float | None,
    coordinate_scale: float,
    nuclei: bool,
) -> SpatialData:
    """Read cells where there are no bins; squares hold their sums. See `sealst.io.read_visium_hd`."""
    own = _outs(root, _MATRIX)
    named = root.parent if root == own.folder and root.name.endswith(_FOLDER) else root
    outs = replace(own, others=(named,))
    section = section or section_name(Outs(named).sample)
    factors = read_factors(outs)
    picture = choose_picture(outs, image, factors=factors, coordinate_scale=coordinate_scale, section=section)
    scale, source = _stated_scale(picture, factors.get("microns_per_pixel"), mpp, section)
    outlines, counts = read_cells(root, picture.scale)
    of_nuclei = read_nuclei(root, picture.scale) if nuclei else None
    rows, kept = outlined(outlines, counts.barcodes, section)
    xy, grid = centres_of(kept), SquareGrid(bin_um / scale, *picture.size)
    check_picture(picture, xy, mpp=scale, section=section, what="cells")
    located = grid.locate(xy)
    # A square with its centre beyond the edge has no usable crop.
    located[~grid.inside(grid.centres(located))] = -1
    squares, x = pool_rows(counts.x[rows], located)
    if not len(squares):
        raise DataError(
            f"{section}: no square of {bin_um} µm with a cell has its centre in the picture; lower `bin_um`."
        )
    warn(
        f"{section}: no bins ('binned_outputs') beside the cells, so squares hold the sums of cells: what lies between "
        "cells is missing. Add the folder of bins to have all counts."
    )
    positions = grid.positions(squares)
    sdata = from_arrays(
        picture.image,
        x,
        grid.centres(squares),
        genes=list(counts.var.index),
        mpp=scale,
        spot_um=bin_um,
        section=section,
        spot_ids=[f"r{row}c{col}" for row, col in positions],
        patient=patient,
        organ=organ,
        technology="Visium HD",
        array=positions,
        obs=pd.DataFrame({"n_cells": np.unique(located[located >= 0], return_counts=True)[1]}),
        var=counts.var,
        spot_shape="square",
    )
    facts = picture.provenance | {"mpp": scale, "mpp_source": source, "counts": counts.path.name}
    record(sdata.tables[Keys.TABLE], "read_visium_hd", facts | {"source": "cells", "bin_um": int(bin_um)})
    add_cells(sdata, outlines, counts.x, counts.barcodes, counts.var, call="read_visium_hd", entry=facts)
    if of_nuclei is not None:
        add_nuclei(sdata, of_nuclei)
    return sdata


def _stated_scale(picture: Picture, stated: float | None, mpp: float | None, section: str) -> tuple[float, str]:
    """µm per pixel from what is said of it: without bins there is no array to measure."""
    sources: dict[str, float] = {}
    if mpp is not None:
        check_positive("mpp", mpp)
        sources["`mpp`"] = float(mpp)
    if stated is not None:
        sources["microns_per_pixel"] = stated / picture.scale
    if picture.stated is not None:
        sources[f"the image file ({picture.stated_source})"] = picture.stated
    hint = (
        f"Without bins it is 'microns_per_pixel' in 'scalefactors_json.json' of the folder 'spatial' in '{_FOLDER}': "
        "copy that folder, too, or pass `mpp=`, in µm per pixel of the image."
    )
    value, source = agreed(sources, what=f"section {section!r}", hint=hint)
    return value, source.strip("`")
