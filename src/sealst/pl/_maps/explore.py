"""Spots under the mouse, in a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Region
from sealst._validate import check_count
from sealst.pl import _base
from sealst.pl._maps.crops import load_crops
from sealst.pl._maps.slide import Shade, shade_of

if TYPE_CHECKING:
    from jscatter import Scatter

#: columns of the frame that are no value
_X, _Y, _CROP = "x_um", "y_um", "crop"
#: pixels along a crop under the mouse
_CROP_PX = 112
#: pixels that a point may have
_POINT_PX = (3, 24)


@documented
def explore(
    sdata: SpatialData,
    color: str | Sequence[str],
    *,
    n_crops: int = 5000,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    height: int = 480,
    region: str | None = None,
    table_key: str = Keys.TABLE,
) -> Scatter:
    """Spots of a section to zoom into, to point at and to choose, in a notebook.

    The mouse over a spot shows its crop of the H&E and its values; the lasso (or shift and drag) chooses spots, whose
    names ``.selection()`` gives back. It is a widget of jupyter-scatter, drawn by the graphics card of the browser, and
    needs a kernel: a stored notebook shows nothing of it.

    Parameters
    ----------
    sdata
        Section with crops (`pp.pair_crops`), or slide with tiles.
    color
        One or several names, looked up as in `sealst.pl.slide`. The first one gives the colours, the others stand
        under the mouse, too.
    n_crops
        Crops are shown of sections with at most so many spots, since all of them are read and sent to the notebook
        (some 5 kB each); 0 leaves them out.
    %(percentiles)s
    cmap
        Colour map of numbers.
    height
        Height of the widget in pixels of the screen.
    %(shown.region)s
    %(table_key)s

    Returns
    -------
    ``jscatter.Scatter``, without spots that have no crop or no value of the first name. `sdata` is not changed.

    Raises
    ------
    DataError
        When jupyter-scatter is not installed (``pip install "sealst[notebook]"``), the table has several regions and
        none is named, or no spot has a value.
    MissingKeyError
        When a name of `color` is nowhere.
    OrderError
        When spots were not paired with crops yet.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.pair_crops(sdata)
    >>> sl.pp.normalize(sdata)
    >>> scatter = sl.pl.explore(sdata, ["ERBB2", "CD3E"])
    >>> scatter.show()  # in a notebook; circle spots with the lasso, then  # doctest: +SKIP
    >>> table = sdata.tables["table"]
    >>> table.obs["mine"] = table.obs_names.isin(scatter.selection())
    """
    jscatter = _jscatter()
    if n_crops < 0:
        raise DataError(f"`n_crops` must not be negative, found {n_crops}.")
    check_count("height", height)
    _base.check_map_options(percentiles, 1.0, 1.0)
    table, one = _base.table_with_region(sdata, table_key, region)
    shades = [shade_of(table, name) for name in _base.as_list(color, name="color")]
    rows = _section.region_crops(sdata, table, one).rows
    rows = rows[np.isfinite(shades[0].values[rows])]
    if not rows.size:
        raise DataError(f"No spot with a crop has a value of {shades[0].title!r}; there is nothing to show.")
    frame = _frame(sdata, table, one, rows=rows, shades=shades)
    crop = {}
    if len(rows) <= n_crops:
        frame[_CROP] = _pictures(sdata, table, rows, one)
        crop = {"preview": _CROP, "preview_type": "image", "preview_image_height": _CROP_PX}
    elif n_crops:
        logger.info("no crops under the mouse: %d spots, `n_crops` is %d", len(rows), n_crops)
    scatter = jscatter.Scatter(
        data=frame,
        data_use_index=True,
        x=_X,
        y=_Y,
        height=height,
        legend=True,
        axes_labels=["µm", "µm"],
        **_places(frame, height),
        **_colours(shades[0], rows, cmap, percentiles),
    )
    return scatter.tooltip(True, properties=[shade.title for shade in shades], histograms=False, **crop)


def _jscatter() -> Any:
    try:
        import jscatter
    except ImportError as error:
        raise DataError(
            '`pl.explore` needs jupyter-scatter, which is not installed: `pip install "sealst[notebook]"`.'
        ) from error
    return jscatter


def _frame(sdata: SpatialData, table: AnnData, region: Region, *, rows: np.ndarray, shades: Sequence[Shade]) -> Any:
    """Places in µm and values of rows of the table, named as their spots."""
    centres = pd.DataFrame(_section.centres_um(sdata, table, region), index=region.rows).loc[rows].to_numpy()
    # The axis of a plot points upwards, that of a picture downwards.
    frame = pd.DataFrame({_X: centres[:, 0], _Y: -centres[:, 1]}, index=table.obs_names[rows])
    for shade in shades:
        frame[shade.title] = _column(shade, rows)
    return frame


def _places(frame: pd.DataFrame, height: int) -> dict[str, Any]:
    """Limits of both axes with a margin, in one scale, and points in pixels that leave a gap between each other."""
    xy = frame[[_X, _Y]].to_numpy()
    span = np.ptp(xy, axis=0)
    pitch = float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 0.0
    margin = max(pitch, 0.02 * float(span.max()), 1.0)
    (x0, y0), (x1, y1) = xy.min(0) - margin, xy.max(0) + margin
    size = np.clip(0.6 * pitch * height / (y1 - y0), *_POINT_PX)
    return {"x_scale": (x0, x1), "y_scale": (y0, y1), "aspect_ratio": 1, "size": int(size)}


def _column(shade: Shade, rows: np.ndarray) -> Any:
    values = shade.values[rows]
    if not shade.categories:
        # As they are read under the mouse.
        return [float(f"{value:.4g}") for value in values]
    return pd.Categorical.from_codes(np.nan_to_num(values, nan=-1).astype(int), list(shade.categories))


def _pictures(sdata: SpatialData, table: AnnData, rows: np.ndarray, region: Region) -> list[str]:
    """Crops as addresses that hold their picture."""
    found = []
    for crop in load_crops(sdata, table, rows, [region]):
        stream = BytesIO()
        picture = Image.fromarray(crop.pixels)
        picture.thumbnail((_CROP_PX, _CROP_PX), Image.Resampling.LANCZOS)
        picture.save(stream, "JPEG", quality=85)
        found.append("data:image/jpeg;base64," + b64encode(stream.getvalue()).decode())
    return found


def _colours(shade: Shade, rows: np.ndarray, cmap: str, percentiles: tuple[float, float]) -> dict[str, Any]:
    if shade.categories:
        return {"color_by": shade.title, "color_map": dict(zip(shade.categories, shade.colours, strict=True))}
    limits = _base.robust_limits([shade.values[rows]], percentiles)
    return {"color_by": shade.title, "color_map": cmap, "color_norm": limits}
