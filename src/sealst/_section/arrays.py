"""Build a section from plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from shapely import box, points
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from sealst._core.sparse import check_sparse
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._section.colour import warn_if_dark
from sealst._section.images import multiscale
from sealst._section.pyramid import SlideImage, extended, levels_of, squidpy_library
from sealst._validate import (
    as_names,
    as_numbers,
    check_choice,
    check_gene_names,
    check_labels,
    check_mpp,
    check_positive,
    check_section,
    check_slot,
    listed,
    patient_text,
)


def from_arrays(
    image: np.ndarray | SlideImage,
    counts: Any,
    xy: np.ndarray,
    *,
    genes: Sequence[str],
    mpp: float,
    spot_um: float,
    section: str = "section",
    spot_ids: Sequence[str] | None = None,
    patient: str | None = None,
    organ: str = "unknown",
    technology: str = "unknown",
    array: np.ndarray | None = None,
    obs: pd.DataFrame | None = None,
    var: pd.DataFrame | None = None,
    spot_shape: Literal["circle", "square"] = "circle",
    thumbnail: bool = True,
) -> SpatialData:
    """Build a section (image, spots, table of counts, physical scale) from arrays.

    Parameters
    ----------
    image
        H&E at full resolution: uint8 (height, width, 3), not copied; or a `SlideImage` from `sealst.io.open_image`,
        whose pixels stay on disk.
    counts
        Raw counts, (spots, genes), dense or sparse; finite and not negative.
    xy
        Spot centres, (spots, 2), as (x, y) in pixels of `image`; the first pixel covers [0, 1).
    genes
        Gene names, in the order of the columns of `counts`.
    mpp
        µm per pixel of `image`.
    spot_um
        Diameter of a spot in µm (Visium 55, legacy Spatial Transcriptomics 100), or side of a square one.
    section, patient, organ, technology
        Written to ``.obs``. `patient` defaults to the name of the section. `section` also names the elements, so it may
        hold letters, digits, ``_``, ``-`` and ``.`` only.
    spot_ids
        Ids of the spots, unique within the section; default ``"0", "1", …``.
    array
        Row and column of every spot on its array, (spots, 2), written to ``.obs["array_row"]`` and
        ``.obs["array_col"]``.
    obs
        Further columns for ``.obs``, one row per spot. Rows are joined by id when the index holds the names in
        `spot_ids`, otherwise they are taken in the order of `counts`.
    var
        Columns for ``.var``, such as ``gene_ids``, with one row for every name in `genes`, joined by name.
    spot_shape
        ``"circle"``, or ``"square"`` for bins and pseudo-spots.
    thumbnail
        Whether to store a small picture in ``.uns["spatial"]``, so that `squidpy.pl.spatial_scatter` shows the H&E.

    Returns
    -------
    SpatialData with

    - ``images["<section>_he"]``: multiscale image, uint8, (c, y, x), each level half the size of the one before
    - ``shapes["<section>_spots"]``: circles, radius in pixels; or squares
    - ``tables["table"]``: counts in ``.X`` (CSR), centres in ``.obsm["spatial"]`` (pixels)

    Image and spots carry the coordinate systems ``"global"`` (pixels) and ``"um"`` (µm).

    Raises
    ------
    DataError
        When shapes do not fit each other, names are empty, duplicated or already taken, or numbers are not finite.

    Examples
    --------
    >>> import numpy as np, sealst as sl
    >>> rng = np.random.default_rng(0)
    >>> sdata = sl.io.from_arrays(
    ...     rng.integers(0, 255, (512, 512, 3), dtype=np.uint8), rng.poisson(2.0, (4, 3)),
    ...     np.array([[100, 100], [300, 100], [100, 300], [300, 300]]),
    ...     genes=["EPCAM", "VIM", "CD3E"], mpp=0.5, spot_um=55, section="s1",
    ... )
    >>> sdata.tables["table"].shape
    (4, 3)
    """
    check_labels(patient=patient, organ=organ, technology=technology)
    # Copies: the table must not change when the caller's arrays do.
    check_sparse(counts, where="`counts`")
    counts = sp.csr_matrix(as_numbers("counts", counts, np.float32, sparse=True), copy=True)
    xy = as_numbers("xy", xy).copy()
    genes = as_names("genes", genes)
    if spot_ids is not None:
        spot_ids = as_names("spot_ids", spot_ids)
    ids = np.asarray([str(i) for i in (range(len(xy)) if spot_ids is None else spot_ids)], dtype=object)
    check_section(section)
    if not isinstance(image, np.ndarray | SlideImage):
        raise TypeError(
            f"`image` must be a numpy array or a SlideImage, found {type(image).__name__}; pass `np.asarray(image)` or "
            "`sl.io.open_image(path)`."
        )
    if isinstance(image, np.ndarray) and (
        image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape
    ):
        raise DataError(f"`image` must be uint8 (height, width, 3), found {image.dtype} {image.shape}.")
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise DataError(f"`xy` must be (spots, 2), found {xy.shape}.")
    if not len(xy):
        raise DataError("`xy` holds no spots; a section needs at least one.")
    if not np.isfinite(xy).all():
        raise DataError(f"`xy` holds NaN or infinite coordinates in {(~np.isfinite(xy)).any(1).sum()} rows; drop them.")
    if counts.shape != (len(xy), len(genes)):
        raise DataError(f"`counts` is {counts.shape}, but `xy` has {len(xy)} spots and `genes` {len(genes)} names.")
    # ~(x >= 0) is also true of NaN.
    if (wrong := ~(counts.data >= 0) | np.isinf(counts.data)).any():
        raise DataError(f"`counts` holds {wrong.sum()} negative, NaN or infinite values; raw counts are expected.")
    if len(set(ids)) != len(ids) or len(ids) != len(xy):
        raise DataError(f"`spot_ids` must be {len(xy)} unique names, found {len(ids)} with {len(set(ids))} unique.")
    check_gene_names(list(genes), where="`genes`")
    check_mpp("mpp", mpp)
    check_positive("spot_um", spot_um)
    check_choice("spot_shape", spot_shape, ("circle", "square"))

    facts = {
        Keys.PATIENT: patient_text(patient) or section,
        Keys.SECTION: section,
        Keys.ORGAN: organ,
        Keys.TECHNOLOGY: technology,
    }
    region = Keys.spots(section)
    frame = _obs_frame(region, ids, facts, array, obs if spot_ids is None else _by_id(obs, ids))
    table = AnnData(counts, obs=frame, var=_var_frame([str(g) for g in genes], var))
    table.obsm[Keys.SPATIAL] = xy
    transforms = {"global": Identity(), Keys.UM: Scale([mpp, mpp], axes=("x", "y"))}
    levels = levels_of(image) if isinstance(image, np.ndarray) else extended(image.readable)
    diameter_px = spot_um / mpp
    if spot_shape == "circle":
        radius = np.full(len(xy), diameter_px / 2)
        spots = gpd.GeoDataFrame({"radius": radius}, geometry=points(xy), index=pd.Index(ids))
    else:
        corners = (*(xy - diameter_px / 2).T, *(xy + diameter_px / 2).T)
        spots = gpd.GeoDataFrame(geometry=box(*corners), index=pd.Index(ids))
    if thumbnail:
        table.uns["spatial"] = {section: squidpy_library(levels, diameter_px)}
        warn_if_dark(table.uns["spatial"][section], section)
    return SpatialData(
        images={Keys.image(section): multiscale(levels, transforms)},
        shapes={region: ShapesModel.parse(spots, transformations=dict(transforms))},
        tables={Keys.TABLE: TableModel.parse(table, region=region, region_key="region", instance_key="spot_id")},
        attrs={Keys.image(section): lost} if (lost := image.facts if isinstance(image, SlideImage) else {}) else {},
    )


def _by_id(extra: pd.DataFrame | None, ids: np.ndarray) -> pd.DataFrame | None:
    # A plain count of rows is no id, whatever the spots are called.
    if extra is None or isinstance(extra.index, pd.RangeIndex):
        return extra
    named = extra.set_axis(extra.index.map(str), axis=0)
    found = set(named.index) & set(ids)
    if found == set(ids) and named.index.is_unique:
        return named.loc[ids]
    if found:
        raise DataError(
            f"`obs` is indexed by spot id, but has only {len(found)} of the {len(ids)} spots of `spot_ids` once each. "
            "Give every spot a row, or `obs.reset_index(drop=True)` to join by order."
        )
    return extra


def _obs_frame(
    region: str, ids: np.ndarray, facts: dict[str, str], array: np.ndarray | None, extra: pd.DataFrame | None
) -> pd.DataFrame:
    frame = pd.DataFrame(index=pd.Index([f"{facts[Keys.SECTION]}_{i}" for i in ids]))
    frame["region"] = pd.Categorical([region] * len(ids))
    frame["spot_id"] = ids
    for key, value in facts.items():
        frame[key] = pd.Categorical([str(value)] * len(ids))
    if array is not None:
        positions = np.asarray(array)
        if positions.shape != (len(ids), 2):
            raise DataError(f"`array` must be (spots, 2) = {(len(ids), 2)}, found {positions.shape}.")
        frame[[Keys.ARRAY_ROW, Keys.ARRAY_COL]] = positions
    if extra is None:
        return frame
    if len(extra) != len(ids):
        raise DataError(f"`obs` has {len(extra)} rows, expected one per spot ({len(ids)}).")
    for name in extra.columns:
        check_slot(name, argument="obs")
    if len(taken := frame.columns.intersection(extra.columns)):
        raise DataError(f"`obs` has column(s) {listed(taken)}, which are set by arguments of their own; drop them.")
    return pd.concat([frame, extra.set_axis(frame.index, axis=0)], axis=1)


def _var_frame(genes: list[str], extra: pd.DataFrame | None) -> pd.DataFrame:
    if extra is None:
        return pd.DataFrame(index=pd.Index(genes))
    named = extra.set_axis(extra.index.map(str), axis=0)
    twice, absent = named.index[named.index.duplicated()].unique(), pd.Index(genes).difference(named.index)
    if len(twice) or len(absent):
        found = f" with names twice: {listed(twice)}." if len(twice) else f", without {listed(absent)}."
        raise DataError(f"`var` must have one row for every gene, indexed by name; found {len(named)} rows{found}")
    return named.loc[genes].rename_axis(None)
