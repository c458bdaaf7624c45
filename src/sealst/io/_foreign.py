"""Bring a SpatialData that something else built into the canonical layout."""

from __future__ import annotations

from typing import Any

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from sealst import _section
from sealst._core.space.geometry import agreed, apply_affine, similarity_scale
from sealst._core.sparse import check_table
from sealst._docs import documented
from sealst._errors import DataError, ScaleError
from sealst._keys import Keys
from sealst._section import Region, multiscale
from sealst._section.colour import warn_if_dark
from sealst._section.pyramid import CHUNK_PX, LOST, extended, squidpy_library
from sealst._validate import check_key, check_labels, check_positive, check_section, listed, patient_text

#: a level up to this many pixels along its longer side may be read as a whole
_SMALL_PX = 4096


@documented
def from_spatialdata(
    sdata: SpatialData,
    *,
    region: str,
    image_key: str,
    table_key: str = Keys.TABLE,
    section: str | None = None,
    patient: str | None = None,
    organ: str | None = None,
    technology: str | None = None,
    mpp: float | None = None,
    pitch_um: float | None = None,
    coordinate_system: str = "global",
) -> SpatialData:
    """Build a section from one region and one image of any SpatialData.

    Every call of sealst also works on such an object as it is; a section in the usual layout needs no keys, carries its
    physical scale and names its spots so that several sections can be used together. Pixels are shared with the
    original, the table is copied, the original is left as it is.

    Parameters
    ----------
    sdata
        Object with an H&E image (uint8, red, green and blue), spots and a table that annotates them.
    region
        Spots: circles or polygons that the table annotates.
    image_key
        H&E image; one scale or several.
    table_key
        Table to copy the rows of `region` from; ``.X`` should hold raw counts.
    section
        Name of the section; default ``.obs["section"]``, else the name of the region.
    patient, organ, technology
        Written to ``.obs``; default what is there, else the name of the section for `patient` and ``"unknown"``.
    mpp
        µm per pixel of the image; default its coordinate system ``"um"``.
    %(pitch_um)s
    coordinate_system
        System in which image and spots of `sdata` meet (``spatialdata_io.visium`` names it like the dataset).

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`: ``images["<section>_he"]`` with at least two scales,
    ``shapes["<section>_spots"]`` in pixels of the image, ``tables["table"]`` with ids and names of spots from
    ``obs_names``, coordinate systems ``"global"`` (pixels) and ``"um"``; ``.uns["sealst"]["from_spatialdata"]`` keeps
    the old names and where the scale came from.

    Raises
    ------
    MissingKeyError
        When table, region, image or coordinate system are absent.
    DataError
        When the image is no H&E, or spots of the table have no shape.
    ScaleError
        When the scale is unknown or contradictory, or spots and image differ by more than a similarity.

    Examples
    --------
    >>> sdata = sl.io.from_spatialdata(
    ...     raw, region="s1", image_key="s1_full_image", pitch_um=100, coordinate_system="s1"
    ... )  # doctest: +SKIP
    """
    _section.needs_pixels(sdata)
    check_labels(patient=patient, organ=organ, technology=technology)
    source = _section.get_table(sdata, table_key)
    check_table(source, where=f"table {table_key!r}")
    (one,) = _section.regions_of(source, region)
    check_key(sdata.images, image_key, where="`sdata.images`", hint="Name one of them with `image_key=`.")
    element = _section.he_image(sdata, image_key)
    spots = _section.spot_table(sdata, one)
    name = section or one.name.removesuffix("_spots") or one.name
    if not section and Keys.SECTION in source.obs:
        names = source.obs[Keys.SECTION].iloc[one.rows].astype(str).unique()
        if len(names) > 1:
            raise DataError(
                f"Region {one.name!r} holds several sections ({listed(names)}); keep the rows of one, or name all "
                "of it with `section=`."
            )
        name = str(names[0])
    check_section(name)
    to_image = _section.between(spots, element, coordinate_system)
    if similarity_scale(to_image) is None:
        raise ScaleError(
            f"Spots {region!r} and image {image_key!r} are stretched unevenly against each other in coordinate system "
            f"{coordinate_system!r}; resample the image to square pixels first."
        )
    shapes = shapely.transform(spots.geometry.to_numpy(), lambda xy: apply_affine(to_image, xy))
    geometry = gpd.GeoDataFrame(geometry=shapes)
    if "radius" in spots:
        geometry["radius"] = spots["radius"].to_numpy(dtype=float) * (similarity_scale(to_image) or 1.0)
    centres = shapely.get_coordinates(shapely.centroid(shapes))
    if len(centres) < len(spots) or not np.isfinite(centres).all():
        raise DataError("Some spots have no finite coordinates; drop them from shapes and table.")
    for argument, stated in (("mpp", mpp), ("pitch_um", pitch_um)):
        if stated is not None:
            check_positive(argument, stated)
    scale, origin = agreed(
        _section.stated_scales(element, spots, coordinate_system, name=one.name, mpp=mpp, pitch_um=pitch_um),
        what=f"image {image_key!r}",
        hint="Pass `mpp=` (µm per pixel) or `pitch_um=` (Visium 100, legacy ST 200).",
    )
    facts: dict[str, Any] = {Keys.SECTION: name}
    for key, value in {Keys.PATIENT: patient, Keys.ORGAN: organ, Keys.TECHNOLOGY: technology}.items():
        if value is None and key in source.obs:
            facts[key] = source.obs[key].iloc[one.rows].to_numpy()
        else:
            facts[key] = (patient_text(value) or name) if key == Keys.PATIENT else str(value or "unknown")
    table = _copy_rows(source, one, facts)
    table.obsm[Keys.SPATIAL] = centres
    geometry.index = pd.Index(table.obs["spot_id"].to_numpy(dtype=object))
    # Red, green and blue over the same memory or file.
    pixels = [level.transpose("c", "y", "x").data[:3] for level in _section.image_levels(element)]
    chunks = (3, CHUNK_PX, CHUNK_PX)
    levels = [p if isinstance(p, da.Array) else da.from_array(p, chunks=chunks, name=False) for p in pixels]
    if any(max(level.shape[1:]) <= _SMALL_PX for level in levels):
        circles = "radius" in geometry
        diameter = 2 * geometry["radius"].median() if circles else np.sqrt(geometry.geometry.area.median())
        table.uns["spatial"] = {name: squidpy_library(levels, float(diameter))}
        warn_if_dark(table.uns["spatial"][name], name)
    entry = {"region": region, "image_key": image_key, "coordinate_system": coordinate_system}
    _section.record(table, "from_spatialdata", entry | {"mpp": scale, "mpp_source": origin.strip("`")})
    transforms = {"global": Identity(), Keys.UM: Scale([scale, scale], axes=("x", "y"))}
    held = sdata.attrs.get(image_key)
    return SpatialData(
        images={Keys.image(name): multiscale(extended(levels), transforms)},
        shapes={Keys.spots(name): ShapesModel.parse(geometry, transformations=dict(transforms))},
        tables={
            Keys.TABLE: TableModel.parse(table, region=Keys.spots(name), region_key="region", instance_key="spot_id")
        },
        # What the picture's file lacks it lacks here, too.
        attrs={Keys.image(name): {LOST: held[LOST]}} if isinstance(held, dict) and LOST in held else {},
    )


def _copy_rows(source: AnnData, region: Region, facts: dict[str, Any]) -> AnnData:
    table, section = source[region.rows].copy(), facts[Keys.SECTION]
    names = [str(n).removeprefix(f"{section}_") for n in table.obs_names]
    ids = np.asarray(names if len(set(names)) == len(names) else [str(i) for i in region.ids], dtype=object)
    if len(set(ids)) < len(ids):
        raise DataError(f"Spots of region {region.name!r} share names and ids; run `table.obs_names_make_unique()`.")
    table.X = sp.csr_matrix(table.X, dtype=np.float32)
    table.obs = table.obs.drop(columns=[Keys.CROP_OK, Keys.CROP_REASON], errors="ignore")
    # What names the old elements would be wrong from here on.
    for key in (TableModel.ATTRS_KEY, "spatial", Keys.UNS):
        table.uns.pop(key, None)
    table.obs["region"] = pd.Categorical([Keys.spots(section)] * len(ids))
    table.obs["spot_id"] = ids
    for key, value in facts.items():
        table.obs[key] = pd.Categorical([value] * len(ids) if isinstance(value, str) else value)
    table.obs_names = pd.Index([f"{section}_{i}" for i in ids])
    return table
