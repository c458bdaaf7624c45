"""Methods side by side, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealst._docs import documented
from sealst._errors import DataError
from sealst._evaluation import Evaluation
from sealst._validate import check_choice
from sealst.pl import _base
from sealst.pl._evaluation.learning_curve import curve_of, draw_curve, shown_methods
from sealst.pl._evaluation.methods import FROZEN, MEAN, POOLED, check_columns, colours_of, frame_of, pick

_NEEDED = ("section", "method", "genes", "metric", "value")
_BAR = ["section", "method", "genes", "metric"]
#: inches: one bar in few and in many panels, height of a panel, widest figure
_BAR_IN, _SLIM_BAR_IN, _HEIGHT_IN, _WIDEST_IN = 0.16, 0.09, 3.0, 15.0
_MANY_PANELS = 6
#: of a group of bars, which is one wide
_WIDEST_BAR = 0.3


@documented
def evaluation(
    evaluation: Evaluation | pd.DataFrame,
    *,
    metrics: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    sections: str | Sequence[str] | None = None,
    by: Literal["section", "method"] | None = None,
    pooled: bool = False,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Compare methods as grouped bars, by default in the four panels that say whether an encoder is better, on what.

    These are the gain in Pearson's r over the frozen encoder by gene set (r itself where nothing was trained); how
    often a crop finds its own expression among the nearest 10; whether predictions vary as much as they should
    (calibration slope 1); and what the gain costs, the share of genes that a method predicts worse than the frozen
    encoder. What was not evaluated is left out. An evaluation with a learning curve has it as one more panel, of the
    first gene set (`pl.learning_curve` draws all). With `metrics` or `by` it is one panel per metric and gene set.

    A bar with one value carries its interval as an error bar. A bar with several (folds, seeds, or sections with
    ``by="method"``) is as high as their mean, and each of them is a dot.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returns, or its table: columns ``section``, ``method``, ``genes`` (name of the gene set),
        ``metric`` and ``value``; where they exist also ``fold`` and ``seed``, ``low`` and ``high`` (ends of an
        interval), and ``chance``, which a dotted line shows.
    metrics
        Metrics to show, in this order, or ``"all"``; by default the four panels.
    %(shown.methods)s
    %(shown.sections)s
    by
        ``"section"`` (default with `metrics`): a group of bars per section; ``"method"``: one bar per method, the mean
        over the sections. The four panels are means over the sections.
    pooled
        Whether to add the group ``"all"``, in which the test sections of a fold were scored together. It is always
        shown where a metric has nothing else. With groups per section only.
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a column, a metric, a method or a section is absent.
    DataError
        When the table is empty, or has two values of one bar, fold and seed.

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
    if by is not None:
        check_choice("by", by, ["section", "method"])
    table = frame_of(evaluation, "table")
    check_columns(table, _NEEDED, what="the table of results")
    repeated = table.duplicated([*_BAR, *(c for c in ("fold", "seed") if c in table)])
    if repeated.any():
        first = table[repeated].iloc[0]
        raise DataError(
            f"{int(repeated.sum())} bars have several values (e.g. section {first['section']!r}, method "
            f"{first['method']!r}, genes {first['genes']!r}, metric {first['metric']!r}). Average them first."
        )
    table = _select(table, methods, sections, pooled=pooled and by != "method")
    panels = [] if metrics is not None or by is not None else _answers(table, evaluation)
    four = len(panels) > 0
    if not four:
        known = [str(m) for m in pd.unique(table["metric"])]
        wanted = pick("metrics", None if isinstance(metrics, str) and metrics == "all" else metrics, known)
        chosen = [table[table["metric"] == metric] for metric in wanted]
        panels = [
            _bars(rows, by or "section")
            for part in chosen
            for _, rows in part.groupby("genes", sort=False, observed=True, dropna=False)
        ]
    curve = _curve(evaluation, table) if four and sections is None else None
    n_panels = len(panels) + (curve is not None)
    _base.check_single(ax, n_panels, how="`metrics=`")
    colours = colours_of(pd.unique(table["method"]))
    if ax is not None:
        _draw(ax, panels[0], colours)
        ax.legend(fontsize=_base.SMALL_SIZE, frameon=False)
        return _base.finish(_base.figure_of(ax), ax, save, show)
    bar = _BAR_IN if len(panels) <= _MANY_PANELS else _SLIM_BAR_IN
    n_bars = max(rows["section"].nunique() * (rows["method"].nunique() + 1.2) for rows in panels)
    width = min(max(n_bars * bar + 1.0, 3.2), _WIDEST_IN)
    n_columns = max(1, min(n_panels, int(_WIDEST_IN // width)))
    if four and n_columns < n_panels:
        n_columns = min(n_columns, 2)
    axes = _base.grid_axes(n_panels, n_columns, size=(width, _HEIGHT_IN), below=0.4)
    for one, rows in zip(axes, panels, strict=False):
        _draw(one, rows, colours)
    if curve is not None:
        draw_curve(axes[-1], curve, colours)
    figure = _base.figure_of(axes[0])
    # One legend below all panels, which need not hold the same methods; bars before lines.
    found = [pair for one in figure.axes for pair in zip(*one.get_legend_handles_labels(), strict=True)]
    entries = {text: handle for handle, text in reversed(found)}
    order = [*colours, *_LINES]
    entries = {text: entries[text] for text in sorted(entries, key=order.index)}
    longest = max(_base.text_width(text, _base.SMALL_SIZE) for text in entries)
    # Half an inch holds the key and the space around it.
    columns = max(1, min(len(entries), int(n_columns * width / (longest + 0.5))))
    style: dict[str, Any] = {"fontsize": _base.SMALL_SIZE, "frameon": False, "ncols": columns}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", **style)
    return _base.finish(figure, ax, save, show)


def _select(
    table: pd.DataFrame, methods: str | Sequence[str] | None, sections: str | Sequence[str] | None, *, pooled: bool
) -> pd.DataFrame:
    """Rows of the methods and sections asked for, in that order."""
    table = table.reset_index(drop=True)
    names = [str(s) for s in pd.unique(table["section"]) if s != ""]
    chosen = {s: s for s in pick("sections", sections, names)}
    only_pooled = table.groupby("metric", observed=True)["section"].transform(lambda s: (s == "").all())
    keep = table["section"].isin(list(chosen)) | ((table["section"] == "") & (pooled | only_pooled))
    table = table[keep].assign(section=table["section"].astype(str).replace("", POOLED))
    kept = pick("methods", methods, [str(m) for m in pd.unique(table["method"])])
    places = {m: i for i, m in enumerate(kept)}, {s: i for i, s in enumerate([*chosen, POOLED])}
    table = table[table["method"].isin(kept)]
    order = pd.DataFrame({"s": table["section"].map(places[1]), "m": table["method"].map(places[0])})
    return table.loc[order.sort_values(["m", "s"], kind="stable").index] if methods or sections else table


def _bars(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """One row per bar; `points` holds the values behind it."""
    if by == "method":
        rows = rows[~_in_parts(rows)]
        single = rows.groupby(_BAR, sort=False, observed=True, dropna=False, as_index=False).mean(numeric_only=True)
        n = single["section"].nunique()
        rows = single.assign(section=f"mean of {n} sections" if n > 1 else single["section"])
    bars = []
    for _, own in rows.groupby(_BAR, sort=False, observed=True, dropna=False):
        parts = _in_parts(own)
        whole = own[~parts]
        bar = whole.iloc[0].copy()
        values, points = (rows["value"].to_numpy(dtype=float) for rows in (whole, own[parts] if parts.any() else own))
        if len(values) > 1:
            bar[[c for c in ("low", "high") if c in own]] = np.nan
        bar["value"] = np.nanmean(values) if np.isfinite(values).any() else np.nan
        bar["points"] = points if len(points) > 1 else points[:0]
        if "chance" in own:
            bar["chance"] = own["chance"].mean()
        bars.append(bar)
    return pd.DataFrame(bars)


def _in_parts(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of one fold, where another row is of all folds together."""
    if "fold" not in rows:
        return pd.Series(False, index=rows.index)
    everywhere = rows["fold"].astype(object).fillna("").astype(str) == ""
    return everywhere.groupby([rows[c] for c in _BAR], observed=True, dropna=False).transform("any") & ~everywhere


#: of each answer the metrics that give it, the best first
_ANSWERS = (("pearson_difference", "pearson"), ("R@10",), ("calibration_slope",))
#: what sees nothing of the tissue, and what sees its colour alone
_TRIVIAL = (MEAN, "permuted + ridge")
_FLOORS = (*_TRIVIAL, "colour + ridge")


def _answers(table: pd.DataFrame, evaluation: Evaluation | pd.DataFrame) -> list[pd.DataFrame]:
    """Bars of the panels that answer the question, grouped by gene set, as far as they were evaluated."""
    panels = []
    for metrics in _ANSWERS:
        for metric in metrics:
            rows = table[table["metric"] == metric]
            if metric == "pearson_difference":
                rows = rows[~rows["method"].isin(_TRIVIAL)]
            # Floors are below the frozen encoder: without anything trained there is no gain to show.
            if rows.empty or (metric == "pearson_difference" and rows["method"].isin(_FLOORS).all()):
                continue
            groups = []
            for genes, own in rows.groupby("genes", sort=False, observed=True, dropna=False):
                bars = _bars(own, "method")
                groups.append(bars.assign(section=genes, genes="") if isinstance(genes, str) and genes else bars)
            panels.append(pd.concat(groups, ignore_index=True))
            break
    lost = _lost_genes(evaluation.genes, table) if isinstance(evaluation, Evaluation) else None
    return panels if lost is None else [*panels, lost]


def _curve(evaluation: Evaluation | pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame | None:
    """Learning curve of the first gene set, of the methods that are shown; None where there is none."""
    if not isinstance(evaluation, Evaluation) or evaluation.curve.empty:
        return None
    curve = curve_of(evaluation)
    rows = curve[(curve["metric"] == "pearson") & curve["method"].isin(table["method"])]
    rows = rows[rows["genes"] == rows["genes"].iloc[0]] if len(rows) else rows
    return rows[rows["method"].isin(shown_methods(rows, None))] if len(rows) else None


def _lost_genes(genes: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame | None:
    """Share of pairs of gene and section that a method predicts worse than the frozen encoder; dots are sections."""
    keys = ["fold", "seed", "section", "gene"]
    if not {*keys, "method", "pearson"} <= set(genes):
        return None
    single = genes[genes["section"].isin(table["section"])]
    pairs = single.pivot_table(index=keys, columns="method", values="pearson", dropna=False, observed=True)
    shown = [m for m in pd.unique(table["method"]) if m in pairs and m not in (FROZEN, *_TRIVIAL)]
    if FROZEN not in pairs or not shown:
        return None
    rows = []
    for method in shown:
        both = pairs[[method, FROZEN]].dropna()
        worse = both[method] < both[FROZEN]
        points = worse.groupby("section", sort=False).mean().to_numpy(dtype=float)
        rows.append({"method": method, "value": worse.mean(), "points": points if len(points) > 1 else points[:0]})
    n = single["gene"].nunique()
    return pd.DataFrame(rows).assign(section=f"{n} genes", metric="lost_genes", genes="")


#: what lines across the bars are called in the legend
_LINES = ("chance", "calibrated", "half of the genes")


def _draw(ax: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    sections = list(pd.unique(rows["section"]))
    methods = [m for m in colours if (rows["method"] == m).any()]
    places = np.arange(len(sections))
    width = min(0.85 / len(methods), _WIDEST_BAR)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].set_index("section").reindex(sections)
        value = own["value"].to_numpy(dtype=float)
        x = places + (i - (len(methods) - 1) / 2) * width
        bars: dict[str, Any] = {"color": colours[method], "label": method, "error_kw": {"elinewidth": 0.9}}
        ax.bar(x, value, width * 0.92, yerr=_errors(own, value), **bars)
        # A bar of height 0 would look like one that is missing.
        flat = x[value == 0]
        ends = np.zeros(len(flat)), flat - 0.46 * width, flat + 0.46 * width
        ax.hlines(*ends, color=colours[method], linewidth=3, zorder=3, clip_on=False)
        for place, points in zip(x, own["points"], strict=True):
            if isinstance(points, np.ndarray) and points.size:
                # Side by side, so that equal values do not hide each other.
                beside = place + np.linspace(-0.22, 0.22, len(points)) * width
                style: dict[str, Any] = {"c": "white", "edgecolors": "black", "linewidths": 0.6, "zorder": 3}
                ax.scatter(beside, points, s=7, gid="values", **style)
    if "chance" in rows and rows["chance"].notna().any():
        level = rows.groupby("section", observed=True)["chance"].first().reindex(sections).to_numpy(dtype=float)
        ax.hlines(level, places - 0.46, places + 0.46, color="black", linestyle=":", linewidth=1.2, label="chance")
    if rows["metric"].iloc[0] == "calibration_slope":
        ax.axhline(1, color="black", linestyle="--", linewidth=1, label="calibrated")
    if rows["metric"].iloc[0] == "lost_genes":
        ax.axhline(0.5, color="black", linestyle="-.", linewidth=1, label="half of the genes")
    metric, genes = _base.metric_label(str(rows["metric"].iloc[0])), rows["genes"].iloc[0]
    ax.yaxis.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    ax.xaxis.grid(visible=False)
    ax.set_axisbelow(True)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_title(f"{metric}, {genes}" if isinstance(genes, str) and genes else metric, fontsize=_base.TITLE_SIZE + 1)
    ax.set_ylabel(_base.wrap(metric, 0.7 * _HEIGHT_IN, size=_base.TITLE_SIZE), fontsize=_base.TITLE_SIZE)
    ax.set_xlim(-0.6, len(sections) - 0.4)
    names = [str(s) for s in sections]
    turned = len(names) > 1 and max(len(s) for s in names) * 0.07 > (len(methods) + 1) * _BAR_IN
    ax.set_xticks(places, names, rotation=45 if turned else 0, ha="right" if turned else "center")
    ax.tick_params(labelsize=_base.SMALL_SIZE + 0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _errors(rows: pd.DataFrame, value: np.ndarray) -> np.ndarray | None:
    if "low" not in rows or "high" not in rows or rows[["low", "high"]].isna().all(axis=None):
        return None
    ends = np.stack([value - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - value])
    # A bootstrap interval may miss the value by a hair; matplotlib refuses negative lengths.
    return np.clip(np.nan_to_num(ends), 0, None)
