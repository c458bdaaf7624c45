"""Pathway scores on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst.pl import _base
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps

_MOST_SHOWN = 12


@documented
def pathways(
    sdata: SpatialData,
    pathways: str | Sequence[str] | None = None,
    *,
    key: str = Keys.PATHWAYS,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    image_alpha: float = 0.6,
    spot_size: float = 1.0,
    n_cols: int = 4,
    region: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    title: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Map pathway scores on the H&E, one map per pathway.

    Each map has its own colour limits. Spots are drawn at their true size; spots without a score stay hollow.

    Parameters
    ----------
    sdata
        Section with pathway scores (`tl.pathways`).
    pathways
        Pathway or pathways to show; upper and lower case are told apart only where both exist. By default the 12 whose
        scores vary most between the spots.
    key
        ``.obsm`` slot that `tl.pathways` wrote.
    %(percentiles)s
    cmap
        Colour map.
    %(image_alpha)s
    %(spot_size)s
    %(n_cols)s
    %(shown.region)s
    %(shown.image_key)s
    %(coordinate_system)s
    %(table_key)s
    title
        One title per map; by default the pathway.
    %(ax)s
    %(figure)s

    Raises
    ------
    OrderError
        When there are no scores.
    MissingKeyError
        When a pathway is not among them.
    DataError
        When the table has several regions and none is named.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.pathways(sdata, ["HALLMARK_HYPOXIA"], save="hypoxia.png")  # doctest: +SKIP
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    table, one = _base.table_with_region(sdata, table_key, region)
    frame = _section.stored_frame(table, key, "sl.tl.pathways(sdata, net)").iloc[one.rows]
    names = [str(name) for name in frame.columns] if pathways is None else _base.as_list(pathways, name="pathways")
    if pathways is None and len(names) > _MOST_SHOWN:
        logger.info("showing the %d of %d pathways whose scores vary most; name others", _MOST_SHOWN, len(names))
        names = [str(name) for name in frame.std().nlargest(_MOST_SHOWN).index]
    panels = []
    for name in names:
        found = _base.find_gene(name, frame.columns)
        if found is None:
            raise _base.missing_name(name, list(frame.columns), where=f"`.obsm[{key!r}]`")
        values = frame[found].to_numpy(dtype=float)
        if not np.isfinite(values).any():
            raise DataError(f"`.obsm[{key!r}]` holds no score of {found!r} in this region.")
        panels.append([Panel(found, values, "score", cmap, _base.robust_limits([values], percentiles))])
    groups = _base.with_titles(panels, title)
    _base.check_single(ax, len(groups), how="`pathways=`")

    tissue = read_tissue(
        sdata, table, one, image_key=image_key, coordinate_system=coordinate_system, n_maps=len(groups)
    )
    style = MapStyle(image_alpha, spot_size)
    per_row = min(n_cols, len(groups))
    return show_maps(tissue, groups, per_row=per_row, style=style, ax=ax, save=save, show=show)
