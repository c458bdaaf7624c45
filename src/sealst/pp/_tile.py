"""Cut the tissue of a slide without spots into tiles that stand for spots."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel
from spatialdata.transformations import get_transformation, set_transformation

from sealst import _section
from sealst._core.space.geometry import apply_affine, similarity_scale, square_boxes
from sealst._core.space.tissue import box_fractions
from sealst._data.bags.bags import BlankSlideError
from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError, ScaleError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section.arrays import from_arrays
from sealst._section.pyramid import SlideImage, touch_lost
from sealst._validate import check_fraction, check_key, check_positive, listed
from sealst.pp._tissue import tissue_mask

_SUFFIX = Keys.image("")
#: calls that record what they write under its name
_ADDING = ("embed", "predict", "pathways", "retrieve", "annotate", "predict_slide")


@documented
def tile(
    sdata: SpatialData,
    *,
    crop_um: float = 112.0,
    step_um: float | None = None,
    min_tissue: float = 0.5,
    image_key: str | None = None,
    section: str | None = None,
    patient: str | None = None,
    organ: str | None = None,
    technology: str | None = None,
    table_key: str = Keys.TABLE,
    thumbnail: bool = True,
) -> None:
    """Cut the tissue of a slide into square tiles that stand for spots in every later call.

    Tiles lie on a grid that starts in the image's upper left corner, and wholly inside the image. Tissue is found on a
    coarse level as by `sealst.pp.tissue`. A later call replaces the tiles of an earlier one, with all that other calls
    wrote about them.

    Parameters
    ----------
    sdata
        Slide with an H&E image whose scale is known, see `sealst.io.read_wsi`.
    crop_um
        Side of a tile in µm, as of the crops that `sealst.pp.pair_crops` will cut.
    step_um
        Distance of neighbouring tiles, centre to centre, in µm; by default `crop_um`, so that they touch.
    %(min_tissue)s
    image_key
        H&E image; by default the only one.
    section
        Name of the section; by default the image's name without ``"_he"``.
    patient, organ, technology
        Written to ``.obs``; by default as given to `sealst.io.read_wsi`, else the section's name, ``"unknown"`` and
        ``"H&E"``.
    table_key
        Name of the new table.
    thumbnail
        Whether to store a small picture in ``.uns["spatial"]``.

    Returns
    -------
    None; writes

    - ``sdata.shapes["<section>_spots"]``: squares, pixels of the image, index = tile ids ``"<column>x<row>"``
    - ``sdata.tables[table_key]``: one row per tile and no genes, laid out as by `sealst.io.from_arrays`, with
      ``.obs["array_row"]``, ``.obs["array_col"]``, ``.obs["tissue_fraction"]`` (float64, 0 to 1) and
      ``.uns["sealst"]["tile"]``

    Raises
    ------
    ScaleError
        When the image has no physical scale.
    DataError
        When shapes or a table of these names are there that this call did not write, or the table has slots of one's
        own; the image is smaller than a tile, or fewer than 2 tiles hold tissue.
    MissingKeyError
        When there is no image, or several and none is named.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_wsi("slide.svs")  # doctest: +SKIP
    >>> sl.pp.tile(sdata, crop_um=112, min_tissue=0.5)  # doctest: +SKIP
    >>> sl.pp.pair_crops(sdata, crop_um=112)  # doctest: +SKIP
    """
    step_um = crop_um if step_um is None else step_um
    check_positive("crop_um", crop_um)
    check_positive("step_um", step_um)
    check_fraction("min_tissue", min_tissue)
    image_key = _find_image(sdata, image_key)
    section = image_key.removesuffix(_SUFFIX) if section is None else section
    stale = _check_replaceable(sdata, Keys.spots(section), table_key)
    element = _section.he_image(sdata, image_key)
    mpp = _section.mpp_of(element)
    if mpp is None:
        raise ScaleError(
            f"Image {image_key!r} has no coordinate system 'um', so the size of its pixels is unknown. Read the slide "
            "with `sl.io.read_wsi(path, mpp=...)`, or run `set_transformation(image, Scale([mpp, mpp], axes=('x', "
            "'y')), 'um')` of `spatialdata.transformations`."
        )
    if similarity_scale(_section.affine(element, "global")) is None:
        raise ScaleError(f"Image {image_key!r} is stretched unevenly in coordinate system 'global'; resample it first.")
    height, width = _section.image_levels(element)[0].shape[1:]
    side, step = crop_um / mpp, step_um / mpp
    if side > min(height, width):
        raise DataError(f"A tile is {side:.0f} px wide, more than image {image_key!r} ({width} x {height} px) holds.")
    # Row and column of every tile, and its centre (x, y) in pixels.
    rows, columns = (int((whole - side) / step + 1e-9) + 1 for whole in (height, width))
    array = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
    centres = array[:, ::-1] * step + side / 2
    mask, (across, down) = tissue_mask(sdata, image_key)
    fractions = box_fractions(mask, square_boxes(centres, side) / [across, down, across, down])
    kept = (fractions >= min_tissue - 1e-9) & ~touch_lost(square_boxes(centres, side), sdata.attrs.get(image_key))
    if kept.sum() < 2:
        raise BlankSlideError(
            f"{kept.sum()} of {len(kept)} tiles of {crop_um:g} µm in {image_key!r} hold {min_tissue:g} tissue "
            f"(most: {fractions.max():.2f}); at least 2 are needed. Lower `min_tissue`, `crop_um` or `step_um`."
        )
    given = {Keys.PATIENT: patient, Keys.ORGAN: organ, Keys.TECHNOLOGY: technology}
    array, centres = array[kept], centres[kept]
    known = {Keys.PATIENT: section, Keys.ORGAN: "unknown", Keys.TECHNOLOGY: "H&E"}
    known |= {key: value for key, value in sdata.attrs.get(image_key, {}).items() if key in known}
    # A section whose spots are the tiles, in the image's frame.
    tiles = from_arrays(
        SlideImage(tuple(da.asarray(level.data)[:3] for level in _section.image_levels(element))),
        np.zeros((len(centres), 0), dtype=np.float32),
        centres,
        genes=[],
        mpp=mpp,
        spot_um=crop_um,
        spot_ids=[f"{column}x{row}" for row, column in array],
        array=array,
        obs=pd.DataFrame({Keys.TISSUE_FRACTION: fractions[kept]}),
        spot_shape="square",
        thumbnail=thumbnail,
        **{"section": section} | known | {key: str(value) for key, value in given.items() if value is not None},
    )
    table: AnnData = tiles.tables[Keys.TABLE]
    systems = get_transformation(element, get_all=True)
    set_transformation(tiles.shapes[Keys.spots(section)], dict(systems), set_all=True)
    table.obsm[Keys.SPATIAL] = apply_affine(_section.affine(element, "global"), centres)
    entry = {"image_key": image_key, "tile_um": float(crop_um), "step_um": float(step_um), "mpp": mpp}
    _section.record(table, "tile", entry | {"min_tissue": float(min_tissue)})
    _write(sdata, tiles, table_key, stale)
    logger.info("%s: %d of %d tiles of %g µm hold tissue", section, kept.sum(), len(kept), crop_um)


def _find_image(sdata: SpatialData, image_key: str | None) -> str:
    _section.needs_pixels(sdata)
    images = list(sdata.images)
    if image_key is not None:
        check_key(images, image_key, where="`sdata.images`", hint="Name one of them with `image_key=`.")
        return image_key
    named = [name for name in images if name.endswith(_SUFFIX)]
    for choice in (images, named):
        if len(choice) == 1:
            return choice[0]
    raise MissingKeyError(
        f"Expected one H&E image, found {listed(images)}. Name it with `image_key=`, or read a slide with "
        "`sl.io.read_wsi(path)`."
    )


def _check_replaceable(sdata: SpatialData, region: str, table_key: str) -> list[str]:
    """Shapes that go with the tiles to replace; refuses to replace what this call did not write."""
    if table_key not in sdata.tables:
        if region in sdata.shapes:
            raise DataError(
                f"`sdata.shapes[{region!r}]` is there, which `sl.pp.tile` did not write for table {table_key!r} and "
                "would replace. Name another `section`, or rename or delete these shapes."
            )
        return []
    table = sdata.tables[table_key]
    others = [one.name for one in _section.regions_of(table) if one.name != region]
    if others or not _section.recorded(table, "tile"):
        raise DataError(
            f"`sdata.tables[{table_key!r}]` holds {listed(others) if others else 'measured spots'}, not only tiles of "
            f"{region!r}, and would be lost. Name another table with `table_key=`."
        )
    # Columns and arrays of a table that no call of sealst writes.
    constants = {value for value in vars(Keys).values() if isinstance(value, str)}
    constants |= {table.uns[TableModel.ATTRS_KEY][name] for name in ("region_key", "instance_key")}
    added = {str(key) for call in _ADDING for key in _section.recorded(table, call)}
    written = (Keys.quality(""), *(Keys.related(key, "") for key in added))
    names = [*table.obs.columns, *table.obsm, *_section.layer_names(table)]
    if own := [name for name in names if name not in constants | added and not str(name).startswith(written)]:
        raise DataError(
            f"`sdata.tables[{table_key!r}]` holds {listed(own)}, which sealst did not write and which would be lost "
            f"with the tiles. Keep a copy and delete the table (`del sdata.tables[{table_key!r}]`), or name another "
            "with `table_key=`."
        )
    crops = _section.recorded(table, "crops").get(region, {})
    return [*crops.get("sizes", {}).values(), *([crops["shapes_key"]] if crops else [])]


def _write(sdata: SpatialData, tiles: SpatialData, table_key: str, stale: list[str]) -> None:
    for key in {*stale, *tiles.shapes} & set(sdata.shapes):
        del sdata.shapes[key]
    if table_key in sdata.tables:
        del sdata.tables[table_key]
    for key, shapes in tiles.shapes.items():
        sdata.shapes[key] = shapes
    sdata.tables[table_key] = tiles.tables[Keys.TABLE]
