"""Decide which square of which image belongs to each spot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from shapely import box
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core.space.geometry import (
    agreed,
    inside_fraction,
    scale_between,
    similarity_scale,
    square_boxes,
)
from sealst._docs import documented
from sealst._errors import DataError, ScaleError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Region
from sealst._section.pyramid import touch_lost
from sealst._validate import check_count, check_fraction, check_mpp, check_positive, positive_numbers
from sealst.pp._crop_reasons import LOST, NOT_PAIRED, OK, OUTSIDE, crop_reasons, write_reasons


@documented
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
    %(pitch_um)s
    spot_um
        Known diameter of a spot in µm (Visium 55, legacy ST 100).
    %(image_key)s
    %(region)s
    %(coordinate_system)s
    min_inside
        Smallest share of a crop's area that must lie inside the image, for each size; the rest is filled with white.
    max_outside
        Largest share of spots whose centre may lie outside the image before the call refuses.
    %(table_key)s

    Returns
    -------
    None; writes for each region

    - ``sdata.shapes["<region>_crops"]``: squares, polygons in pixels of the image, index = spot ids; further sizes in
      ``sdata.shapes["<region>_crops_<um>um"]``
    - ``table.obs["crop_ok"]``: bool, whether the spot has a usable crop
    - ``table.obs["crop_reason"]``: categorical, ``"ok"``, ``"outside image"``, ``"lost pixels"`` (the file does not
      hold all of it) or ``"not paired"``
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
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    >>> bool(sdata.tables["table"].obs["crop_ok"].all())
    True
    """
    _section.needs_pixels(sdata)
    sizes = positive_numbers("crop_um", crop_um, example="give at least one side in µm, e.g. 112")
    check_count("crop_px", crop_px)
    if crop_px != int(crop_px):
        raise DataError(f"`crop_px` must be a whole number, found {crop_px!r}.")
    check_fraction("min_inside", min_inside)
    check_fraction("max_outside", max_outside)
    table = _section.get_table(sdata, table_key)
    stated = {"mpp": mpp, "pitch_um": pitch_um, "spot_um": spot_um}
    for name, value in stated.items():
        if value is not None:
            (check_mpp if name == "mpp" else check_positive)(name, value)

    options = _Options(sizes, int(crop_px), stated, image_key, coordinate_system, min_inside, max_outside)
    paired = [_pair(sdata, table, one, options) for one in _section.regions_of(table, region)]
    stored = _section.recorded(table, "crops")
    for one, _, _, entry in paired:
        before = dict(stored.get(one.name, {}))
        own = {*dict(before.get("sizes", {})).values(), before.get("shapes_key")}
        if taken := [key for key in entry["sizes"].values() if key in sdata.shapes and key not in own]:
            raise DataError(
                f"`sdata.shapes[{taken[0]!r}]` is there, which `sl.pp.pair_crops` did not write for this table and "
                f"would replace. Rename or delete it (`del sdata.shapes[{taken[0]!r}]`)."
            )
    _write(sdata, table, paired)


@dataclass(frozen=True)
class _Options:
    """What `pair_crops` was asked for."""

    sizes: Sequence[float]
    crop_px: int
    #: what is known of the scale, by argument
    stated: Mapping[str, float | None]
    image_key: str | None
    coordinate_system: str
    min_inside: float
    max_outside: float


class _Paired(NamedTuple):
    """The crops of a region."""

    region: Region
    #: squares of every size, in pixels of the image
    boxes: list[np.ndarray]
    #: whether spots have crops, or why not
    reasons: np.ndarray
    #: what is kept of the choices
    entry: dict[str, Any]


def _pair(sdata: SpatialData, table: AnnData, region: Region, options: _Options) -> _Paired:
    """Cut the squares of a region, and check them against the image."""
    image = _section.find_image(sdata, region, options.image_key)
    _section.he_image(sdata, image)
    _section.check_pixels(sdata, image)
    system, sizes = options.coordinate_system, options.sizes
    element, spots = sdata.images[image], _section.spot_table(sdata, region)
    if similarity_scale(_section.affine(element, system)) is None:
        raise ScaleError(f"Image {image!r} is stretched unevenly in coordinate system {system!r}; resample it first.")
    scale, source = agreed(
        _section.stated_scales(element, spots, system, name=region.name, **options.stated),
        what=f"image {image!r} (region {region.name!r})",
        hint="Pass `mpp=` (µm per pixel), `pitch_um=` (Visium 100, legacy ST 200) or `spot_um=` (Visium 55, legacy ST "
        "100); or give the image a coordinate system 'um'.",
    )
    if min(sizes) < scale:
        raise DataError(
            f"`crop_um` {min(sizes):g} is less than one pixel of image {image!r} ({scale:.4g} µm). It is the side "
            "of a crop in µm, e.g. 112."
        )
    centres = _section.spot_centres(element, spots, system)
    if not np.isfinite(centres).all():
        raise DataError(f"{(~np.isfinite(centres)).any(1).sum()} spots of {region.name!r} have no finite coordinates.")
    height, width = _section.image_levels(element)[0].shape[1:]
    outside = ((centres < 0) | (centres >= [width, height])).any(1)
    if outside.mean() > options.max_outside:
        low, high = centres.min(0), centres.max(0)
        raise DataError(
            f"{outside.sum()} of {len(centres)} spots of {region.name!r} lie outside image {image!r} "
            f"({width} x {height} px): spots span x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f} px "
            f"in coordinate system {system!r}. Is the image a downsampled copy, or is `coordinate_system` wrong? Raise "
            "`max_outside` if these spots are truly off the image."
        )
    boxes = [square_boxes(centres, um / scale) for um in sizes]
    # Whether enough of a spot's crops, of every size, lies inside the image.
    inside = np.min([inside_fraction(one, width, height) for one in boxes], axis=0)
    within = (inside > 0) & (inside >= options.min_inside - 1e-9)
    lost = np.any([touch_lost(one, sdata.attrs.get(image)) for one in boxes], axis=0)
    usable = within & ~lost
    if within.any() and not usable.any():
        raise DataError(
            f"Every crop of {region.name!r} touches pixels that the file of image {image!r} does not hold. Copy or "
            "export the file again."
        )
    if not usable.any():
        raise DataError(
            f"No spot of {region.name!r} has {100 * options.min_inside:g} % of its crop of {max(sizes):g} µm inside "
            f"image {image!r}. Pair smaller crops (`crop_um`), or lower `min_inside`."
        )
    if scale > 2 * (asked := min(sizes) / options.crop_px):
        warn(
            f"Image of {region.name!r} has {scale:.3g} µm per pixel, crops ask for {asked:.3g}: they are enlarged "
            f"{scale / asked:.1f} times and show less detail than those of other sections."
        )
    named = {f"{um:g}": Keys.crop_size(region.name, f"{um:g}") for um in sizes}
    named[f"{sizes[0]:g}"] = shapes = Keys.crops(region.name)
    entry: dict[str, Any] = {"image_key": image, "crop_um": sizes[0], "crop_px": options.crop_px, "mpp": scale}
    entry |= {"sizes": named, "mpp_source": source.strip("`"), "min_inside": float(options.min_inside)}
    # Changes when a spot moves, so that results from earlier crops are recognised.
    digest = hashlib.sha256("\n".join(map(str, region.ids)).encode() + boxes[0].round(3).tobytes()).hexdigest()[:16]
    entry |= {"shapes_key": shapes, "coordinate_system": system, "boxes": digest}
    entry["um_per_unit"] = _um_per_unit(table, region, centres, scale)
    return _Paired(region, boxes, np.where(usable, OK, np.where(within, LOST, OUTSIDE)).astype(object), entry)


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


def _write(sdata: SpatialData, table: Any, paired: list[_Paired]) -> None:
    before = table.obs.get(Keys.CROP_REASON)
    reason = np.full(table.n_obs, NOT_PAIRED, dtype=object)
    if before is not None:
        reason[:] = before.to_numpy(dtype=object)
    crops, caches = _section.recorded(table, "crops"), _section.recorded(table, "crop_caches")
    shapes = {}
    for region, boxes, reasons, entry in paired:
        reason[region.rows] = reasons
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
    write_reasons(
        table, crop_reasons(table, {}, _section.recorded(table, "tissue"), _section.recorded(table, "quality"))
    )
    for region, _, reasons, entry in paired:
        usable = reasons == OK
        logger.info(
            "%s: %d of %d spots paired with %s µm crops (%.4g µm/px, %s)",
            *(region.section, usable.sum(), len(usable)),
            *(" + ".join(entry["sizes"]), entry["mpp"], entry["mpp_source"]),
        )
