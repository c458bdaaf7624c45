"""Methods side by side, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealst._errors import DataError, MissingKeyError
from sealst._validate import listed
from sealst.pl import _base

_NEEDED = ("section", "method", "genes", "metric", "value")
_BAR_IN, _HEIGHT_IN, _WIDEST_IN = 0.16, 3.0, 15.0


def evaluation(
    table: pd.DataFrame,
    *,
    metrics: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Compare methods as grouped bars, one group per section and one panel per metric and gene set.

    Parameters
    ----------
    table
        Tidy results, as `tl.evaluate` returns them: columns ``section``, ``method``, ``genes`` (name of the gene set),
        ``metric`` and ``value``; with ``low`` and ``high`` (ends of an interval) bars carry error bars, with ``chance``
        a dotted line shows what guessing reaches.
    metrics
        Metrics to show, in this order; by default all.
    ax
        Axes to draw into, for a single metric and gene set.
    save
        File to write, at 150 dpi; its ending picks the format (``.png``, ``.pdf``, …).
    show
        True calls `matplotlib.pyplot.show`; None leaves it to the session (a notebook shows open figures when a cell
        ends); False closes the figure in pyplot, so that only what is returned shows it.

    Returns
    -------
    The Figure, or `ax` where it was given.

    Raises
    ------
    MissingKeyError
        When a column or a metric is absent.
    DataError
        When the table is empty, or a bar has several values.

    Examples
    --------
    >>> import pandas as pd, sealst as sl
    >>> table = pd.DataFrame({
    ...     "section": ["B4", "B4"], "method": ["mean", "seal head"], "genes": "hvg50", "metric": "pearson",
    ...     "value": [0.0, 0.3], "low": [0.0, 0.25], "high": [0.0, 0.35],
    ... })
    >>> len(sl.pl.evaluation(table).axes)
    1
    """
    _base.check_save(save)
    _check_table(table)
    panels = _panels(table, metrics)
    _base.check_single(ax, len(panels))
    colours = _colours([str(m) for m in pd.unique(table["method"])])
    if ax is not None:
        _draw(ax, panels[0], colours)
        ax.legend(fontsize=_base.SMALL_SIZE, frameon=False)
        _base.finish(_base.figure_of(ax), save, show, own=False)
        return ax

    n_bars = max(rows["section"].nunique() * (rows["method"].nunique() + 1.2) for rows in panels)
    width = min(max(n_bars * _BAR_IN + 1.0, 3.2), _WIDEST_IN)
    n_columns = max(1, min(len(panels), int(_WIDEST_IN // width)))
    n_rows = -(-len(panels) // n_columns)
    figure = plt.figure(figsize=(n_columns * width, n_rows * _HEIGHT_IN + 0.4), layout="constrained")
    grid = figure.add_gridspec(n_rows, n_columns)
    for i, rows in enumerate(panels):
        _draw(figure.add_subplot(grid[i // n_columns, i % n_columns]), rows, colours)
    _add_legend(figure, n_columns * width)
    _base.finish(figure, save, show)
    return figure


def _add_legend(figure: Figure, width: float) -> None:
    """One legend below all panels, which need not hold the same methods."""
    entries = {text: h for ax in figure.axes for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    entries = {text: entries[text] for text in sorted(entries, key=lambda text: text == "chance")}
    longest = max(_base.text_width(text, _base.SMALL_SIZE) for text in entries)
    # Half an inch holds the key and the space around it.
    columns = max(1, min(len(entries), int(width / (longest + 0.5))))
    style: dict[str, Any] = {"fontsize": _base.SMALL_SIZE, "frameon": False, "ncols": columns}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", **style)


def _check_table(table: pd.DataFrame) -> None:
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"Expected a DataFrame, as `sl.tl.evaluate(...)` returns it, found {type(table).__name__}.")
    if missing := [column for column in _NEEDED if column not in table]:
        raise MissingKeyError(
            f"Column(s) {listed(missing)} not found in the table; found: {listed(table.columns, 20)}. "
            "Pass what `sl.tl.evaluate(...)` returns."
        )
    if table.empty:
        raise DataError("The table of results has no rows.")
    repeated = table.duplicated(["section", "method", "genes", "metric"])
    if repeated.any():
        first = table[repeated].iloc[0]
        raise DataError(
            f"{int(repeated.sum())} bars have several values (e.g. section {first['section']!r}, method "
            f"{first['method']!r}, genes {first['genes']!r}, metric {first['metric']!r}). Average them first."
        )


def _panels(table: pd.DataFrame, metrics: str | Sequence[str] | None) -> list[pd.DataFrame]:
    known = [str(m) for m in pd.unique(table["metric"])]
    wanted = known if metrics is None else _base.as_list(metrics, name="metrics")
    if unknown := [m for m in wanted if m not in known]:
        raise MissingKeyError(f"Metric(s) {listed(unknown)} not in the table; found: {listed(known, 20)}.")
    chosen = [table[table["metric"] == metric] for metric in wanted]
    return [rows for part in chosen for _, rows in part.groupby("genes", sort=False, observed=True, dropna=False)]


def _colours(methods: list[str]) -> dict[str, str]:
    # The mean baseline is the floor, not a contender: grey.
    rest = [m for m in methods if m != "mean"]
    colours = dict(zip(rest, _base.COLOURS * (1 + len(rest)), strict=False))
    return {m: colours.get(m, _base.GREY) for m in methods}


def _draw(ax: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    sections = list(pd.unique(rows["section"]))
    methods = [m for m in colours if (rows["method"] == m).any()]
    places = np.arange(len(sections))
    width = 0.85 / len(methods)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].set_index("section").reindex(sections)
        value = own["value"].to_numpy(dtype=float)
        x = places + (i - (len(methods) - 1) / 2) * width
        bars: dict[str, Any] = {"color": colours[method], "label": method, "error_kw": {"elinewidth": 0.9}}
        ax.bar(x, value, width * 0.92, yerr=_errors(own, value), **bars)
    if "chance" in rows and rows["chance"].notna().any():
        level = rows.groupby("section", observed=True)["chance"].first().reindex(sections).to_numpy(dtype=float)
        ax.hlines(level, places - 0.46, places + 0.46, color="black", linestyle=":", linewidth=1.2, label="chance")
    _label(ax, rows, [str(s) for s in sections], len(methods))


def _label(ax: Axes, rows: pd.DataFrame, sections: list[str], n_methods: int) -> None:
    metric, genes = _base.metric_label(str(rows["metric"].iloc[0])), rows["genes"].iloc[0]
    ax.yaxis.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    ax.xaxis.grid(visible=False)
    ax.set_axisbelow(True)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_title(f"{metric}, {genes}" if isinstance(genes, str) and genes else metric, fontsize=_base.TITLE_SIZE + 1)
    ax.set_ylabel(metric, fontsize=_base.TITLE_SIZE)
    turned = len(sections) > 1 and max(len(s) for s in sections) * 0.07 > (n_methods + 1) * _BAR_IN
    ax.set_xticks(np.arange(len(sections)), sections, rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.tick_params(labelsize=_base.SMALL_SIZE + 0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _errors(rows: pd.DataFrame, value: np.ndarray) -> np.ndarray | None:
    if "low" not in rows or "high" not in rows or rows[["low", "high"]].isna().all(axis=None):
        return None
    ends = np.stack([value - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - value])
    # A bootstrap interval may miss the value by a hair; matplotlib refuses negative lengths.
    return np.clip(np.nan_to_num(ends), 0, None)
