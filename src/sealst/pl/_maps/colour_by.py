"""What `color=` names: a gene, a pathway, a column of ``.obs`` or one of ``.obsm``, as numbers or categories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.colors import Colormap, ListedColormap

from sealst._core.genes.near_names import near_names
from sealst._errors import DataError, MissingKeyError
from sealst._keys import Keys
from sealst._validate import check_key, listed
from sealst.pl import _base
from sealst.pl._base import palette
from sealst.pl._maps.tissue import Panel

#: more categories than this cannot be told apart
_MOST_CATEGORIES = 20


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
        if not table.var_names.is_unique:
            raise DataError("Gene names occur twice in `.var_names`. Run `adata.var_names_make_unique()` first.")
        values = np.asarray(table.obs_vector(gene, layer=Keys.LOGNORM), dtype=float)
        return Shade(f"{gene}, measured", _base.EXPRESSION_UNIT, values)
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
