"""Two methods gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from sealst._docs import documented
from sealst._errors import DataError
from sealst._evaluation import Evaluation
from sealst._validate import check_choice
from sealst.pl import _base
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, POOLED, check_columns, colours_of, frame_of, pick

_NEEDED = ("section", "method", "gene")
_SCORES = ("pearson", "spearman", "r2", "slope")
#: inches: height of a line of a label, space around a point, and the distances that are tried, nearest first
_LINE_IN, _POINT_IN = 0.12, 0.03
_DISTANCES_IN = (0.05, 0.12, 0.2, 0.3, 0.42, 0.56, 0.72, 0.9)
_ANGLES = np.deg2rad([0, 180, 90, 270, 45, 135, 225, 315, 22, 158, 202, 338])
#: beyond this a line joins name and point
_LINE_FROM_IN = 0.1

Box = tuple[float, float, float, float]


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
    %(figure)s

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
    # Gene by gene, the value of both methods, by section.
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
    _base.check_single(ax, len(panels), how="`sections=`")
    values = np.concatenate([frame.to_numpy().ravel() for frame in panels.values()])
    low, high = min(0.0, float(values.min())), float(values.max())
    margin = 0.06 * max(high - low, 0.05)
    limits = low - margin, high + margin
    axes = [ax] if ax is not None else _base.square_axes(len(panels), _base.columns_of(len(panels), n_cols))
    for one, (name, pairs) in zip(axes, panels.items(), strict=True):
        xy = pairs.to_numpy(dtype=float)
        gain = xy[:, 1] - xy[:, 0]
        above = gain > 0
        better, worse = colours_of(pairs.columns[::-1]).values()
        one.set_xlim(limits)
        one.set_ylim(limits)
        one.set_aspect("equal", adjustable="box")
        one.plot(limits, limits, color="black", linewidth=0.8, zorder=1)
        colours = np.where(above, better, worse)
        one.scatter(xy[:, 0], xy[:, 1], s=18, c=colours, edgecolors="white", linewidths=0.5, zorder=2)
        _base.plain(one)
        share = f"{above.sum()} of {len(xy)} ({100 * above.mean():.0f} %)"
        room = one.get_window_extent().width / _base.figure_of(one).dpi
        title = f"{_base.shorten(name, 24)}: above the line {share}"
        one.set_title(_base.wrap(title, room + 0.4, size=_base.TITLE_SIZE), fontsize=_base.TITLE_SIZE)
        order = np.argsort(-np.abs(gain), kind="stable")[:n_labels]
        label_points(one, xy, names=[str(g) for g in pairs.index], labelled=order.tolist())
        one.set_xlabel(f"{x}, {_base.metric_label(metric)}", fontsize=_base.SMALL_SIZE + 1)
        one.set_ylabel(f"{y}, {_base.metric_label(metric)}", fontsize=_base.SMALL_SIZE + 1)
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def label_points(ax: Axes, xy: np.ndarray, *, names: Sequence[str], labelled: Sequence[int]) -> list[str]:
    """Write the names of some points of a scatter plot where nothing is hidden; returns those that found room.

    Limits and place of the Axes must be final. `labelled` holds positions in `xy` (n, 2), the most important first.
    """
    if _base.figure_of(ax).get_layout_engine() is not None:
        _base.figure_of(ax).draw_without_rendering()
    ax.apply_aspect()
    inches = ax.transData.transform(xy) / _base.figure_of(ax).dpi
    frame = ax.get_window_extent()
    room = tuple(v / _base.figure_of(ax).dpi for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    taken: list[Box] = [(x - _POINT_IN, y - _POINT_IN, x + _POINT_IN, y + _POINT_IN) for x, y in inches]
    written = []
    for i in labelled:
        width = _base.text_width(names[i], _base.SMALL_SIZE)
        found = _find_place(inches[i], width, taken, room)
        if found is None:
            continue
        box, distance = found
        taken.append(box)
        written.append(names[i])
        point, place = inches[i], (float(xy[i][0]), float(xy[i][1]))
        middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        near = np.clip(point, [box[0], box[1]], [box[2], box[3]])
        if distance > _LINE_FROM_IN:
            ax.annotate(
                "",
                xy=place,
                xytext=(near - point) * 72,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": "#666666", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
            )
        text = ax.annotate(
            names[i],
            xy=place,
            xytext=(middle - point) * 72,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_base.SMALL_SIZE,
        )
        text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
    return written


def _find_place(
    point: np.ndarray, width: float, taken: Sequence[Box], room: tuple[float, ...]
) -> tuple[Box, float] | None:
    half = np.array([width / 2, _LINE_IN / 2])
    for distance in _DISTANCES_IN:
        for angle in _ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            # The nearest edge of the text, not its middle, is at that distance.
            centre = point + way * distance + np.sign(np.round(way, 6)) * half
            (x0, y0), (x1, y1) = (centre - half).tolist(), (centre + half).tolist()
            inside = x0 > room[0] + 0.02 and y0 > room[1] + 0.02 and x1 < room[2] - 0.02 and y1 < room[3] - 0.02
            if inside and not any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken):
                return (x0, y0, x1, y1), distance
    return None
