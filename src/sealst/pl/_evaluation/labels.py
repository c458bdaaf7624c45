"""Names beside points of a scatter plot, without overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from sealst.pl._base import SMALL_SIZE, figure_of, text_width

#: inches: height of a line of text, space around a point, and the distances that are tried, nearest first
_LINE_IN, _POINT_IN = 0.12, 0.03
_DISTANCES_IN = (0.05, 0.12, 0.2, 0.3, 0.42, 0.56, 0.72, 0.9)
_ANGLES = np.deg2rad([0, 180, 90, 270, 45, 135, 225, 315, 22, 158, 202, 338])
#: beyond this a line joins name and point
_LINE_FROM_IN = 0.1

Box = tuple[float, float, float, float]


def label_points(ax: Axes, xy: np.ndarray, *, names: Sequence[str], labelled: Sequence[int]) -> list[str]:
    """Write the names of some points of a scatter plot where nothing is hidden; returns those that found room.

    Limits and place of the Axes must be final. `labelled` holds positions in `xy` (n, 2), the most important first.
    """
    if figure_of(ax).get_layout_engine() is not None:
        figure_of(ax).draw_without_rendering()
    ax.apply_aspect()
    inches = ax.transData.transform(xy) / figure_of(ax).dpi
    frame = ax.get_window_extent()
    room = tuple(v / figure_of(ax).dpi for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    taken: list[Box] = [(x - _POINT_IN, y - _POINT_IN, x + _POINT_IN, y + _POINT_IN) for x, y in inches]
    written = []
    for i in labelled:
        width = text_width(names[i], SMALL_SIZE)
        found = _find_place(inches[i], width, taken, room)
        if found is None:
            continue
        box, distance = found
        taken.append(box)
        written.append(names[i])
        _write(ax, names[i], xy[i], inches[i], box=box, line=distance > _LINE_FROM_IN)
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


def _write(ax: Axes, name: str, at: np.ndarray, point: np.ndarray, *, box: Box, line: bool) -> None:
    place = float(at[0]), float(at[1])
    middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    near = np.clip(point, [box[0], box[1]], [box[2], box[3]])
    if line:
        ax.annotate(
            "",
            xy=place,
            xytext=(near - point) * 72,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": "#666666", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
    text = ax.annotate(
        name.replace("$", r"\$"),
        xy=place,
        xytext=(middle - point) * 72,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=SMALL_SIZE,
    )
    text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
