"""What learning from more data gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sealst._docs import documented
from sealst._errors import OrderError
from sealst._evaluation import Evaluation, unit_of
from sealst.pl import _base
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, check_columns, colours_of, frame_of, pick

_NEEDED = ("fraction", "n_patients", "n_sections", "n_spots", "method", "genes", "metric", "value")
_UNITS = {"n_patients": "training patients", "n_sections": "training sections", "n_spots": "training spots"}
#: methods that are compared unless others are named: encoders by the same probe, and models that were trained beside
_SHOWN = (FROZEN, ADAPTED, "st-net", "bleep")
_WIDTH_IN, _HEIGHT_IN = 3.4, 3.0
#: with more folds, thin lines hide each other
_MOST_FOLDS = 12


@documented
def learning_curve(
    evaluation: Evaluation | pd.DataFrame,
    *,
    metrics: str | Sequence[str] = "pearson",
    genes: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Draw what models score that learned from a part of the training data, one panel per metric and gene set.

    A line is the mean over folds, and a thin one a single fold. The band is what the choice of the part does: from the
    lowest to the highest draw of a fold, mean over folds. Folds differ by their test patients; whether a rise is more
    than noise is said by ``print(evaluation)``, which compares within folds.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returns with `train_fractions`, or its ``.curve``.
    metrics
        Metrics to show, in this order.
    genes
        Gene sets to show; by default all.
    methods
        Methods to show, in this order; by default the probes of frozen and adapted encoder, and baselines.
    %(by_number.n_cols)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a column, a metric, a gene set or a method is absent.
    OrderError
        When the evaluation has no learning curve.

    Examples
    --------
    >>> import pandas as pd, sealst as sl
    >>> curve = pd.DataFrame({
    ...     "fraction": [0.5, 1.0], "n_patients": [2, 4], "n_sections": [2, 4], "n_spots": [800, 1600], "fold": "A",
    ...     "draw": 0, "seed": 0, "method": "frozen + ridge", "metric": "pearson", "genes": "hvg50",
    ...     "value": [0.1, 0.2],
    ... })
    >>> sl.pl.learning_curve(curve).axes[0].get_xlabel()
    'training patients'
    """
    _base.check_save(save)
    curve = curve_of(evaluation)
    chosen = pick("metrics", metrics, [str(m) for m in pd.unique(curve["metric"])])
    curve = curve[curve["metric"].isin(chosen)]
    sets = pick("genes", genes, [str(g) for g in pd.unique(curve["genes"])])
    curve = curve[curve["genes"].isin(sets)]
    kept = shown_methods(curve, methods)
    panels = [curve[(curve["metric"] == metric) & (curve["genes"] == name)] for metric in chosen for name in sets]
    panels = [rows for rows in (rows[rows["method"].isin(kept)] for rows in panels) if len(rows)]
    _base.check_single(ax, len(panels), how="`metrics=` and `genes=`")
    colours = colours_of(kept)
    columns = _base.columns_of(len(panels), n_cols)
    axes = [ax] if ax is not None else _base.grid_axes(len(panels), columns, size=(_WIDTH_IN, _HEIGHT_IN))
    for one, rows in zip(axes, panels, strict=True):
        draw_curve(one, rows, colours)
        one.legend(fontsize=_base.SMALL_SIZE, frameon=False)
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def curve_of(evaluation: Evaluation | pd.DataFrame) -> pd.DataFrame:
    """The learning curve of an evaluation."""
    curve = frame_of(evaluation, "curve")
    if curve.empty:
        raise OrderError(
            "The evaluation has no learning curve; run `sl.tl.evaluate(..., train_fractions=[0.25, 0.5, 1])`."
        )
    check_columns(curve, _NEEDED, what="the learning curve")
    return curve.assign(fold=curve.get("fold", ""), draw=curve.get("draw", 0))


def shown_methods(curve: pd.DataFrame, methods: str | Sequence[str] | None) -> list[str]:
    """Methods that are asked for, or that a curve is about; of others, all."""
    known = [str(m) for m in pd.unique(curve["method"])]
    return pick("methods", methods if methods is not None else [m for m in _SHOWN if m in known] or known, known)


def draw_curve(ax: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw the lines of one metric and gene set."""
    unit = unit_of(rows)
    # Seeds of one draw are averaged: the band is about what is learned from.
    draws = rows.groupby(["method", "fraction", "fold", "draw"], sort=False)[[*_UNITS, "value"]].mean().reset_index()
    folds = draws.groupby(["method", "fraction", "fold"], sort=False).agg(
        at=(unit, "mean"), value=("value", "mean"), low=("value", "min"), high=("value", "max")
    )
    for method in [m for m in colours if m in folds.index.get_level_values("method")]:
        own, colour = folds.loc[method], colours[method]
        means = own.groupby("fraction").mean().sort_index()
        # Folds stand where their mean does: with patients of different size, single spots would not line up.
        single = own["value"].unstack("fold").sort_index()
        if 1 < single.shape[1] <= _MOST_FOLDS:
            ax.plot(means["at"], single.to_numpy(), color=colour, linewidth=0.7, alpha=0.35, gid="folds")
        ax.fill_between(means["at"], means["low"], means["high"], color=colour, alpha=0.15, linewidth=0, gid="draws")
        ax.plot(means["at"], means["value"], color=colour, linewidth=1.8, marker="o", markersize=4, label=method)
    at = rows.groupby("fraction")[unit].mean().sort_index()
    form = ",.0f" if unit == "n_spots" else ".3g"
    if at.min() > 0 and at.max() / at.min() > 1.5:
        # Twice the data is as far everywhere.
        ax.set_xscale("log")
    ax.set_xticks(at, [f"{n:{form}}" for n in at])
    ax.xaxis.set_minor_locator(NullLocator())
    metric, genes = _base.metric_label(str(rows["metric"].iloc[0])), rows["genes"].iloc[0]
    title = f"Learning from more: {metric}{f', {genes}' if genes else ''}"
    ax.set_title(_base.wrap(title, _WIDTH_IN, size=_base.TITLE_SIZE), fontsize=_base.TITLE_SIZE + 1)
    ax.set_xlabel(_UNITS[unit], fontsize=_base.TITLE_SIZE)
    ax.set_ylabel(metric, fontsize=_base.TITLE_SIZE)
    ax.yaxis.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=_base.SMALL_SIZE + 0.5)
    ax.spines[["top", "right"]].set_visible(False)
