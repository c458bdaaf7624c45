"""Where on the tissue a prediction is right and where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._core.space.lattice import pitch
from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError
from sealst._evaluation import Evaluation
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import check_choice, listed
from sealst.pl import _base
from sealst.pl._evaluation.methods import ADAPTED, dense, pick, require_spots
from sealst.pl._maps.tissue import MapStyle, Panel, Tissue, read_tissue, show_maps

_MAPS = ("measured", "predicted", "residual")
#: radius of a spot in pitches where its true size is unknown: neighbours nearly touch; outline that shows pale spots
_RADIUS, _EDGE = 0.46, "#9A9A9A"


@documented
def residual_maps(
    evaluation: Evaluation,
    genes: str | Sequence[str],
    *,
    section: str | None = None,
    method: str = ADAPTED,
    scale: Literal["z", "log1p"] = "z",
    sdata: SpatialData | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    image_alpha: float = 0.6,
    spot_size: float = 1.0,
    n_cols: int | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    maps: str | Sequence[str] = _MAPS,
    title: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Map measured, predicted and residual expression of held-out spots, three maps per gene.

    The residual is measured minus predicted: orange where the tissue expresses more than was predicted, purple where
    less. With ``scale="z"`` both are z-scored over the section's spots before, so that it shows where the *pattern* is
    wrong; predictions vary less than single spots, which would otherwise stand in every residual. With
    ``scale="log1p"`` it shows where the *amount* is wrong.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returns, with held-out spots in ``.spots``.
    genes
        Gene or genes to show, in any case.
    section
        Section to show; needed where there are several.
    method
        Whose predictions.
    scale
        ``"z"``: standard deviations over the section's spots; ``"log1p"``: log1p of counts per 10,000.
    sdata
        The section, to draw on its H&E; spots are joined by their names. By default on white.
    percentiles
        Percentiles of measured and predicted values at which colours saturate; those of the residual are symmetric.
    cmap
        Colour map of measured and predicted expression.
    %(image_alpha)s
    spot_size
        Factor on the spots' diameter: the true one on H&E, otherwise one at which neighbours nearly touch.
    n_cols
        Genes in a row.
    %(coordinate_system)s
    %(table_key)s
    maps
        Which of ``"measured"``, ``"predicted"`` and ``"residual"`` to show of every gene, in this order.
    title
        One title per map; by default the gene and what is shown of it.
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a gene, a method or a section is absent.
    DataError
        When no spots were kept, several sections are there and none is named, or `sdata` holds other spots.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.residual_maps(evaluation, ["EPCAM", "VIM"], section="B4", sdata=b4)  # doctest: +SKIP
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_choice("scale", scale, ["z", "log1p"])
    known = list(require_spots(evaluation).spots)
    if section is None and len(known) > 1:
        raise DataError(
            f"Maps show one section, the Evaluation has {len(known)}: {listed(known)}. Name one with `section=`."
        )
    name = pick("section", known if section is None else [section], known)[0]
    spots = evaluation.spots[name]
    pick("method", [method], _section.layer_names(spots))
    genes, maps = _base.as_list(genes, name="genes"), _base.as_list(maps, name="maps")
    for kind in maps:
        check_choice("maps", kind, _MAPS)
    n_maps = len(maps) * len(genes)
    _base.check_single(ax, n_maps, how='one gene and `maps="residual"`')
    options = _Options(method, scale, percentiles, cmap)
    if sdata is None:
        # Spots at their place in µm, without a picture.
        if "spatial" not in spots.obsm:
            raise MissingKeyError(
                f"'spatial' not found in `.obsm` of the spots of {name!r}; found: {listed(spots.obsm)}."
            )
        xy = np.asarray(spots.obsm["spatial"], dtype=float)[:, :2]
        step = pitch(xy)
        (x0, y0), (x1, y1) = xy.min(0) - step, xy.max(0) + step
        picture = np.full((2, 2, 3), 255, dtype=np.uint8)
        region = _section.Region(name=name, section=name, rows=np.arange(len(xy)), ids=spots.obs_names.to_numpy())
        rows, radii = np.arange(spots.n_obs), np.full(len(xy), _RADIUS * step)
        tissue = Tissue(region, picture, (x0, x1, y1, y0), 1.0, xy, radii, None)
        style = MapStyle(1.0, spot_size, edge=_EDGE)
    else:
        # H&E with the spots that both hold.
        _base.require_spatialdata(sdata)
        table = _section.get_table(sdata, table_key)
        named = [r for r in _section.sections_of(table) if name in (r.section, r.name)]
        region = named[0] if named else _base.one_region(table, None)
        rows = spots.obs_names.get_indexer(table.obs_names[region.rows])
        both = rows >= 0
        if not both.any():
            raise DataError(
                f"`sdata` holds none of the spots of section {name!r}: they are called {listed(spots.obs_names, 3)}, "
                f"in `sdata` {listed(table.obs_names[region.rows], 3)}. Pass the section that was evaluated."
            )
        if both.sum() < spots.n_obs:
            logger.info("%d of %d spots of %s are in `sdata`; the others are left out", both.sum(), spots.n_obs, name)
        tissue = read_tissue(sdata, table, region, coordinate_system=coordinate_system, n_maps=n_maps)
        circles = None if tissue.radii is None else tissue.radii[both]
        outlines = None if tissue.outlines is None else [o for o, k in zip(tissue.outlines, both, strict=True) if k]
        rows = rows[both]
        tissue = replace(tissue, centres=tissue.centres[both], radii=circles, outlines=outlines)
        style = MapStyle(image_alpha, spot_size, edge=_EDGE)
    found = [options.panels(spots, gene, rows) for gene in genes]
    groups = _base.with_titles([[drawn[kind] for kind in maps] for drawn in found], title)
    per_row = min(n_cols or (1 if len(genes) <= 3 else 2), len(genes))
    return show_maps(tissue, groups, per_row=per_row, style=style, ax=ax, save=save, show=show)


@dataclass(frozen=True)
class _Options:
    method: str
    scale: str
    percentiles: tuple[float, float]
    cmap: str

    def panels(self, spots: AnnData, gene: str, rows: np.ndarray) -> dict[str, Panel]:
        """Return measured, predicted and residual; what does not vary has no z-score and stays empty."""
        name = _base.find_gene(gene, spots.var_names)
        if name is None:
            raise _base.missing_name(gene, list(spots.var_names), where="the evaluated genes")
        column = int(spots.var_names.get_indexer([name])[0])
        raw = [dense(m[:, column]).ravel() for m in (spots.X, spots.layers[self.method])]
        measured, predicted = (self._scaled(values) for values in raw)
        unit = "z-score" if self.scale == "z" else _base.EXPRESSION_UNIT
        limits = _base.robust_limits([v for v in (measured, predicted) if v is not None], self.percentiles)
        titles = f"{name}, measured", f"{name}, {self.method}{_base.correlation(*raw)}"
        shown = [
            Panel(title, None, "does not vary") if v is None else Panel(title, v[rows], unit, self.cmap, limits)
            for title, v in zip(titles, (measured, predicted), strict=True)
        ]
        if measured is None or predicted is None:
            return dict(zip(_MAPS, [*shown, Panel(f"{name}, residual", None, "undefined")], strict=True))
        residual = measured - predicted
        edge = max(abs(limit) for limit in _base.robust_limits([residual], self.percentiles))
        label = f"measured − predicted ({unit})"
        shown.append(Panel(f"{name}, residual", residual[rows], label, _base.RESIDUAL_CMAP, (-edge, edge)))
        return dict(zip(_MAPS, shown, strict=True))

    def _scaled(self, values: np.ndarray) -> np.ndarray | None:
        if self.scale == "log1p":
            return values
        spread = np.nanstd(values)
        # Values that differ by rounding only do not vary.
        return (values - np.nanmean(values)) / spread if spread > 1e-6 * max(1.0, np.nanmax(np.abs(values))) else None
