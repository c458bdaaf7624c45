"""Where a slide-level model looked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.stats import rankdata
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._validate import check_choice, check_fraction, whole
from sealst.pl import _base
from sealst.pl._maps.crops import Gallery, draw_beside, embedded_um, load_crops, spot_title
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps


@documented
def attention(
    sdata: SpatialData,
    *,
    key: str = Keys.ATTENTION,
    n_crops: int = 8,
    scale: Literal["percentile", "linear"] = "percentile",
    title: str | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    alpha: float = 0.6,
    image_alpha: float = 1.0,
    spot_size: float = 1.0,
    region: str | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Show where a slide-level model looked: attention on the H&E, and the most attended crops.

    Few tiles usually hold most of the attention, so colours show its percentile within the slide: they tell which
    tiles count more than others, not how much more. That stands in the crops' titles, as a multiple of the mean, and
    in the figure's title, which says how many tiles hold half of the attention. Attention tells what a model used, not
    what causes the label.

    Parameters
    ----------
    sdata
        Slide with attention (`tl.predict_slide`) and crops (`pp.pair_crops`).
    key
        ``.obs`` column with the attention: weights that are not negative and sum to 1 over the slide.
    n_crops
        Most attended crops to show, beside the map; 0 for the map alone.
    scale
        ``"percentile"``: rank within the slide, 0 to 100; ``"linear"``: multiple of the mean.
    title
        Title above the map and its crops; by default the slide, and how many tiles hold half of the attention.
    percentiles
        Percentiles of the attention at which colours saturate, with ``scale="linear"``.
    cmap
        Colour map.
    alpha
        Opacity of the tiles, 0 to 1.
    %(image_alpha)s
    %(spot_size)s
    %(shown.region)s
    %(coordinate_system)s
    %(table_key)s
    %(map.ax)s
    %(figure)s

    Raises
    ------
    OrderError
        When there is no attention, or tiles were not paired with crops.
    DataError
        When the table has several regions and none is named, or the column cannot be attention.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.attention(sdata, n_crops=8, save="attention.png")  # doctest: +SKIP
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_fraction("alpha", alpha)
    n_crops = whole("n_crops", n_crops, least=0)
    check_choice("scale", scale, ["percentile", "linear"])
    table, one = _base.table_with_region(sdata, table_key, region)
    weights = _base.stored_column(table, key, "sl.tl.predict_slide(sdata, model)")
    usable = _section.region_crops(sdata, table, one).rows
    # Attention as a multiple of its mean over the slide.
    own = weights[one.rows]
    known = own[np.isfinite(own)]
    if not known.size or known.min() < 0 or known.sum() <= 0:
        found = "none" if not known.size else f"{known.min():.3g} to {known.max():.3g}"
        raise DataError(
            f"`.obs[{key!r}]` must hold weights that are not negative, and not all 0; found in this region: {found}. "
            "Run `sl.tl.predict_slide(sdata, model)`, or show other values with `sl.pl.slide(sdata, color=...)`."
        )
    folds = weights / known.mean()
    rows = usable[np.isfinite(folds[usable])]
    if not rows.size:
        raise DataError(f"No tile of region {one.name!r} has both attention and a crop; pair crops with the tiles.")
    rows = rows[np.argsort(-folds[rows], kind="stable")][:n_crops]
    _base.check_single(ax, 1 + len(rows), how="`n_crops=0`, which is the map alone")
    tissue = read_tissue(sdata, table, one, coordinate_system=coordinate_system)
    own, known = folds[one.rows], folds[one.rows][np.isfinite(folds[one.rows])]
    ordered = np.sort(known)[::-1]
    half = int(np.searchsorted(np.cumsum(ordered), ordered.sum() * (0.5 - 1e-9))) + 1
    share = f"half of the attention lies on {half} of {len(ordered)} tiles ({100 * half / len(ordered):.2g} %)"
    heading = f"{one.section}: {share}" if title is None else title
    if scale == "linear":
        limits = _base.robust_limits([own], percentiles)
        panel = Panel("", own, "attention (multiple of the mean)", cmap, limits)
    else:
        ranks = np.full(len(own), np.nan)
        # The middle of a tile's place, so that equal attention lies at 50 and the scale runs from 0 to 100.
        ranks[np.isfinite(own)] = 100 * (rankdata(known) - 0.5) / len(known)
        panel = Panel("", ranks, "attention (percentile within the slide)", cmap, (0.0, 100.0))
    style = MapStyle(image_alpha, spot_size, alpha=alpha)
    if not n_crops:
        panel = replace(panel, title=heading)
        return show_maps(tissue, [[panel]], per_row=1, style=style, ax=ax, save=save, show=show)
    texts = [
        f"{spot_title(table, row)}\n{folds[row]:{'.0f' if folds[row] >= 10 else '.1f'}} × the mean" for row in rows
    ]
    shown = load_crops(sdata, table, rows, [one], embedded_um(table, Keys.EMBEDDING))
    galleries = [Gallery("Most attended (circled on the map)", shown, texts)]
    figure = draw_beside(tissue, panel, style, galleries=galleries, heading=heading)
    # Circles stay visible however small a tile is.
    halo = [withStroke(linewidth=2.4, foreground="white")]
    circles: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.9, "zorder": 3}
    x, y = tissue.centres[np.isin(one.rows, rows)].T
    figure.axes[0].scatter(x, y, s=34, path_effects=halo, gid="attended", **circles)
    return _base.finish(figure, ax, save, show)
