"""Where the tissue is, and which crops lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Scale, get_transformation
from spatialdata.transformations import Sequence as Chain

from sealst import _section
from sealst._core.space.geometry import pick_level
from sealst._core.space.tissue import box_fractions, solid, texture, tighten, unusable
from sealst._docs import documented
from sealst._keys import Keys
from sealst._logging import logger, quiet_import, quiet_squidpy, warn
from sealst._section import Region
from sealst._validate import check_fraction, check_key
from sealst.pp._crop_reasons import LITTLE_TISSUE, OK, crop_reasons, write_reasons

#: µm per pixel at which tissue is looked for, and pixels of the longer side where the scale is unknown
_WORKING_UM, _WORKING_PX = 8.0, 1000
#: texture is measured within this many µm
_RADIUS_UM = 20.0
#: pieces and holes smaller than this, in mm², are ignored; or this share of the image where the scale is unknown
_SMALLEST_MM2, _SMALLEST_SHARE = 0.02, 2e-4


@documented
def tissue(
    sdata: SpatialData,
    *,
    min_tissue: float = 0.15,
    labels_key: str | None = None,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
) -> None:
    """Measure how much of every crop is tissue, and set aside the crops with too little.

    Tissue is told from glass by its texture at about 8 µm per pixel (local standard deviation, Otsu threshold by
    `squidpy.experimental.im.detect_tissue`), so that pale fat counts and smeared eosin, a tinted background or specks
    do not; what is smooth but far darker than the glass counts too. Blacked-out background is no tissue, nor is a
    rectangular inset beside it. Pieces and holes below 0.02 mm² are ignored.

    Parameters
    ----------
    sdata
        Section(s) with crops, see `sealst.pp.pair_crops`.
    min_tissue
        Smallest share of a crop's area that must be tissue, 0 to 1. The default is the one of HEST-1k.
    labels_key
        Labels element that holds the tissue (above 0), such as one drawn by hand. By default ``"<section>_tissue"``,
        which is used where it exists (it may have been corrected by hand) and otherwise made; delete it
        (``del sdata.labels["<section>_tissue"]``) to have the tissue found anew.
    %(region)s
    %(table_key)s

    Returns
    -------
    None; writes for each region

    - ``sdata.labels["<section>_tissue"]``: uint8, 1 = tissue, at a coarse resolution, with the image's transformations
    - ``table.obs["tissue_fraction"]``: float64, share of the crop (of the first size) that is tissue; NaN where spots
      are not paired
    - ``table.obs["crop_ok"]``, ``table.obs["crop_reason"]``: ``"little tissue"`` where a usable crop has less than
      `min_tissue`; a later call with another threshold decides again, other reasons stay
    - ``table.uns["sealst"]["tissue"][region]``: threshold, labels element, crops measured

    Raises
    ------
    OrderError
        When crops are missing.
    MissingKeyError
        When `labels_key` is absent.
    DataError
        When the labels are turned or mirrored against the image.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.pair_crops(sdata)
    >>> sl.pp.tissue(sdata, min_tissue=0.5)
    >>> float(sdata.tables["table"].obs["tissue_fraction"].max())
    1.0
    """
    check_fraction("min_tissue", min_tissue)
    _section.needs_pixels(sdata)
    table = _section.get_table(sdata, table_key)
    fractions = np.array(table.obs.get(Keys.TISSUE_FRACTION, np.full(table.n_obs, np.nan)), dtype=float)
    labels, entries = {}, _section.recorded(table, "tissue")
    for one in _section.regions_of(table, region):
        paired = _section.region_crops(sdata, table, one)
        crops = paired.definition
        element = section_labels(sdata, one, crops["image_key"], labels_key)
        mask, scale, shift = _section.label_frame(element, sdata.images[crops["image_key"]])
        fractions[one.rows] = box_fractions(mask, paired.every_box * np.tile(scale, 2) + np.tile(shift, 2))
        if labels_key is None:
            labels[Keys.tissue(one.section)] = element
        entries[one.name] = {"min_tissue": float(min_tissue), "labels_key": labels_key or Keys.tissue(one.section)}
        entries[one.name] |= {name: crops[name] for name in ("image_key", "boxes")}
    columns = {Keys.TISSUE_FRACTION: fractions}
    reasons = crop_reasons(table, columns, entries, _section.recorded(table, "quality"))
    for key, element in labels.items():
        if key not in sdata.labels:
            sdata.labels[key] = element
    table.obs[Keys.TISSUE_FRACTION] = fractions
    write_reasons(table, reasons)
    _section.record(table, "tissue", entries)
    for one in _section.regions_of(table, region):
        own = reasons[one.rows]
        few = (own == LITTLE_TISSUE).sum()
        logger.info("%s: %d of %d crops hold less than %g tissue", one.section, few, len(own), min_tissue)
        if few and not (own == OK).any():
            warn(
                f"No crop of {one.name!r} is left: {few} hold less than {min_tissue:g} tissue. Look at the mask in "
                "`sdata.labels`, or hand in a better one with `labels_key=`."
            )


def section_labels(sdata: SpatialData, region: Region, image_key: str, labels_key: str | None) -> Any:
    """Tissue of a section as labels: the element named, the one `tissue` wrote, or found now (and not written)."""
    if labels_key is not None:
        check_key(sdata.labels, labels_key, where="`sdata.labels`", hint="Leave `labels_key` out to find the tissue.")
        return sdata.labels[labels_key]
    if Keys.tissue(region.section) in sdata.labels:
        return sdata.labels[Keys.tissue(region.section)]
    mask, (across, down) = tissue_mask(sdata, image_key)
    shrunk = Scale([across, down], axes=("x", "y"))
    systems = get_transformation(sdata.images[image_key], get_all=True)
    transformations = {name: Chain([shrunk, to]) for name, to in systems.items()}
    return Labels2DModel.parse(mask.astype(np.uint8), dims=("y", "x"), transformations=transformations)


def tissue_at(labels: Any, image: Any, *, chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> da.Array:
    """Tissue at the pixels of a level of an image, lazy bool (y, x); `chunks` of the level give its shape."""
    mask, scale, shift = _section.label_frame(labels, image)
    height, width = _section.image_levels(image)[0].shape[1:]
    down, across = height / sum(chunks[0]), width / sum(chunks[1])

    def look_up(block_info: Any = None) -> np.ndarray:
        (top, bottom), (left, right) = block_info[None]["array-location"]
        rows = np.floor((np.arange(top, bottom) + 0.5) * down * scale[1] + shift[1]).astype(int)
        columns = np.floor((np.arange(left, right) + 0.5) * across * scale[0] + shift[0]).astype(int)
        inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
        return inside & mask[np.ix_(rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1))]

    return da.map_blocks(look_up, chunks=chunks, dtype=bool, meta=np.empty((0, 0), dtype=bool))


def tissue_mask(sdata: SpatialData, image_key: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Find the tissue of an image on a coarse level: bool (height, width), and level-0 pixels per mask pixel (x, y).

    `squidpy.experimental.im.detect_tissue` (Otsu) separates tissue from glass by texture, see `_core.tissue`. Nothing
    is written.
    """
    element = _section.he_image(sdata, image_key)
    levels, mpp = _section.image_levels(element), _section.mpp_of(element)
    # A level near the working resolution.
    height, width = levels[0].shape[1:]
    wanted = max(height, width) / _WORKING_PX if mpp is None else _WORKING_UM / mpp
    used = pick_level(np.array([width / level.shape[2] for level in levels]), wanted)
    while used + 1 < len(levels) and levels[used].shape[1] * levels[used].shape[2] > _section.MAX_LABEL_PIXELS:
        used += 1
    data = levels[used].data[:3]
    # An image without a pyramid is thinned out, so that it never has to fit into memory.
    step = max(1, int(wanted * data.shape[2] / width), int(np.ceil(np.sqrt(data[0].size / _section.MAX_LABEL_PIXELS))))
    picture = np.asarray(data[:, ::step, ::step])
    scale = step * width / data.shape[2], step * height / data.shape[1]
    radius = 2 if mpp is None else max(1, round(_RADIUS_UM / (mpp * max(scale))))
    ignore = unusable(picture)
    marks = texture(picture, radius, ignore=ignore)
    marks = np.where(ignore, 0, np.maximum(marks, solid(picture, (marks == 0) & ~ignore)))
    if not marks.any():
        return np.zeros(marks.shape, dtype=bool), scale
    mm2 = None if mpp is None else marks.size * scale[0] * scale[1] * mpp**2 / 1e6
    smallest = _SMALLEST_SHARE if mm2 is None else min(_SMALLEST_MM2 / mm2, 1.0)
    with quiet_import():
        from squidpy.experimental.im import detect_tissue

    # Dark where tissue is, as squidpy expects of a bright-field image.
    alone = SpatialData(images={"texture": Image2DModel.parse(1 - marks[None], dims=("c", "y", "x"))})
    with quiet_squidpy():
        labels = detect_tissue(
            alone,
            "texture",
            method="otsu",
            # Corners may hold tissue; what is bright is known here.
            corners_are_background=False,
            min_specimen_area_frac=smallest,
            # All pieces: by default the smaller of two is taken for an artefact.
            n_samples=marks.size,
            auto_max_pixels=marks.size,
            close_holes_smaller_than_frac=smallest,
            inplace=False,
        )
    return tighten((np.asarray(labels) > 0) & ~ignore, radius, ignore=ignore), scale
