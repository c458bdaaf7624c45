"""Any stored value on the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst._core.genes.names import near_names
from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError
from sealst._keys import Keys
from sealst._validate import check_count, check_fraction, check_key, listed
from sealst.pl import _base
from sealst.pl._base import palette
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps

#: more categories than this cannot be told apart
_MOST_CATEGORIES = 20


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
    check_count("n_cols", n_cols)
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


@dataclass(frozen=True, eq=False)
class Shade:
    """One value per row of the table, and what it is."""

    title: str
    #: unit, as it stands at the colour bar
    label: str
    #: numbers, or positions in `categories`; NaN where there is no value
    values: np.ndarray
    categories: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()

    def panel(self, rows: np.ndarray, *, cmap: str | Colormap, percentiles: tuple[float, float]) -> Panel:
        """Return the map of some rows."""
        values = self.values[rows]
        if not np.isfinite(values).any():
            return Panel(self.title, None, "no values here")
        if not self.categories:
            return Panel(self.title, values, self.label, cmap, _base.robust_limits([values], percentiles))
        edges = (-0.5, len(self.categories) - 0.5)
        return Panel(self.title, values, "", ListedColormap(self.colours), edges, self.categories)


def numbers_of(table: AnnData, name: str, *, argument: str) -> Shade:
    """Values of what must be a number, such as an order."""
    if name in table.obs:
        return Shade(name, name, _base.numeric(table.obs[name], where=f"`.obs[{name!r}]`"))
    return shade_of(table, name, argument=argument)


def shade_of(table: AnnData, name: str, *, argument: str = "color") -> Shade:
    """Values of a name: ``.obs``, then measured genes, predicted genes, pathways; ``key:column`` is in ``.obsm``."""
    if name in table.obs:
        return _from_obs(table, name)
    if Keys.LOGNORM in table.layers and (gene := _base.find_gene(name, table.var_names)) is not None:
        return Shade(f"{gene}, measured", _base.EXPRESSION_UNIT, _base.gene_column(table, gene, Keys.LOGNORM))
    for key, unit, what in _FRAMES:
        frame = table.obsm.get(key)
        if isinstance(frame, pd.DataFrame) and (column := _base.find_gene(name, frame.columns)) is not None:
            return Shade(f"{column}{what}", unit, frame[column].to_numpy(dtype=float))
    key, colon, column = name.partition(":")
    if colon and key in table.obsm:
        return _from_obsm(table, key, column)
    frames = [(key, table.obsm[key].columns) for key, *_ in _FRAMES if isinstance(table.obsm.get(key), pd.DataFrame)]
    known = [*table.obs.columns, *table.var_names, *(column for _, columns in frames for column in columns)]
    close = near_names([name], known)
    hint = f" Closest: {listed(close)}." if close else ""
    raise MissingKeyError(
        f"`{argument}` {name!r} is neither a column of `.obs` ({listed(table.obs.columns, 20)}) nor a gene of layer "
        f"{Keys.LOGNORM!r} or of `.obsm[{Keys.EXPRESSION!r}]`, nor a pathway of `.obsm[{Keys.PATHWAYS!r}]`.{hint} "
        "Genes need `sl.pp.normalize(sdata)` or `sl.tl.predict(sdata, model)` first, pathways `sl.tl.pathways(sdata, "
        f"net)`; a column of another slot is written `'key:column'` (found in `.obsm`: {listed(table.obsm)})."
    )


#: slots of named columns, with the unit and what the title adds
_FRAMES = (
    (Keys.EXPRESSION, _base.EXPRESSION_UNIT, ", predicted"),
    (Keys.PATHWAYS, "score", ""),
)


def _from_obs(table: AnnData, name: str) -> Shade:
    column = table.obs[name]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return Shade(name, name, column.to_numpy(dtype=float, na_value=np.nan))
    codes = column.astype("category").cat
    names = tuple(str(one) for one in codes.categories)
    if len(names) > _MOST_CATEGORIES:
        raise DataError(
            f"`.obs[{name!r}]` has {len(names)} categories; at most {_MOST_CATEGORIES} colours can be told apart. Join "
            "some of them first."
        )
    stored = table.uns.get(f"{name}_colors")
    colours = tuple(palette(len(names)) if stored is None or len(stored) != len(names) else (str(c) for c in stored))
    return Shade(name, name, np.where(codes.codes < 0, np.nan, codes.codes.astype(float)), names, colours)


def _from_obsm(table: AnnData, key: str, column: str) -> Shade:
    stored = table.obsm[key]
    if isinstance(stored, pd.DataFrame):
        found = _base.find_gene(column, stored.columns)
        if found is None:
            raise _base.missing_name(column, list(stored.columns), where=f"`.obsm[{key!r}]`")
        unit = next((unit for own, unit, _ in _FRAMES if own == key), found)
        return Shade(f"{key}:{found}", unit, _base.numeric(stored[found], where=f"`.obsm[{key!r}][{found!r}]`"))
    known = [str(i) for i in range(stored.shape[1])]
    hint = f"An array's columns are numbers from 0, as in `'{key}:0'`."
    check_key(known, column, where=f"the columns of `.obsm[{key!r}]`", hint=hint)
    values = stored[:, int(column)]
    values = values.toarray() if hasattr(values, "toarray") else values
    return Shade(f"{key}:{column}", "component", np.asarray(values, dtype=float).ravel())
