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

_MAPS = _MEASURED, _PREDICTED, _RESIDUAL = ("measured", "predicted", "residual")
_SHARED, _OWN = "shared", "own"
#: share of both ranges of colours together that they must have in common, so that one scale shows the pattern of both
_OVERLAP = 1 / 3
#: layers in the unit of predictions
_COMPARABLE = (Keys.LOGNORM, Keys.CONTEXT)


@documented
def expression(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    layer: str | None = Keys.LOGNORM,
    predicted_key: str = Keys.EXPRESSION,
    maps: str | Sequence[str] = _MAPS[:2],
    scale: Literal["auto", "shared", "own"] = "auto",
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

    The title of the predicted map gives Pearson's r between both, over the spots that have both, and what the gene
    reached on held-out patients where the model knows (see `sealst.models.Reliability`). Spots are drawn at
    their true size; spots without a prediction stay hollow.

    Parameters
    ----------
    sdata
        Section with measured (`pp.normalize`) or predicted (`tl.predict`) expression.
    genes
        Gene or genes to show; upper and lower case are told apart only where both exist.
    layer
        Layer with the measured expression; None is ``.X``.
    predicted_key
        ``.obsm`` slot that `tl.predict` wrote.
    maps
        Which maps to draw, in this order: ``"measured"``, ``"predicted"``, ``"residual"`` (measured − predicted,
        centred on zero). Of measured and predicted, one that is not there is left out.
    scale
        ``"shared"``: one colour scale per gene for both maps. Both are in log1p CP10k, so equal colours mean equal
        expression, and a prediction that is too flat looks flat. ``"own"``: each map gets its own limits, which shows
        where a prediction is high or low although its range is narrower, as it always is for a regression on noisy
        counts; colours can then not be compared between maps. ``"auto"``: shared where the ranges of both have at
        least a third of their union in common, else own, as for patients whose level the model cannot know. The
        colour bars say which it is.
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
        Axes to draw into, for a single map (one gene and ``maps="predicted"``).
    %(figure)s

    Raises
    ------
    OrderError
        When neither measured nor predicted expression exists, or the residual lacks one of them.
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
    >>> figure = sl.pl.expression(sdata, gene, maps="measured")
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_choice("scale", scale, ["auto", _SHARED, _OWN])
    table, one = _base.table_with_region(sdata, table_key, region)
    genes = _base.as_list(genes, name="genes")
    maps = _base.as_list(maps, name="maps")
    for kind in maps:
        check_choice("maps", kind, _MAPS)
    found = _find_sources(table, layer, predicted_key, maps)
    comparable = layer in _COMPARABLE
    if len(found) == 2 and (scale == _SHARED or _RESIDUAL in maps) and not comparable:
        raise DataError(
            f"Measured values in {_named(layer)} are not in the unit of predictions ({_base.EXPRESSION_UNIT}), so both "
            f"cannot share colours or be subtracted. Use `layer={Keys.LOGNORM!r}`, or `scale='own'` alone."
        )
    options = _Options(layer, predicted_key, found, maps, scale if comparable else _OWN, percentiles, cmap)
    groups = _base.with_titles([options.panels(table, gene, one.rows) for gene in genes], title)
    n_maps = sum(len(group) for group in groups)
    _base.check_single(ax, n_maps, how='one gene and `maps="measured"` or `maps="predicted"`')

    tissue = read_tissue(sdata, table, one, image_key=image_key, coordinate_system=coordinate_system, n_maps=n_maps)
    style = MapStyle(image_alpha, spot_size)
    width = max(len(group) for group in groups)
    usual = 4 if width == 1 else 1 if len(groups) <= 3 else 2 if len(groups) <= 12 or width > 2 else 3
    per_row = min(n_cols or usual, len(groups))
    return show_maps(tissue, groups, per_row=per_row, style=style, ax=ax, save=save, show=show)


def _find_sources(table: AnnData, layer: str | None, predicted_key: str, maps: Sequence[str]) -> list[str]:
    """Which of measured and predicted values exist; a default slot may be absent, one that the user named may not."""
    runs = {_MEASURED: "sl.pp.normalize(sdata)", _PREDICTED: "sl.tl.predict(sdata, model)"}
    both = _RESIDUAL in maps
    wanted = [kind for kind in runs if both or kind in maps]
    if _MEASURED in wanted and layer not in (None, Keys.LOGNORM):
        _section.lognorm(table, str(layer))
    if _PREDICTED in wanted and (predicted_key != Keys.EXPRESSION or predicted_key in table.obsm):
        _section.stored_frame(table, predicted_key, runs[_PREDICTED])
    at_hand = {_MEASURED: layer is None or layer in table.layers, _PREDICTED: predicted_key in table.obsm}
    found = [kind for kind in wanted if at_hand[kind]]
    if len(found) < 1 + both:
        layers = listed(_section.layer_names(table))
        raise OrderError(
            f"Expected {'both' if both else 'one'} of layer {layer!r} (found in `.layers`: {layers}) and "
            f"predictions {predicted_key!r} (found in `.obsm`: {listed(table.obsm)}). Run `{runs[_MEASURED]}` for "
            f"measured and `{runs[_PREDICTED]}` for predicted expression first."
        )
    for kind in wanted:
        if kind not in found:
            slot = layer if kind == _MEASURED else predicted_key
            logger.info("%r not found, so its maps are left out; `%s` writes it", slot, runs[kind])
    return found


def _held_out(table: AnnData, key: str, column: str | None) -> str:
    """What a gene reached on patients that the model had not seen, as it stands in a title."""
    known = _section.reliability_of(table, key)
    if known is None or column is None or not np.isfinite(r := float(known.loc[column, "pearson"])):
        return ""
    return f", held-out r = {_base.number(r, '.2f')}"


def _named(layer: str | None) -> str:
    return "`.X`" if layer is None else f"layer {layer!r}"


@dataclass(frozen=True)
class _Options:
    layer: str | None
    predicted_key: str
    #: which of measured and predicted values are there and needed
    found: Sequence[str]
    maps: Sequence[str]
    #: ``"auto"``, ``"shared"`` or ``"own"``
    scale: str
    percentiles: tuple[float, float]
    cmap: str

    def panels(self, table: AnnData, gene: str, rows: np.ndarray) -> list[Panel]:
        """Return the maps of one gene."""
        measured = predicted = own = column = None
        if _MEASURED in self.found and (own := _base.find_gene(gene, table.var_names)) is not None:
            measured = _base.gene_column(table, own, self.layer)[rows]
        if _PREDICTED in self.found:
            frame = table.obsm[self.predicted_key]
            column = _base.find_gene(gene, frame.columns)
            predicted = None if column is None else frame[column].to_numpy(dtype=float)[rows]
        if measured is None and predicted is None:
            slots = {_MEASURED: _named(self.layer), _PREDICTED: f"`.obsm[{self.predicted_key!r}]`"}
            known = table.var_names if _MEASURED in self.found else table.obsm[self.predicted_key].columns
            raise _base.missing_name(gene, list(known), where=" or ".join(slots[kind] for kind in self.found))
        # As it is stored, whatever the case it was asked in; a column on disk may not be called as the gene is.
        stored = own or _section.predicted_genes(table, self.predicted_key)[frame.columns.get_loc(column)]
        limits, said = self._limits(measured, predicted)
        drawn: dict[str, Panel] = {}
        if _MEASURED in self.found:
            layer = "X" if self.layer is None else self.layer
            name = _MEASURED if layer == Keys.LOGNORM else f"{_MEASURED} ({layer})"
            unit = (_base.EXPRESSION_UNIT if layer in _COMPARABLE else layer) + said
            drawn[_MEASURED] = self._panel(f"{stored}, {name}", measured, limits[0], label=unit, absent="not measured")
        if _PREDICTED in self.found:
            title, unit = f"{stored}, predicted{_base.correlation(measured, predicted)}", _base.EXPRESSION_UNIT + said
            title += _held_out(table, self.predicted_key, column)
            drawn[_PREDICTED] = self._panel(title, predicted, limits[1], label=unit, absent="not predicted")
        if measured is not None and predicted is not None:
            left = measured - predicted
            edge = max(abs(limit) for limit in _base.robust_limits([left], self.percentiles))
            label = "measured − predicted"
            drawn[_RESIDUAL] = Panel(f"{stored}, residual", left, label, _base.RESIDUAL_CMAP, (-edge, edge))
        return [drawn[kind] for kind in self.maps if kind in drawn]

    def _limits(
        self, measured: np.ndarray | None, predicted: np.ndarray | None
    ) -> tuple[list[tuple[float, float]], str]:
        """Limits of the colours of measured and predicted values, and what the colour bars say of them."""
        values = [np.zeros(0) if v is None else v for v in (measured, predicted)]
        own = [_base.robust_limits([v], self.percentiles) for v in values]
        if measured is None or predicted is None:
            return own, ""
        both = min(high for _, high in own) - max(low for low, _ in own)
        all_of_them = max(high for _, high in own) - min(low for low, _ in own)
        if self.scale == _SHARED or (self.scale == "auto" and both >= _OVERLAP * all_of_them):
            return [_base.robust_limits(values, self.percentiles)] * 2, ", one scale for both"
        return own, ", own scale"

    def _panel(
        self, title: str, values: np.ndarray | None, limits: tuple[float, float], *, label: str, absent: str
    ) -> Panel:
        return Panel(title, None, absent) if values is None else Panel(title, values, label, self.cmap, limits)
