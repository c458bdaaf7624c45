"""Two methods gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealst._errors import DataError
from sealst._evaluation import Evaluation
from sealst._validate import check_choice
from sealst.pl import _base
from sealst.pl._evaluation.labels import label_points
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, POOLED, check_columns, colours_of, frame_of, pick

_NEEDED = ("section", "method", "gene")
_SCORES = ("pearson", "spearman", "r2", "slope")


def gene_scatter(
    evaluation: Evaluation | pd.DataFrame,
    *,
    x: str = FROZEN,
    y: str = ADAPTED,
    metric: str = "pearson",
    sections: str | Sequence[str] | None = None,
    n_labels: int = 6,
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Compare two methods gene by gene: one dot per gene, one panel per section.

    Genes above the diagonal are predicted better by the method on the y axis; the title counts them. Values are means
    over folds and seeds. The genes that differ most carry their names, as far as there is room.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returns, or its ``.genes``.
    x
        Method on the x axis.
    y
        Method on the y axis.
    metric
        ``"pearson"``, ``"spearman"``, ``"r2"`` or ``"slope"``.
    sections
        Sections to show, in this order; by default all.
    n_labels
        Genes to name in every panel.
    n_cols
        Panels in a row; by default up to 3, then a shape near a square.
    ax
        Axes to draw into, for a single section.
    save
        File to write; its ending picks the format (``.png``, ``.pdf``, …). At 150 dpi, or what
        `matplotlib.rcParams["savefig.dpi"]` says (`scanpy.set_figure_params(dpi_save=300)` sets it).
    show
        True calls `matplotlib.pyplot.show`; None leaves it to the session (a notebook shows open figures when a cell
        ends); False closes the figure in pyplot, so that only what is returned shows it.

    Returns
    -------
    The Figure, or `ax` where it was given.

    Raises
    ------
    MissingKeyError
        When a column, a method or a section is absent.
    DataError
        When no gene has a value for both methods.

    Examples
    --------
    >>> import pandas as pd, sealst as sl
    >>> genes = pd.DataFrame({
    ...     "section": "B4", "method": ["frozen + ridge"] * 2 + ["adapted + ridge"] * 2, "gene": ["VIM", "KRT8"] * 2,
    ...     "pearson": [0.1, 0.3, 0.2, 0.4],
    ... })
    >>> sl.pl.gene_scatter(genes).axes[0].get_title()
    'B4: above the line 2 of 2 (100 %)'
    """
    _base.check_save(save)
    check_choice("metric", metric, _SCORES)
    genes = frame_of(evaluation, "genes")
    check_columns(genes, [*_NEEDED, metric], what="the table of genes")
    pick("method", [x, y], [str(m) for m in pd.unique(genes["method"])])
    panels = _pairs(genes, x, y, metric=metric, sections=sections)
    _base.check_single(ax, len(panels), how="`sections=`")
    limits = _limits(panels.values())
    if ax is not None:
        axes = [ax]
    else:
        n_cols = columns_of(len(panels), n_cols)
        axes = square_axes(len(panels), n_cols)
    for one, (name, pairs) in zip(axes, panels.items(), strict=True):
        _draw(one, pairs, name, limits=limits, n_labels=n_labels)
        one.set_xlabel(f"{x}, {_base.metric_label(metric)}", fontsize=_base.SMALL_SIZE + 1)
        one.set_ylabel(f"{y}, {_base.metric_label(metric)}", fontsize=_base.SMALL_SIZE + 1)
    figure = _base.figure_of(axes[0])
    _base.finish(figure, save, show, own=ax is None)
    return figure if ax is None else ax


def _pairs(
    genes: pd.DataFrame, x: str, y: str, *, metric: str, sections: str | Sequence[str] | None
) -> dict[str, pd.DataFrame]:
    """Gene by gene, the value of both methods, by section."""
    known = [str(s) for s in pd.unique(genes["section"])]
    known = [s for s in known if s] or known
    panels = {}
    for section in pick("sections", sections, known):
        own = genes[(genes["section"] == section) & genes["method"].isin([x, y])]
        wide = own.pivot_table(index="gene", columns="method", values=metric, sort=False, observed=True)
        wide = wide.reindex(columns=[x, y]).replace([np.inf, -np.inf], np.nan).dropna()
        if wide.empty:
            raise DataError(f"No gene of section {section!r} has a {metric} for both {x!r} and {y!r}.")
        panels[section or POOLED] = wide
    return panels


def _limits(panels: object) -> tuple[float, float]:
    values = np.concatenate([frame.to_numpy().ravel() for frame in panels])  # type: ignore[attr-defined]
    low, high = min(0.0, float(values.min())), float(values.max())
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin


def columns_of(n: int, wanted: int | None) -> int:
    """Panels in a row: up to three stand side by side, more form a shape near a square."""
    return min(wanted or (n if n <= 3 else min(5, int(np.ceil(np.sqrt(n))))), n)


def square_axes(n: int, n_cols: int, *, right: float = 0.0) -> list[Axes]:
    """Square panels in a new figure, with room for titles and labels; their place is final."""
    side = 3.4 if n <= 4 else 2.6
    left, top, gap, below = 0.6, 0.32, 0.15, 0.5
    n_rows = -(-n // n_cols)
    size = (n_cols * (left + side + gap) + right, n_rows * (top + side + below))
    figure = plt.figure(figsize=size)
    places = [divmod(i, n_cols) for i in range(n)]
    return [
        _base.axes_at(figure, left + c * (left + side + gap), top + r * (top + side + below), size=(side, side))
        for r, c in places
    ]


def _draw(ax: Axes, pairs: pd.DataFrame, name: str, *, limits: tuple[float, float], n_labels: int) -> None:
    xy = pairs.to_numpy(dtype=float)
    gain = xy[:, 1] - xy[:, 0]
    above = gain > 0
    better, worse = colours_of(pairs.columns[::-1]).values()
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    ax.set_aspect("equal", adjustable="box")
    ax.plot(limits, limits, color="black", linewidth=0.8, zorder=1)
    ax.scatter(xy[:, 0], xy[:, 1], s=18, c=np.where(above, better, worse), edgecolors="white", linewidths=0.5, zorder=2)
    _base.plain(ax)
    share = f"{above.sum()} of {len(xy)} ({100 * above.mean():.0f} %)"
    room = ax.get_window_extent().width / _base.figure_of(ax).dpi
    title = f"{_base.shorten(name, 24)}: above the line {share}"
    ax.set_title(_base.wrap(title, room + 0.4, size=_base.TITLE_SIZE), fontsize=_base.TITLE_SIZE)
    order = np.argsort(-np.abs(gain), kind="stable")[:n_labels]
    label_points(ax, xy, names=[str(g) for g in pairs.index], labelled=order.tolist())
