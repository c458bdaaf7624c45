"""Measured and predicted expression on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import check_choice, listed
from sealst.pl import _base
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps

_RESIDUAL_CMAP = "RdBu_r"
#: layers in the unit of predictions
_COMPARABLE = (Keys.LOGNORM, Keys.CONTEXT)


@documented
def expression(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    layer: str | None = Keys.LOGNORM,
    predicted_key: str | None = Keys.EXPRESSION,
    residual: bool = False,
    scale: Literal["shared", "own"] = "shared",
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    image_alpha: float = 0.6,
    spot_size: float = 1.0,
    n_cols: int | None = None,
    region: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    title: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Map measured beside predicted expression on the H&E, gene by gene.

    The title of the predicted map gives Pearson's r between both, over the spots that have both. Spots are drawn at
    their true size; spots without a prediction stay hollow.

    Parameters
    ----------
    sdata
        Section with measured (`pp.normalize`) or predicted (`tl.predict`) expression.
    genes
        Gene or genes to show; upper and lower case are told apart only where both exist.
    layer
        Layer with the measured expression; None leaves the measured map out.
    predicted_key
        ``.obsm`` slot that `tl.predict` wrote; None leaves the predicted map out.
    residual
        Whether to add a third map, measured − predicted, centred on zero.
    scale
        ``"shared"``: one colour scale per gene for both maps. Both are in log1p CP10k, so equal colours mean equal
        expression, and a prediction that is too flat looks flat. ``"own"``: each map gets its own limits, which shows
        where a prediction is high or low although its range is narrower, as it always is for a regression on noisy
        counts; colours can then not be compared between maps.
    %(percentiles)s
    cmap
        Colour map of measured and predicted expression.
    %(image_alpha)s
    %(spot_size)s
    n_cols
        Genes in a row; by default 1 to 4, by the number of maps.
    %(shown.region)s
    %(shown.image_key)s
    %(coordinate_system)s
    %(table_key)s
    title
        One title per map; by default the gene, where its values come from, and how well they agree.
    ax
        Axes to draw into, for a single map (`layer=None` or `predicted_key=None`).
    %(save)s
    %(show)s

    %(returns_figure)s

    Raises
    ------
    OrderError
        When neither measured nor predicted expression exists, or `residual` lacks one of them.
    MissingKeyError
        When a gene is in neither of them.
    DataError
        When the table has several regions and none is named, or `layer` is not comparable with predictions.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.normalize(sdata)
    >>> gene = sdata.tables["table"].var_names[0]
    >>> figure = sl.pl.expression(sdata, gene, predicted_key=None)
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_choice("scale", scale, ["shared", "own"])
    table, one = _base.table_with_region(sdata, table_key, region)
    genes = _base.as_list(genes, name="genes")
    layer, predicted_key = _find_sources(table, layer, predicted_key, both=residual)
    compared = layer is not None and predicted_key is not None and (scale == "shared" or residual)
    if compared and layer not in _COMPARABLE:
        raise DataError(
            f"Layer {layer!r} is not in the unit of predictions ({_base.EXPRESSION_UNIT}), so both cannot share "
            f"colours or be subtracted. Use `layer={Keys.LOGNORM!r}`, or `scale='own'` without `residual`."
        )
    options = _Options(layer, predicted_key, residual, scale == "shared", percentiles, cmap)
    groups = _base.with_titles([options.panels(table, gene, one.rows) for gene in genes], title)
    n_maps = sum(len(group) for group in groups)
    _base.check_single(ax, n_maps, how="one gene and `layer=None` or `predicted_key=None`")

    tissue = read_tissue(sdata, table, one, image_key=image_key, coordinate_system=coordinate_system, n_maps=n_maps)
    style = MapStyle(image_alpha, spot_size)
    width = max(len(group) for group in groups)
    usual = 4 if width == 1 else 1 if len(groups) <= 3 else 2 if len(groups) <= 12 or width > 2 else 3
    per_row = min(n_cols or usual, len(groups))
    return show_maps(tissue, groups, per_row=per_row, style=style, ax=ax, save=save, show=show)


def _find_sources(
    table: AnnData, layer: str | None, predicted_key: str | None, *, both: bool
) -> tuple[str | None, str | None]:
    """Slots that exist; a default slot may be absent, one that the user named may not."""
    runs = {"layer": "sl.pp.normalize(sdata)", "predicted_key": "sl.tl.predict(sdata, model)"}
    if layer not in (None, Keys.LOGNORM):
        _section.lognorm(table, str(layer))
    if predicted_key is not None and (predicted_key != Keys.EXPRESSION or predicted_key in table.obsm):
        _base.stored_frame(table, predicted_key, runs["predicted_key"])
    found = {
        "layer": layer if layer in table.layers else None,
        "predicted_key": predicted_key if predicted_key in table.obsm else None,
    }
    n_found = sum(key is not None for key in found.values())
    if n_found < 1 + both:
        layers = listed(_section.layer_names(table))
        raise OrderError(
            f"Expected {'both' if both else 'one'} of layer {layer!r} (found in `.layers`: {layers}) and "
            f"predictions {predicted_key!r} (found in `.obsm`: {listed(table.obsm)}). Run `{runs['layer']}` for "
            f"measured and `{runs['predicted_key']}` for predicted expression first."
        )
    for name, wanted in (("layer", layer), ("predicted_key", predicted_key)):
        if wanted is not None and found[name] is None:
            logger.info("%r not found, so its maps are left out; `%s` writes it", wanted, runs[name])
    return found["layer"], found["predicted_key"]


def _measured(table: AnnData, layer: str | None, gene: str, rows: np.ndarray) -> np.ndarray | None:
    name = _base.find_gene(gene, table.var_names)
    if layer is None or name is None:
        return None
    if not table.var_names.is_unique:
        raise DataError("Gene names occur twice in `.var_names`. Run `adata.var_names_make_unique()` first.")
    column = table.layers[layer][:, table.var_names.get_loc(name)]
    dense = column.toarray() if hasattr(column, "toarray") else np.asarray(column)
    return dense.ravel()[rows].astype(float)


def _predicted(table: AnnData, key: str | None, gene: str, rows: np.ndarray) -> np.ndarray | None:
    if key is None:
        return None
    frame = table.obsm[key]
    name = _base.find_gene(gene, frame.columns)
    return None if name is None else frame[name].to_numpy(dtype=float)[rows]


@dataclass(frozen=True)
class _Options:
    layer: str | None
    predicted_key: str | None
    residual: bool
    shared: bool
    percentiles: tuple[float, float]
    cmap: str

    def panels(self, table: AnnData, gene: str, rows: np.ndarray) -> list[Panel]:
        """Return the maps of one gene."""
        measured = _measured(table, self.layer, gene, rows)
        predicted = _predicted(table, self.predicted_key, gene, rows)
        if measured is None and predicted is None:
            known = list(table.var_names) if self.layer else list(table.obsm[self.predicted_key].columns)
            slots = [f"layer {self.layer!r}"] * bool(self.layer)
            slots += [f"`.obsm[{self.predicted_key!r}]`"] * bool(self.predicted_key)
            raise _base.missing_name(gene, known, where=" or ".join(slots))
        panels = []
        if self.layer is not None:
            name = "measured" if self.layer == Keys.LOGNORM else f"measured ({self.layer})"
            unit = _base.EXPRESSION_UNIT if self.layer in _COMPARABLE else self.layer
            panels.append(self._panel(f"{gene}, {name}", measured, predicted, label=unit, absent="not measured"))
        if self.predicted_key is not None:
            title = f"{gene}, predicted{_base.correlation(measured, predicted)}"
            panels.append(self._panel(title, predicted, measured, label=_base.EXPRESSION_UNIT, absent="not predicted"))
        if self.residual and measured is not None and predicted is not None:
            panels.append(self._residual(gene, measured - predicted))
        return panels

    def _panel(
        self, title: str, values: np.ndarray | None, other: np.ndarray | None, *, label: str, absent: str
    ) -> Panel:
        if values is None:
            return Panel(title, None, absent)
        pooled = [values, other] if self.shared and other is not None else [values]
        return Panel(title, values, label, self.cmap, _base.robust_limits(pooled, self.percentiles))

    def _residual(self, gene: str, values: np.ndarray) -> Panel:
        edge = max(abs(limit) for limit in _base.robust_limits([values], self.percentiles))
        return Panel(f"{gene}, residual", values, "measured − predicted", _RESIDUAL_CMAP, (-edge, edge))
