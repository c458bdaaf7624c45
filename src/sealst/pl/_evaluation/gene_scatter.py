"""Two methods gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealst._docs import documented
from sealst._errors import DataError
from sealst._evaluation import Evaluation
from sealst._validate import check_choice
from sealst.pl import _base
from sealst.pl._evaluation.labels import label_points
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, POOLED, check_columns, colours_of, frame_of, pick

_NEEDED = ("section", "method", "gene")
_SCORES = ("pearson", "spearman", "r2", "slope")


@documented
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
    %(shown.sections)s
    n_labels
        Genes to name in every panel.
    %(by_number.n_cols)s
    %(ax)s
    %(save)s
    %(show)s

    %(returns_figure)s

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
    values = np.concatenate([frame.to_numpy().ravel() for frame in panels.values()])
    low, high = min(0.0, float(values.min())), float(values.max())
    margin = 0.06 * max(high - low, 0.05)
    limits = low - margin, high + margin
    axes = [ax] if ax is not None else _base.square_axes(len(panels), _base.columns_of(len(panels), n_cols))
    for one, (name, pairs) in zip(axes, panels.items(), strict=True):
        _draw(one, pairs, name, limits=limits, n_labels=n_labels)
        one.set_xlabel(f"{x}, {_base.metric_label(metric)}", fontsize=_base.SMALL_SIZE + 1)
        one.set_ylabel(f"{y}, {_base.metric_label(metric)}", fontsize=_base.SMALL_SIZE + 1)
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


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
