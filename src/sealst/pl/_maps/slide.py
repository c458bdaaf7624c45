"""Any stored value on the slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst._docs import documented
from sealst._keys import Keys
from sealst._validate import check_fraction, check_positive
from sealst.pl import _base
from sealst.pl._maps.colour_by import shade_of
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps


@documented
def slide(
    sdata: SpatialData,
    color: str | Sequence[str | None] | None = None,
    *,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    alpha: float = 0.6,
    image_alpha: float = 1.0,
    spot_size: float = 1.0,
    n_cols: int = 4,
    title: str | Sequence[str] | None = None,
    region: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Map any stored value of tiles or spots on a thumbnail of the H&E, one map per value.

    A name is looked up in ``.obs``, then among measured genes (layer ``"lognorm"``), predicted genes, and pathways;
    upper and lower case are told apart only where both exist. ``"key:column"`` names a column of any ``.obsm`` slot:
    ``"X_seal:0"``, ``"seal_expression:ERBB2"`` for the prediction of a gene that was measured too. Numbers get a colour
    bar, categories a legend, with the colours in ``.uns["<column>_colors"]`` where there are any. Tiles and spots are
    drawn at their true size; those without a value stay hollow.

    Parameters
    ----------
    sdata
        Slide with tiles (`pp.tile`) or section with spots.
    color
        What to show: one or several columns of ``.obs``, genes, pathways, or ``"key:column"`` of ``.obsm``. None shows
        the H&E alone, also as one of several.
    %(percentiles)s
    cmap
        Colour map of numbers.
    alpha
        Opacity of tiles and spots, 0 to 1.
    %(image_alpha)s
    %(spot_size)s
    %(n_cols)s
    title
        One title per map; by default the name of what is shown.
    %(shown.region)s
    %(shown.image_key)s
    %(coordinate_system)s
    %(table_key)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a name of `color` is nowhere.
    DataError
        When the table has several regions and none is named, or a column has more than 20 categories.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=800, mpp=1.0)
    >>> figure = sl.pl.slide(sdata, ["truth_nuclei", "truth_programs:epithelium"])
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_fraction("alpha", alpha)
    check_positive("n_cols", n_cols)
    table, one = _base.table_with_region(sdata, table_key, region)
    names: list[str | None] = [None] if color is None else _base.as_list(color, name="color")
    shades = [None if name is None else shade_of(table, name) for name in names]
    picture = Panel(one.section, None, "")
    panels = [shade.panel(one.rows, cmap=cmap, percentiles=percentiles) if shade else picture for shade in shades]
    groups, n_maps = _base.with_titles([[panel] for panel in panels], title), len(panels)
    _base.check_single(ax, n_maps, how="one name in `color`")

    tissue = read_tissue(sdata, table, one, image_key=image_key, coordinate_system=coordinate_system, n_maps=n_maps)
    style = MapStyle(image_alpha, spot_size, alpha=alpha)
    return show_maps(tissue, groups, per_row=min(n_cols, n_maps), style=style, ax=ax, save=save, show=show)
