"""Any stored value on the slide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._keys import Keys
from sealst._validate import check_fraction, check_positive
from sealst.pl import _base
from sealst.pl._maps.colour_by import shade_of
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps


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
    percentiles
        Percentiles of a value at which colours saturate.
    cmap
        Colour map of numbers.
    alpha
        Opacity of tiles and spots, 0 to 1.
    image_alpha
        Opacity of the H&E, 0 to 1.
    spot_size
        Factor on the true size of tiles and spots.
    n_cols
        Maps in a row.
    title
        One title per map; by default the name of what is shown.
    region
        Region to show; needed where the table has several.
    image_key
        H&E image; by default the one the crops come from.
    coordinate_system
        System in which spots and image meet.
    table_key
        Table whose rows are the tiles or spots.
    ax
        Axes to draw into, for a single map.
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
    _base.require_spatialdata(sdata)
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_fraction("alpha", alpha)
    check_positive("n_cols", n_cols)
    table = _section.get_table(sdata, table_key)
    one = _base.one_region(table, region)
    names: list[str | None] = [None] if color is None else _base.as_list(color, name="color")
    shades = [None if name is None else shade_of(table, name) for name in names]
    picture = Panel(one.section, None, "")
    panels = [shade.panel(one.rows, cmap=cmap, percentiles=percentiles) if shade else picture for shade in shades]
    groups, n_maps = _base.retitled([[panel] for panel in panels], title), len(panels)
    _base.check_single(ax, n_maps, how="one name in `color`")

    tissue = read_tissue(sdata, table, one, image_key=image_key, coordinate_system=coordinate_system, n_maps=n_maps)
    style = MapStyle(image_alpha, spot_size, alpha=alpha)
    return show_maps(tissue, groups, per_row=min(n_cols, n_maps), style=style, ax=ax, save=save, show=show)
