"""Pathway scores on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst.pl import _base
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps

_MOST_SHOWN = 12


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
    percentiles
        Percentiles of a pathway's scores at which colours saturate.
    cmap
        Colour map.
    image_alpha
        Opacity of the H&E, 0 to 1.
    spot_size
        Factor on the spots' true diameter.
    n_cols
        Maps in a row.
    region
        Region to show; needed where the table has several.
    image_key
        H&E image; by default the one the crops come from.
    coordinate_system
        System in which spots and image meet.
    table_key
        Table whose rows are the spots.
    title
        One title per map; by default the pathway.
    ax
        Axes to draw into, for a single pathway.
    save
        File to write; its ending picks the format (``.png``, ``.pdf``, …). At 150 dpi, or what
        `matplotlib.rcParams["savefig.dpi"]` says (`scanpy.set_figure_params(dpi_save=300)` sets it).
    show
        True calls `matplotlib.pyplot.show`; None leaves it to the session (a notebook shows open figures when a cell
        ends); False closes the figure in pyplot, so that only what is returned shows it.

    Returns
    -------
    The Figure, or `ax` where it was given.

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
    _base.require_spatialdata(sdata)
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    table = _section.get_table(sdata, table_key)
    one = _base.one_region(table, region)
    frame = _base.stored_frame(table, key, "sl.tl.pathways(sdata, net)").iloc[one.rows]
    names = _most_variable(frame) if pathways is None else _base.as_list(pathways, name="pathways")
    groups = _base.retitled([[_panel(frame, name, key, percentiles, cmap)] for name in names], title)
    _base.check_single(ax, len(groups), how="`pathways=`")

    tissue = read_tissue(
        sdata, table, one, image_key=image_key, coordinate_system=coordinate_system, n_maps=len(groups)
    )
    style = MapStyle(image_alpha, spot_size)
    per_row = min(n_cols, len(groups))
    return show_maps(tissue, groups, per_row=per_row, style=style, ax=ax, save=save, show=show)


def _most_variable(frame: pd.DataFrame) -> list[str]:
    if frame.shape[1] <= _MOST_SHOWN:
        return [str(name) for name in frame.columns]
    logger.info("showing the %d of %d pathways whose scores vary most; name others", _MOST_SHOWN, frame.shape[1])
    return [str(name) for name in frame.std().nlargest(_MOST_SHOWN).index]


def _panel(frame: pd.DataFrame, name: str, key: str, percentiles: tuple[float, float], cmap: str) -> Panel:
    found = _base.find_gene(name, frame.columns)
    if found is None:
        raise _base.missing_name(name, list(frame.columns), where=f"`.obsm[{key!r}]`")
    values = frame[found].to_numpy(dtype=float)
    if not np.isfinite(values).any():
        raise DataError(f"`.obsm[{key!r}]` holds no score of {found!r} in this region.")
    return Panel(found, values, "score", cmap, _base.robust_limits([values], percentiles))
