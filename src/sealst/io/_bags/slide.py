"""Open a slide of a cohort with its tiles and its picture."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
from shapely import box
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core.space.geometry import square_boxes
from sealst._errors import DataError, MissingKeyError
from sealst._files import absolute, visible
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import check_key, listed
from sealst.io._images.wsi import read_wsi

#: entry of ``.uns["sealst"]`` that `tl.embed_slides` writes
_ENTRY = "embed_slides"


def read_slide(
    source: str | PathLike[str], slide: str | None = None, *, path: str | PathLike[str] | None = None
) -> SpatialData:
    """Open a slide of ``tl.embed_slides`` with its tiles, its results and its picture.

    What the run did not keep is made again from its table: the squares of tiles and crops. Pixels stay in the
    scanner's file. Every call that takes a slide works on it, such as `sealst.pl.slide`, `sealst.tl.predict_slide` and
    `sealst.io.write_wsi`.

    Parameters
    ----------
    source
        Folder of ``tl.embed_slides``, or the table of one slide (``slides/<slide>.h5ad``, or a copy with results).
    slide
        Name of the slide; needed where the folder has several.
    path
        The slide's file, where it is no longer at the place that it was embedded from.

    Returns
    -------
    SpatialData with

    - ``images["<section>_he"]``, ``attrs["<section>_he"]``: as from `sealst.io.read_wsi`
    - ``shapes["<section>_spots"]``, ``shapes["<section>_spots_crops"]``: squares in pixels of the image, as from
      `sealst.pp.tile` and `sealst.pp.pair_crops`
    - ``tables["table"]``: the slide's table, with embeddings and whatever was added to it

    Raises
    ------
    MissingKeyError
        When there is no such slide, or several and none is named.
    DataError
        When the table is not of ``tl.embed_slides``, or the slide's file is gone or is another.
    ScaleError
        When the slide's file states another scale.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_slide("cohort", "S1")  # doctest: +SKIP
    >>> sl.tl.predict_slide(sdata, slide_model)  # doctest: +SKIP
    >>> sl.pl.attention(sdata)  # doctest: +SKIP
    """
    file = _table_file(absolute(source), slide)
    if not h5py.is_hdf5(file):
        raise DataError(f"{str(file)!r} is not an h5ad table.")
    try:
        table = _section.read_h5ad(file)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{str(file)!r} could not be read as an h5ad table: {error}") from error
    entry, tile = (_section.recorded(table, name) for name in (_ENTRY, "tile"))
    if not entry or not tile:
        raise DataError(
            f"{str(file)!r} is not a table of `tl.embed_slides` (no `.uns['sealst'][{_ENTRY!r}]`). Open the slide with "
            "`sl.io.read_wsi` and cut it with `sl.pp.tile`."
        )
    (region,) = _section.regions_of(table)
    if slide is not None and region.section != slide:
        raise MissingKeyError(f"{str(file)!r} is the table of slide {region.section!r}, not of {slide!r}.")
    where = absolute(entry["path"] if path is None else path)
    if not where.exists():
        raise DataError(
            f"The file of slide {region.section!r} is not at {str(where)!r}. Say where it is now with `path=`."
        )
    facts = {key: str(table.obs[key].iloc[0]) for key in (Keys.PATIENT, Keys.ORGAN, Keys.TECHNOLOGY)}
    sdata = read_wsi(where, section=region.section, mpp=float(tile["mpp"]), **facts)
    # The file must be the picture that the tiles were cut from.
    picture = sdata.images[Keys.image(region.section)]
    height, width = _section.image_levels(picture)[0].shape[1:]
    small = dict(table.uns.get("spatial", {})).get(region.section)
    if small is not None:
        shape = np.array(small["images"]["hires"].shape[:2])
        scale = float(small["scalefactors"]["tissue_hires_scalef"])
        # The thumbnail's height is rounded.
        same = abs(shape[1] / scale - width) < 1 and abs(shape[0] / scale - height) <= 1 / scale
    else:
        xy = np.asarray(table.obsm[Keys.SPATIAL])
        same = bool((xy.max(axis=0) < [width, height]).all())
    if not same:
        raise DataError(
            f"{str(where)!r} ({width} x {height} px) is not the picture that slide {region.section!r} was embedded "
            "from. Name the right file with `path=`."
        )
    # Pixels of the image are the frame of a slide without spots.
    sides = {region.name: float(tile["tile_um"]) / float(tile["mpp"])}
    crops = dict(_section.recorded(table, "crops").get(region.name, {}))
    sides |= {name: float(um) / float(crops["mpp"]) for um, name in dict(crops.get("sizes", {})).items()}
    centres = np.asarray(table.obsm[Keys.SPATIAL], dtype=float)
    for name, side in sides.items():
        frame = gpd.GeoDataFrame(geometry=box(*square_boxes(centres, side).T), index=pd.Index(region.ids))
        systems = get_transformation(picture, get_all=True)
        sdata.shapes[name] = ShapesModel.parse(frame, transformations=dict(systems))
    sdata.tables[Keys.TABLE] = TableModel.parse(table)
    logger.info("%s: %d tiles, with %s", region.section, table.n_obs, listed(table.obsm))
    return sdata


def _table_file(source: Path, slide: str | None) -> Path:
    if source.is_file():
        return source
    files = {path.stem: path for path in visible(source / "slides").values() if path.suffix == ".h5ad"}
    if not files:
        raise DataError(f"{str(source)!r} is no folder of `tl.embed_slides` (no slides/*.h5ad), and no table.")
    if slide is None:
        if len(files) > 1:
            raise MissingKeyError(f"{str(source)!r} holds slides {listed(files)}; name one with `slide=`.")
        return next(iter(files.values()))
    check_key(files, slide, where=f"the slides of {str(source)!r}", hint="failures.csv says which could not be read.")
    return files[slide]
