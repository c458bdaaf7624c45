"""What every plot shares: figures, saving, colours, text, and looking slots up."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib._pylab_helpers import Gcf
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from spatialdata import SpatialData

from sealst import _section
from sealst._core.genes.names import near_names
from sealst._core.scores.metrics import gene_pearson
from sealst._errors import DataError, MissingKeyError, OrderError
from sealst._files import complete_file
from sealst._section import Region
from sealst._validate import as_column, check_fraction, check_positive, listed, whole

P = TypeVar("P", bound=Any)

SAVE_DPI = 150
TITLE_SIZE = 9
SMALL_SIZE = 7.5
#: Okabe and Ito's colours, told apart by colour-blind readers; light ones last
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8C8C8C"
BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = COLOURS
FREE = ("#999933", "#44AA99", BLACK, "#AA4499", "#117733", "#DDCC77", "#661100", "#6699CC")
#: of groups at high and at low risk, unlike those of adapted and frozen
RISK_COLOURS = (ORANGE, "#44AA99")
_MORE = ("#332288", "#88CCEE", "#CC6677", GREY, "#DDAA33")

#: measured minus predicted, apart from blue to yellow of the values and from the pink of H&E
RESIDUAL_CMAP = "PuOr_r"
#: unit of the expression layers and of predictions
EXPRESSION_UNIT = "log1p CP10k"


def check_save(save: str | Path | None) -> None:
    """Raise before anything is drawn when a figure could not be saved under this name."""
    if save is None:
        return
    known = sorted(Figure().canvas.get_supported_filetypes())
    if Path(save).suffix.lstrip(".").lower() not in known:
        raise DataError(f"`save` must end in a picture format ({listed(known, 20)}), found {str(save)!r}.")


#: parts of the names of pyplot's backends that show every open figure in a notebook by themselves
_NOTEBOOKS = ("inline", "ipympl", "widget", "nbagg")


class ShownOnce(Figure):
    """A figure that a notebook shows once.

    pyplot shows the figures that are open when a cell ends, and the notebook what stands in the cell's last line, which
    may be one of them. Assigned to a figure as its class; all else is that of any figure.
    """

    #: the cell that `matplotlib.pyplot.show` was called in
    shown_in: int | None = None

    def _ipython_display_(self) -> None:
        is_open = any(manager.canvas.figure is self for manager in Gcf.get_all_fig_managers())
        shown = is_open or (self.shown_in is not None and self.shown_in == current_cell())
        if shown and in_notebook() and is_result():
            return
        # IPython then shows it as any other figure.
        raise NotImplementedError

    def __repr__(self) -> str:
        return super().__repr__().replace(type(self).__name__, Figure.__name__, 1)


def in_notebook() -> bool:
    """Whether pyplot's backend is one that shows open figures in a notebook."""
    return any(name in plt.get_backend().lower() for name in _NOTEBOOKS)


def is_result() -> bool:
    """Whether IPython shows what stands in a cell's last line, and not what pyplot or a call hands it."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "IPython.core.displayhook":
        frame = frame.f_back
    return frame is not None


def current_cell() -> int | None:
    """Number of the cell that IPython runs; None outside of it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return None if shell is None else int(shell.execution_count)


def finish(figure: Figure, ax: Axes | None, save: str | Path | None, show: bool | None) -> Figure | Axes:
    """Save and show a figure as asked; return it, or the Axes that were given to draw into."""
    for text in (figure if ax is None else ax).findobj(Text):
        # Names are shown as they are: a dollar sign in one begins no formula.
        text.set_parse_math(False)
        text.set_usetex(False)
    if save is not None:
        path = Path(save)
        path.parent.mkdir(parents=True, exist_ok=True)
        asked = plt.rcParams["savefig.dpi"]
        with complete_file(path) as part:
            figure.savefig(part, dpi=SAVE_DPI if asked == "figure" else asked, bbox_inches="tight", facecolor="white")
    if ax is None:
        figure.__class__ = ShownOnce
    if show:
        plt.show()
        if isinstance(figure, ShownOnce):
            figure.shown_in = current_cell()
    elif show is not None and ax is None:
        plt.close(figure)
    return figure if ax is None else ax


def figure_of(ax: Axes) -> Figure:
    """Figure that an Axes belongs to, also inside a subfigure."""
    figure = ax.get_figure(root=True)
    if not isinstance(figure, Figure):
        raise DataError("`ax` belongs to no figure; make it with `plt.subplots()`.")
    return figure


def axes_at(figure: Figure, x: float, y: float, *, size: tuple[float, float]) -> Axes:
    """Axes at inches from the figure's upper left corner; `size` is width and height in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x / width, 1 - (y + size[1]) / height, size[0] / width, size[1] / height))


def grid_axes(n: int, n_cols: int, *, size: tuple[float, float], below: float = 0.0) -> list[Axes]:
    """Axes of a new figure, row by row; `size` of each, and what is left below all of them, in inches."""
    n_rows = -(-n // whole("n_cols", n_cols, least=1))
    figure = plt.figure(figsize=(n_cols * size[0], n_rows * size[1] + below), layout="constrained")
    grid = figure.add_gridspec(n_rows, n_cols)
    return [figure.add_subplot(grid[divmod(i, n_cols)]) for i in range(n)]


def columns_of(n: int, wanted: int | None) -> int:
    """Panels in a row: up to three stand side by side, more form a shape near a square."""
    return min(wanted or (n if n <= 3 else min(5, int(np.ceil(np.sqrt(n))))), n)


def square_axes(n: int, n_cols: int, *, right: float = 0.0) -> list[Axes]:
    """Square panels in a new figure, with room for titles and labels; their place is final."""
    side = 3.4 if n <= 4 else 2.6
    left, top, gap, below = 0.6, 0.32, 0.15, 0.5
    n_rows = -(-n // whole("n_cols", n_cols, least=1))
    size = (n_cols * (left + side + gap) + right, n_rows * (top + side + below))
    figure = plt.figure(figsize=size)
    places = [divmod(i, n_cols) for i in range(n)]
    return [
        axes_at(figure, left + c * (left + side + gap), top + r * (top + side + below), size=(side, side))
        for r, c in places
    ]


def check_single(ax: Axes | None, n_panels: int, *, how: str) -> None:
    """Raise when one Axes is given for several panels; `how` is the option that leaves one of them."""
    if ax is not None and n_panels != 1:
        raise DataError(f"`ax` takes one panel, found {n_panels}. Leave `ax` out, or ask for one panel with {how}.")


def require_spatialdata(data: object) -> None:
    """Raise unless the H&E can be read."""
    if not isinstance(data, SpatialData):
        raise TypeError(
            f"Expected a SpatialData, which holds the H&E, found {type(data).__name__}. {_section.ADD_PICTURE} A table "
            'alone plots with `sc.pl.embedding(adata, basis="X_seal")` or `sq.pl.spatial_scatter(adata)`.'
        )


def table_with_region(sdata: SpatialData, table_key: str, region: str | None) -> tuple[AnnData, Region]:
    """Return the table of a map and the region that it shows."""
    require_spatialdata(sdata)
    table = _section.get_table(sdata, table_key)
    return table, one_region(table, region)


def one_region(table: AnnData, region: str | None) -> Region:
    """Return the region that a map shows."""
    found = _section.regions_of(table, region)
    if len(found) > 1:
        raise DataError(
            f"A map shows one region, the table has {len(found)}: {listed(r.name for r in found)}. "
            "Name one with `region=`."
        )
    return found[0]


def stored_column(table: AnnData, key: str, call: str) -> np.ndarray:
    """Return a numeric ``.obs`` column that an earlier call wrote."""
    if key not in table.obs:
        raise OrderError(f"{key!r} not found in `.obs`; found: {listed(table.obs.columns, 20)}. Run `{call}` first.")
    return numeric(table.obs[key], where=f"`.obs[{key!r}]`")


def gene_column(table: AnnData, gene: str, layer: str | None) -> np.ndarray:
    """Values (spots,) of a gene in a layer, or in ``.X``."""
    if not table.var_names.is_unique:
        raise DataError("Gene names occur twice in `.var_names`. Run `adata.var_names_make_unique()` first.")
    values = table.X if layer is None else table.layers[layer]
    column = values[:, table.var_names.get_loc(gene)]
    return np.asarray(column.toarray() if hasattr(column, "toarray") else column, dtype=float).ravel()


def numeric(values: pd.Series, *, where: str) -> np.ndarray:
    """Values as float, or an error naming what they are."""
    if not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)):
        raise DataError(f"{where} must hold numbers, found {values.dtype}.")
    return values.to_numpy(dtype=float, na_value=np.nan)


def as_list(names: str | Iterable[Any], *, name: str) -> list[Any]:
    """One name or several, as a list."""
    found = [names] if isinstance(names, str) else list(names)
    if not found:
        raise DataError(f"`{name}` names nothing to show.")
    return found


def with_titles(groups: list[list[P]], title: str | Sequence[str] | None) -> list[list[P]]:
    """Groups of panels (dataclasses with a `title`) under the titles asked for, one per panel."""
    if title is None:
        return groups
    titles = iter(list_of_titles(title, sum(len(group) for group in groups), what="panel"))
    return [[replace(panel, title=next(titles)) for panel in group] for group in groups]


def list_of_titles(title: str | Sequence[str], n: int, *, what: str) -> list[str]:
    """`title` as a list of `n` texts: one text alone is the title of the only panel."""
    titles = [title] if isinstance(title, str) else [str(one) for one in title]
    if len(titles) != n:
        found = f"{title!r}" if isinstance(title, str) else f"{len(titles)}"
        raise DataError(f"`title` must hold one text per {what} ({n}), found {found}. Pass a list of {n} texts.")
    return titles


def find_gene(gene: str, names: pd.Index) -> str | None:
    """Name of a gene in an index: as it is written, else whatever the case, else as a column that was stored."""
    if gene in names:
        return gene
    for wanted in (gene.upper(), as_column(gene.upper())):
        if len(hits := names[names.str.upper() == wanted]):
            return str(hits[0])
    return None


def missing_name(name: str, known: Collection[str], *, where: str) -> MissingKeyError:
    """Error for a gene or pathway that is nowhere, with the closest names."""
    close = near_names([name], known)
    hint = f"closest: {listed(close)}" if close else f"found: {listed(known, 5)}"
    return MissingKeyError(f"{name!r} not found in {where}; {hint}.")


def robust_limits(arrays: Sequence[np.ndarray], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Colour limits: percentiles of the finite values, never empty; of a constant, from 0 to it."""
    finite = np.concatenate([a[np.isfinite(a)] for a in arrays])
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, percentiles))
    if high <= low:
        # A gene seen in very few spots: percentiles hide it, the range does not.
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (min(low, 0.0), max(low, 0.0) or float(low == 0))


def check_map_options(percentiles: tuple[float, float], image_alpha: float, spot_size: float) -> None:
    """Raise when options that maps share make no sense."""
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise DataError(f"`percentiles` must be two rising numbers from 0 to 100, found {percentiles!r}.")
    check_fraction("image_alpha", image_alpha)
    check_positive("spot_size", spot_size)


def wrap(text: str, inches: float, *, size: float) -> str:
    """Break text into lines, after spaces and underscores, so that each fits a width at a font size."""
    lines = [""]
    # "r = 0.54" stays together.
    for piece in re.findall(r"(?:[^ _]| (?==)|(?<==) )+[ _]?|[ _]", text):
        if lines[-1] and text_width((lines[-1] + piece).rstrip(), size) > inches:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Width of one line of text in inches."""
    # A dollar sign is no formula here.
    return (
        float(TextPath((0, 0), text.replace("$", r"\$"), size=size).get_extents().width) / 72 if text.strip() else 0.0
    )


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long name: sections differ at its start, spots at its end."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[-(width - 1 - left) :]}"


def number(value: float, form: str) -> str:
    """Write a number with a true minus sign."""
    return f"{value:{form}}".replace("-", "−")


def correlation(measured: np.ndarray | None, predicted: np.ndarray | None) -> str:
    """How well two maps agree, as it stands in a title."""
    if measured is None or predicted is None:
        return ""
    both = np.isfinite(measured) & np.isfinite(predicted)
    r = float(gene_pearson(predicted[both, None], measured[both, None])[0]) if both.sum() > 1 else np.nan
    return f", r = {number(r, '.2f')}" if np.isfinite(r) else ", r undefined"


def metric_label(metric: str) -> str:
    """Name of a metric as it stands in a figure."""
    direction, arrow, name = metric.rpartition("→image ")
    if arrow:
        label = metric_label(name)
        return f"{direction[:1].upper()}{direction[1:]} → image, {label[:1].lower()}{label[1:]}"
    text = re.sub("^(R|recall)@", "recall at ", metric).replace("_", " ")
    return _METRICS.get(metric, text[:1].upper() + text[1:])


_METRICS = {
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "r2": "R²",
    "median_rank": "Median rank (low is good)",
    "spot_pearson": "Pearson r within spots",
    "spot_spearman": "Spearman ρ within spots",
    "spot_r2": "R² within spots",
    "section_pearson": "Pearson r between sections",
    "section_spearman": "Spearman ρ between sections",
    "section_r2": "R² between sections",
    "moran_agreement": "Agreement of Moran's I",
    "residual_moran": "Moran's I of residuals",
    "pearson_difference": "Gain in Pearson r over frozen",
    "lost_genes": "Share of genes worse than frozen",
    "calibration_slope": "Calibration slope",
    "coverage": "Share of spots in 90 % intervals",
    "width": "Width of 90 % intervals",
}


def palette(n: int) -> list[str]:
    """Colours for some categories: those that colour-blind readers tell apart first."""
    # Pink comes late: the tissue itself is pink.
    first = (BLUE, ORANGE, GREEN, "#882255", RED, "#332288", SKY, "#999933", PINK)
    return list(dict.fromkeys((*first, *FREE, *_MORE)))[:n]


def plain(ax: Axes) -> None:
    """Axes without grid and without the upper and right edge."""
    ax.grid(visible=False)
    ax.tick_params(labelsize=SMALL_SIZE)
    ax.spines[["top", "right"]].set_visible(False)
