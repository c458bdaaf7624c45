"""Decide which square of which image belongs to each spot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from shapely import box
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from sealst._core.space.geometry import (
    agreed,
    apply_affine,
    inside_fraction,
    scale_between,
    similarity_scale,
    square_boxes,
)
from sealst._errors import DataError, ScaleError
from sealst._keys import Keys
from sealst._logging import logger, quiet_import, warn
from sealst._section import tables as _section
from sealst._section.tables import Region
from sealst._validate import check_fraction, check_positive, listed
from sealst.pp._verdict import NOT_PAIRED, OK, OUTSIDE, judged, write_reasons

#: region, boxes of every size, which spots have usable ones, and what is kept of the choices
_Paired: TypeAlias = tuple[Region, list[np.ndarray], np.ndarray, dict[str, Any]]


def pair_crops(
    sdata: SpatialData,
    *,
    crop_um: float | Sequence[float] = 112.0,
    crop_px: int = 224,
    mpp: float | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
    image_key: str | None = None,
    region: str | Sequence[str] | None = None,
    coordinate_system: str = "global",
    min_inside: float = 0.5,
    max_outside: float = 0.1,
    table_key: str = Keys.TABLE,
) -> None:
    """Pair every spot with the square of H&E to cut around it.

    Only geometry is written, never pixels. The physical scale is never guessed: it comes from the image's ``"um"``
    coordinate system, from `mpp`, from the known pitch of the array or from the known diameter of a spot. Where several
    are known they must agree within 5 %. A later call replaces the crops of an earlier one, of all its sizes.

    Parameters
    ----------
    sdata
        Section(s) with an H&E image, spots and a table.
    crop_um
        Side of a crop in µm. The default of 112 µm at 224 px (0.5 µm per pixel) is the HEST-1k convention. Several
        sides, such as ``[56, 112, 224]``, pair every spot with concentric crops of several magnifications; the first
        is the one that other calls take unless told otherwise.
    crop_px
        Side of a crop in pixels, as the encoder sees it.
    mpp
        µm per pixel of the full-resolution image.
    pitch_um
        Known distance between the centres of neighbouring spots in µm (Visium 100, legacy ST 200).
    spot_um
        Known diameter of a spot in µm (Visium 55, legacy ST 100).
    image_key
        H&E image; by default ``"<section>_he"``, or the only image there is.
    region
        Region(s) of the table; by default all.
    coordinate_system
        System in which spots and image meet.
    min_inside
        Smallest share of a crop's area that must lie inside the image, for each size; the rest is filled with white.
    max_outside
        Largest share of spots whose centre may lie outside the image before the call refuses.
    table_key
        Table whose rows are the spots.

    Returns
    -------
    None; writes for each region

    - ``sdata.shapes["<region>_crops"]``: squares, polygons in pixels of the image, index = spot ids; further sizes in
      ``sdata.shapes["<region>_crops_<um>um"]``
    - ``table.obs["crop_ok"]``: bool, whether the spot has a usable crop
    - ``table.obs["crop_reason"]``: categorical, ``"ok"``, ``"outside image"`` or ``"not paired"``
    - ``table.uns["sealst"]["crops"][region]``: `crop_um`, `crop_px`, `mpp` and where it came from, names of image and
      shapes

    Raises
    ------
    ScaleError
        When the physical scale is unknown or contradictory, or pixels are not square.
    DataError
        When spots lie outside the image (wrong coordinate system or wrong image), no spot has a usable crop, there
        are shapes of one of these names that this call did not write, or the store that the image is read from is gone.
    MissingKeyError
        When table, image, spots or coordinate system are absent.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic()
    >>> sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    >>> bool(sdata.tables["table"].obs["crop_ok"].all())
    True
    """
    _section.needs_pixels(sdata)
    sizes = _sizes(crop_um)
    check_positive("crop_px", crop_px)
    if crop_px != int(crop_px):
        raise DataError(f"`crop_px` must be a whole number, found {crop_px!r}.")
    check_fraction("min_inside", min_inside)
    check_fraction("max_outside", max_outside)
    table = _section.get_table(sdata, table_key)
    stated = {"mpp": mpp, "pitch_um": pitch_um, "spot_um": spot_um}
    for name, value in stated.items():
        if value is not None:
            check_positive(name, value)

    wanted = _Wanted(sizes, int(crop_px), stated, image_key, coordinate_system, min_inside, max_outside)
    paired = [_pair(sdata, table, one, wanted) for one in _section.regions_of(table, region)]
    _refuse_foreign(sdata, table, paired)
    _write(sdata, table, paired)


@dataclass(frozen=True)
class _Wanted:
    """What `pair_crops` was asked for."""

    sizes: Sequence[float]
    crop_px: int
    #: what is known of the scale, by argument
    stated: Mapping[str, float | None]
    image_key: str | None
    coordinate_system: str
    min_inside: float
    max_outside: float


def _pair(sdata: SpatialData, table: AnnData, region: Region, wanted: _Wanted) -> _Paired:
    """Boxes of every size, which spots have usable ones, and what is kept of the choices."""
    image = _section.find_image(sdata, region, wanted.image_key)
    _section.he_image(sdata, image)
    _section.check_pixels(sdata, image)
    system, sizes = wanted.coordinate_system, wanted.sizes
    scale, source = _resolve_mpp(sdata, region, image, system, wanted.stated)
    if min(sizes) < scale:
        raise DataError(
            f"`crop_um` {min(sizes):g} is less than one pixel of image {image!r} ({scale:.4g} µm). It is the side "
            "of a crop in µm, e.g. 112."
        )
    centres = _centres(sdata, region, image, system, wanted.max_outside)
    boxes = [square_boxes(centres, um / scale) for um in sizes]
    usable = _usable(sdata, image, boxes, wanted.min_inside)
    if not usable.any():
        raise DataError(
            f"No spot of {region.name!r} has {100 * wanted.min_inside:g} % of its crop of {max(sizes):g} µm inside "
            f"image {image!r}. Pair smaller crops (`crop_um`), or lower `min_inside`."
        )
    _warn_if_enlarged(region, scale, min(sizes) / wanted.crop_px)
    named = {f"{um:g}": Keys.crop_size(region.name, f"{um:g}") for um in sizes}
    named[f"{sizes[0]:g}"] = shapes = Keys.crops(region.name)
    entry: dict[str, Any] = {"image_key": image, "crop_um": sizes[0], "crop_px": wanted.crop_px, "mpp": scale}
    entry |= {"sizes": named, "mpp_source": source.strip("`"), "min_inside": float(wanted.min_inside)}
    entry |= {"shapes_key": shapes, "coordinate_system": system, "boxes": _digest(region, boxes[0])}
    entry["um_per_unit"] = _um_per_unit(table, region, centres, scale)
    return region, boxes, usable, entry


def _sizes(crop_um: float | Sequence[float]) -> list[float]:
    # A text is a sequence, too, of characters.
    given: Any = crop_um
    several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    sizes = list(given) if several else [given]
    if not sizes:
        raise DataError("`crop_um` is empty; give at least one side in µm, e.g. 112.")
    for size in sizes:
        check_positive("crop_um", size)
    if len({f"{size:g}" for size in sizes}) < len(sizes):
        raise DataError(f"`crop_um` names a size twice: {listed(sizes)}.")
    return [float(size) for size in sizes]


def _resolve_mpp(
    sdata: SpatialData, region: Region, image: str, system: str, stated: Mapping[str, float | None]
) -> tuple[float, str]:
    element = sdata.images[image]
    sources: dict[str, float] = {}
    if (own := _section.mpp_of(element)) is not None:
        sources["the image's 'um' coordinate system"] = own
    if stated["mpp"] is not None:
        sources["`mpp`"] = float(stated["mpp"])
    pixel = similarity_scale(_section.affine(element, system))
    if pixel is None:
        raise ScaleError(f"Image {image!r} is stretched unevenly in coordinate system {system!r}; resample it first.")
    for name, argument in (("pitch_um", "um_between_centers"), ("spot_um", "um_diameter")):
        if (value := stated[name]) is not None:
            with quiet_import():
                from squidpy.experimental.utils import derive_mpp_from_shapes

            _section.spot_table(sdata, region)
            try:
                per_unit = derive_mpp_from_shapes(sdata, region.name, system, **{argument: float(value)})
            except ValueError as error:
                raise ScaleError(f"`{name}` gives no scale for {region.name!r}: {error}") from error
            sources[f"`{name}`"] = float(per_unit) * pixel
    return agreed(
        sources,
        what=f"image {image!r} (region {region.name!r})",
        hint="Pass `mpp=` (µm per pixel), `pitch_um=` (Visium 100, legacy ST 200) or `spot_um=` (Visium 55, legacy ST "
        "100); or give the image a coordinate system 'um'.",
    )


def _centres(sdata: SpatialData, region: Region, image: str, system: str, max_outside: float) -> np.ndarray:
    """Centres of spots in pixels of the image, (n, 2)."""
    spots = _section.spot_table(sdata, region)
    to_image = _section.between(sdata.shapes[region.name], sdata.images[image], system)
    points = spots.geometry.centroid
    centres = apply_affine(to_image, np.column_stack([points.x, points.y]))
    if not np.isfinite(centres).all():
        raise DataError(f"{(~np.isfinite(centres)).any(1).sum()} spots of {region.name!r} have no finite coordinates.")
    height, width = _section.image_levels(sdata.images[image])[0].shape[1:]
    outside = ((centres < 0) | (centres >= [width, height])).any(1)
    if outside.mean() > max_outside:
        low, high = centres.min(0), centres.max(0)
        raise DataError(
            f"{outside.sum()} of {len(centres)} spots of {region.name!r} lie outside image {image!r} "
            f"({width} x {height} px): spots span x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f} px "
            f"in coordinate system {system!r}. Is the image a downsampled copy, or is `coordinate_system` wrong? Raise "
            "`max_outside` if these spots are truly off the image."
        )
    return centres


def _um_per_unit(table: AnnData, region: Region, centres: np.ndarray, mpp: float) -> float:
    """What a unit of `.obsm["spatial"]` measures, whatever system it is in; NaN where that is not known."""
    if Keys.SPATIAL not in table.obsm:
        return float("nan")
    positions = np.asarray(table.obsm[Keys.SPATIAL], dtype=float)[region.rows, :2]
    factor = scale_between(positions, centres)
    if factor is None:
        warn(
            f"`.obsm[{Keys.SPATIAL!r}]` is not where the spots of {region.name!r} lie on the image, at any scale and "
            "turn, so that there are no distances in µm between them (`suppress_um`, `near_um`). Are these positions "
            "on the array? Store the spots' centres there and pair again."
        )
        return float("nan")
    return factor * mpp


def _digest(region: Region, boxes: np.ndarray) -> str:
    """Changes when a spot moves, so that results from earlier crops are recognised."""
    text = "\n".join(map(str, region.ids)).encode()
    return hashlib.sha256(text + boxes.round(3).tobytes()).hexdigest()[:16]


def _usable(sdata: SpatialData, image: str, boxes: Sequence[np.ndarray], min_inside: float) -> np.ndarray:
    """Whether enough of a spot's crops, of every size, lies inside the image."""
    height, width = _section.image_levels(sdata.images[image])[0].shape[1:]
    inside = np.min([inside_fraction(one, width, height) for one in boxes], axis=0)
    return (inside > 0) & (inside >= min_inside - 1e-9)


def _warn_if_enlarged(region: Region, mpp: float, wanted: float) -> None:
    if mpp > 2 * wanted:
        warn(
            f"Image of {region.name!r} has {mpp:.3g} µm per pixel, crops ask for {wanted:.3g}: they are enlarged "
            f"{mpp / wanted:.1f} times and show less detail than those of other sections."
        )


def _refuse_foreign(sdata: SpatialData, table: AnnData, paired: Sequence[_Paired]) -> None:
    """Raise where shapes would be lost that `pair_crops` did not write."""
    stored = table.uns.get(Keys.UNS, {}).get("crops", {})
    for region, _, _, entry in paired:
        before = dict(stored.get(region.name, {}))
        own = {*dict(before.get("sizes", {})).values(), before.get("shapes_key")}
        if taken := [key for key in entry["sizes"].values() if key in sdata.shapes and key not in own]:
            raise DataError(
                f"`sdata.shapes[{taken[0]!r}]` is there, which `sl.pp.pair_crops` did not write for this table and "
                f"would replace. Rename or delete it (`del sdata.shapes[{taken[0]!r}]`)."
            )


def _write(sdata: SpatialData, table: Any, paired: list[_Paired]) -> None:
    before = table.obs.get(Keys.CROP_REASON)
    reason = np.full(table.n_obs, NOT_PAIRED, dtype=object)
    if before is not None:
        reason[:] = before.to_numpy(dtype=object)
    crops = dict(table.uns.get(Keys.UNS, {}).get("crops", {}))
    caches = dict(table.uns.get(Keys.UNS, {}).get("crop_caches", {}))
    shapes = {}
    for region, boxes, usable, entry in paired:
        reason[region.rows] = np.where(usable, OK, OUTSIDE)
        transforms = get_transformation(sdata.images[entry["image_key"]], get_all=True)
        for key, squares in zip(entry["sizes"].values(), boxes, strict=True):
            frame = gpd.GeoDataFrame(geometry=box(*squares.T), index=pd.Index(region.ids))
            shapes[key] = ShapesModel.parse(frame, transformations=dict(transforms))
        for key in set(crops.get(region.name, {}).get("sizes", {}).values()) & set(sdata.shapes):
            # Sizes of an earlier pairing.
            del sdata.shapes[key]
        if crops.get(region.name, entry) != entry:
            caches.pop(region.name, None)
        crops[region.name] = entry
    for key, frame in shapes.items():
        if key in sdata.shapes:
            del sdata.shapes[key]
        sdata.shapes[key] = frame
    _section.record(table, "crops", crops)
    _section.record(table, "crop_caches", caches)
    write_reasons(table, reason)
    # What was measured on crops that are the same as before still counts.
    measured = table.uns[Keys.UNS]
    write_reasons(table, judged(table, {}, measured.get("tissue", {}), measured.get("quality", {})))
    for region, _, usable, entry in paired:
        if not usable.any():
            warn(
                f"No spot of {region.name!r} has a usable crop: less than {entry['min_inside']:.0%} of each crop lies "
                "inside the image. Choose a smaller `crop_um`."
            )
        logger.info(
            "%s: %d of %d spots paired with %s µm crops (%.4g µm/px, %s)",
            *(region.section, usable.sum(), len(usable)),
            *(" + ".join(entry["sizes"]), entry["mpp"], entry["mpp_source"]),
        )
