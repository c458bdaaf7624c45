"""How well predicted pathway scores agree with measured ones, pathway by pathway."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError
from sealst._evaluation import Evaluation
from sealst._validate import check_choice, listed
from sealst.pl import _base

_METRICS = ("pearson", "spearman")
#: diverging, told apart by colour-blind readers; correlations always span -1 to 1
_CMAP, _MISSING = "RdBu_r", "#D9D9D9"
#: inches: height of a row, least and most width of a column, and space between parts
_ROW_IN, _NARROW_IN, _WIDE_IN, _GAP_IN = 0.2, 0.42, 1.1, 0.12
_LONGEST_NAME = 48


@documented
def pathway_agreement(
    evaluation: Evaluation | pd.DataFrame,
    *,
    metric: str = "pearson",
    pathways: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Heat map of the correlation of predicted with measured pathway scores, one column per section or method.

    Methods stand side by side as blocks of sections; with one section, as columns of one block. Pathways are ordered by
    their mean over all cells, best first. Rows of one cell (folds, seeds) are averaged. The colours always span -1 to
    1, so that figures compare; blue is below 0, red above, grey not measured.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returned with ``net=``, or tidy results as in its ``.pathways``: columns ``section`` (``""``
        for all sections together), ``method``, ``pathway`` and the metric.
    metric
        ``"pearson"`` or ``"spearman"``.
    pathways
        Pathways to show, in this order; by default all.
    %(shown.methods)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a column, a pathway or a method is absent.
    DataError
        When the table is empty, holds no finite value, or values outside -1 to 1.

    Examples
    --------
    >>> import pandas as pd, sealst as sl
    >>> table = pd.DataFrame({
    ...     "section": ["A1", "B4"] * 2, "method": "seal head", "pathway": ["Hypoxia"] * 2 + ["TGFb"] * 2,
    ...     "pearson": [0.6, 0.5, 0.1, -0.2],
    ... })
    >>> figure = sl.pl.pathway_agreement(table)
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['Hypoxia', 'TGFb']
    """
    _base.check_save(save)
    check_choice("metric", metric, _METRICS)
    table = evaluation.pathways if isinstance(evaluation, Evaluation) else evaluation
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"Expected a DataFrame with one row per pathway and section, found {type(table).__name__}.")
    if missing := [column for column in ("section", "method", "pathway", metric) if column not in table]:
        raise MissingKeyError(
            f"Column(s) {listed(missing)} not found in the table; found: {listed(table.columns, 20)}."
        )
    if table.empty:
        raise DataError("The table of pathway correlations has no rows.")
    values = _base.numeric(table[metric], where=f"Column {metric!r}")
    if not np.isfinite(values).any():
        raise DataError(f"Column {metric!r} holds no finite value.")
    if (np.abs(values[np.isfinite(values)]) > 1 + 1e-9).any():
        raise DataError(f"Column {metric!r} must hold correlations from -1 to 1, found up to {np.nanmax(values):.3g}.")
    blocks = _blocks(table, metric, pathways, methods)
    _base.check_single(ax, len(blocks), how="`methods=`")
    if ax is not None:
        image = _draw(ax, blocks[0], first=True, inches=ax.get_window_extent().width / _base.figure_of(ax).dpi)
        _base.figure_of(ax).colorbar(image, ax=ax, label=_base.metric_label(metric), fraction=0.05)
        return _base.finish(_base.figure_of(ax), ax, save, show)
    n_rows, n_columns = blocks[0][1].shape
    widest = max(_base.text_width(_base.shorten(str(c), _LONGEST_NAME), _base.SMALL_SIZE) for c in blocks[0][1])
    column = min(max(_NARROW_IN, widest + 0.1), _WIDE_IN)
    names = [_base.shorten(str(p), _LONGEST_NAME) for p in blocks[0][1].index]
    x = max(_base.text_width(name, _base.SMALL_SIZE) for name in names) + 0.25
    widths = [max(column * n_columns, _base.text_width(title, _base.TITLE_SIZE)) for title, _ in blocks]
    top, bottom = 0.35, (widest if widest > column else 0.15) + 0.25
    height = _ROW_IN * n_rows
    figure = plt.figure(figsize=(x + sum(widths) + len(blocks) * _GAP_IN + 0.75, top + max(height, 0.9) + bottom))
    for i, (block, width) in enumerate(zip(blocks, widths, strict=True)):
        one = _base.axes_at(figure, x, top, size=(width, height))
        image = _draw(one, block, first=i == 0, inches=width)
        x += width + _GAP_IN
    bar = figure.colorbar(image, cax=_base.axes_at(figure, x, top, size=(0.12, min(max(height, 0.9), 2.4))))
    bar.set_label(_base.metric_label(metric), fontsize=_base.SMALL_SIZE)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(labelsize=_base.SMALL_SIZE)
    bar.outline.set_visible(False)
    return _base.finish(figure, ax, save, show)


def _blocks(
    table: pd.DataFrame, metric: str, pathways: str | Sequence[str] | None, methods: str | Sequence[str] | None
) -> list[tuple[str, pd.DataFrame]]:
    """Title and values (pathways, columns) of every block; all have the same rows."""
    shown = _select(table, "method", methods)
    shown = _select(shown, "pathway", pathways)
    columns = ["section", "method"]
    wide = shown.pivot_table(index="pathway", columns=columns, values=metric, sort=False, dropna=False, observed=True)
    names = [str(p) for p in wide.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    order = names if pathways is None else _base.as_list(pathways, name="pathways")
    found = [str(m) for m in pd.unique(shown["method"])]
    kinds = found if methods is None else _base.as_list(methods, name="methods")
    sections = list(pd.unique(shown["section"]))
    cells = wide.reindex(order)
    if len(sections) == 1:
        title = _section_label(sections[0])
        return [(title, cells.xs(sections[0], axis=1, level="section").reindex(columns=kinds))]
    labels = [_section_label(s) for s in sections]
    blocks = [(m, cells.xs(m, axis=1, level="method").reindex(columns=sections)) for m in kinds]
    return [(title, frame.set_axis(labels, axis=1)) for title, frame in blocks]


def _select(table: pd.DataFrame, column: str, names: str | Sequence[str] | None) -> pd.DataFrame:
    if names is None:
        return table
    wanted, known = _base.as_list(names, name=f"{column}s"), [str(v) for v in pd.unique(table[column])]
    for name in wanted:
        if name not in known:
            raise _base.missing_name(name, known, where=f"column {column!r}")
    return table[table[column].isin(wanted)]


def _section_label(section: object) -> str:
    return str(section) or "all sections"


def _draw(ax: Axes, block: tuple[str, pd.DataFrame], *, first: bool, inches: float) -> AxesImage:
    title, frame = block
    values = np.ma.masked_invalid(frame.to_numpy(dtype=float))
    cmap = plt.get_cmap(_CMAP).with_extremes(bad=_MISSING)
    image = ax.imshow(values, cmap=cmap, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    ax.grid(visible=False)
    ax.set_title(title, fontsize=_base.TITLE_SIZE)
    columns = [_base.shorten(str(c), _LONGEST_NAME) for c in frame]
    cell = inches / max(len(columns), 1)
    turned = max(_base.text_width(c, _base.SMALL_SIZE) for c in columns) > cell
    ax.set_xticks(range(len(columns)), columns, rotation=90 if turned else 0)
    names = [_base.shorten(str(p), _LONGEST_NAME) for p in frame.index]
    ax.set_yticks(range(len(names)), names if first else [])
    ax.tick_params(labelsize=_base.SMALL_SIZE, length=0)
    # White lines part the cells.
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    height = ax.get_window_extent().height / _base.figure_of(ax).dpi
    if cell >= 0.9 * _NARROW_IN and height >= 0.8 * _ROW_IN * len(names):
        for (row, column), value in np.ndenumerate(values.filled(np.nan)):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else "black"
                # No "−0.00".
                text = _base.number(round(value, 2) + 0.0, ".2f")
                ax.text(column, row, text, ha="center", va="center", fontsize=_base.SMALL_SIZE - 1, color=colour)
    return image
