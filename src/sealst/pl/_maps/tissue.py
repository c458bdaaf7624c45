"""Draw the H&E of a region, its spots at their true size, and a scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from spatialdata import SpatialData

from sealst import _section
from sealst._core.space.geometry import apply_affine
from sealst._errors import DataError
from sealst._section import Region
from sealst._validate import whole
from sealst.pl._base import SMALL_SIZE, TITLE_SIZE, axes_at, figure_of, finish, text_width, wrap

#: longest side, in pixels, of the H&E behind one of few, or of many, maps
_LARGE_PX, _SMALL_PX = 1000, 500
_MANY_MAPS = 4
#: above this, spots are stored as pixels in a PDF
_VECTOR_SPOTS = 5000
#: inches: space between maps, space for a colour bar and its numbers, one line of a title
_GAP_IN, _BAR_IN, _LINE_IN = 0.1, 0.8, 0.16
#: a map higher than this times the usual width is drawn smaller
_TALLEST = 1.5
#: height and width of the corner that a scale bar takes, as shares of the picture
_CORNER = (0.1, 0.25)


@dataclass(frozen=True, eq=False)
class Tissue:
    """One region ready to draw, all in pixels of the full-resolution image."""

    region: Region
    #: H&E, uint8 (height, width, 3)
    picture: np.ndarray
    #: left, right, bottom, top of the picture
    extent: tuple[float, float, float, float]
    #: µm per pixel, where known
    mpp: float | None
    centres: np.ndarray
    #: radii of circles, or outlines of other shapes
    radii: np.ndarray | None
    outlines: list[np.ndarray] | None

    @property
    def aspect(self) -> float:
        """Height over width."""
        left, right, bottom, top = self.extent
        return (bottom - top) / (right - left)


@dataclass(frozen=True, eq=False)
class Panel:
    """One map: a value per spot of the region, and how to colour it."""

    title: str
    #: values, or None for an empty panel that says `label`
    values: np.ndarray | None
    label: str
    cmap: str | Colormap = "viridis"
    limits: tuple[float, float] = (0.0, 1.0)
    #: names of the categories whose positions are the values; a legend then stands in place of the colour bar
    categories: tuple[str, ...] = ()

    def shares_colours(self, other: Panel) -> bool:
        """Whether one colour bar serves both."""
        own, others = ((one.label, one.limits, one.categories) for one in (self, other))
        return own == others and plt.get_cmap(self.cmap) == plt.get_cmap(other.cmap)

    @property
    def side_in(self) -> float:
        """Inches that colour bar or legend take."""
        names = [text_width(text, SMALL_SIZE) for text in (*self.categories, self.label)]
        return 0.4 + max(names) if self.categories else _BAR_IN


@dataclass(frozen=True)
class MapStyle:
    """How H&E and spots are drawn."""

    image_alpha: float
    spot_size: float
    #: colour of the spots' outlines
    edge: str = "none"
    #: opacity of the spots
    alpha: float | None = None


def read_tissue(
    sdata: SpatialData,
    table: AnnData,
    region: Region,
    *,
    image_key: str | None = None,
    coordinate_system: str = "global",
    n_maps: int = 1,
) -> Tissue:
    """Read a thumbnail of the tissue under the spots, and the spots' shapes."""
    crops = _section.recorded(table, "crops").get(region.name, {})
    key = _section.find_image(sdata, region, image_key or crops.get("image_key"))
    _section.check_pixels(sdata, key)
    image = sdata.images[key]
    spots = _section.spot_table(sdata, region)
    to_image = _section.between(spots, image, coordinate_system)
    centres = _section.spot_centres(image, spots, coordinate_system)
    radii = outlines = None
    if "radius" in spots:
        radii = spots["radius"].to_numpy(dtype=float) * float(np.sqrt(abs(np.linalg.det(to_image[:2, :2]))))
    else:
        outlines = [apply_affine(to_image, np.asarray(s.exterior.coords)) for s in spots.geometry.convex_hull]
    levels = _section.image_levels(image)
    # Part of the image to show: the spots and a margin.
    shape = levels[0].shape[1:]
    edge = np.median(radii) if radii is not None else np.median([np.ptp(o, axis=0).max() / 2 for o in outlines or []])
    low, high = centres.min(0), centres.max(0)
    margin = float(max(3 * edge, 0.02 * (high - low).max()))
    x0, y0 = np.maximum(low - margin, 0)
    x1, y1 = np.minimum(high + margin, [shape[1], shape[0]])
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise DataError(
            f"The spots of {region.name!r} lie outside the image ({shape[1]} x {shape[0]} px): they span x "
            f"{low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}. Name the right image with "
            "`image_key=`, or the system in which both meet with `coordinate_system=`."
        )
    box = float(x0), float(y0), float(x1), float(y1)
    picture, extent = _read_picture(levels, box, _SMALL_PX if n_maps > _MANY_MAPS else _LARGE_PX)
    mpp = float(crops["mpp"]) if crops.get("image_key") == key else _section.mpp_of(image)
    return Tissue(region, picture, extent, mpp, centres, radii, outlines)


def _read_picture(
    levels: Sequence[xr.DataArray], box: tuple[float, float, float, float], wanted_px: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    longest = max(box[2] - box[0], box[3] - box[1])
    width = levels[0].shape[2]
    fine_enough = [one for one in levels if longest * one.shape[2] / width >= wanted_px]
    level = fine_enough[-1] if fine_enough else levels[0]
    scale = np.array([level.shape[2] / width, level.shape[1] / levels[0].shape[1]])
    left, top = np.floor(np.array(box[:2]) * scale).astype(int)
    right, bottom = np.minimum(np.ceil(np.array(box[2:]) * scale).astype(int), [level.shape[2], level.shape[1]])
    window = level[:3, top:bottom, left:right]
    step = max(1, int(max(window.shape[1:]) // wanted_px))
    if step > 1:
        window = window.coarsen({window.dims[1]: step, window.dims[2]: step}, boundary="trim").mean()
    stored = level.dtype
    white = 255.0 if stored == np.uint8 else float(np.iinfo(stored).max) if stored.kind in "iu" else 1.0
    pixels = np.clip(np.moveaxis(np.asarray(window), 0, 2) * (255.0 / white), 0, 255).astype(np.uint8)
    pixels = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    right, bottom = left + pixels.shape[1] * step, top + pixels.shape[0] * step
    x0, x1 = left / scale[0], right / scale[0]
    return pixels, (float(x0), float(x1), float(bottom / scale[1]), float(top / scale[1]))


def draw_tissue(ax: Axes, tissue: Tissue, *, alpha: float) -> None:
    """Show the H&E with a scale bar and no ticks."""
    ax.set_axis_off()
    ax.grid(visible=False)
    ax.imshow(tissue.picture, extent=tissue.extent, alpha=alpha, interpolation="antialiased", aspect="equal")
    ax.set_xlim(tissue.extent[:2])
    ax.set_ylim(tissue.extent[2:])
    if tissue.mpp is not None:
        width_um = tissue.mpp * (tissue.extent[1] - tissue.extent[0])
        # Black or white, whichever is seen on the lower right corner of a picture.
        height, width = (max(1, int(n * share)) for n, share in zip(tissue.picture.shape[:2], _CORNER, strict=True))
        corner = tissue.picture[-height:, -width:].mean() / 255
        colour = "white" if corner * alpha + (1 - alpha) < 0.5 else "black"
        add_scale_bar(ax, width_um, per_unit=tissue.mpp, colour=colour)


def draw_spots(
    ax: Axes, tissue: Tissue, values: np.ndarray, *, cmap: str | Colormap, norm: Normalize, style: MapStyle
) -> Collection:
    """Draw one shape per spot at its true size times a factor; spots without a value stay hollow."""
    size = style.spot_size
    common: dict[str, Any] = {"cmap": plt.get_cmap(cmap).with_extremes(bad=(0, 0, 0, 0)), "norm": norm, "zorder": 2}
    common |= {"rasterized": len(values) > _VECTOR_SPOTS, "alpha": style.alpha}
    missing = ~np.isfinite(values)
    common["edgecolors"] = ["#4D4D4D" if m else style.edge for m in missing] if missing.any() else style.edge
    common["linewidths"] = 0.7 if style.edge == "none" else 0.3
    spots: EllipseCollection | PolyCollection
    if tissue.radii is not None:
        sides = 2 * size * tissue.radii
        offsets = {"offsets": tissue.centres, "offset_transform": ax.transData}
        spots = EllipseCollection(sides, sides, np.zeros(len(sides)), units="xy", **offsets, **common)
    else:
        centred = zip(tissue.outlines or [], tissue.centres, strict=True)
        spots = PolyCollection([(outline - c) * size + c for outline, c in centred], **common)
    spots.set_array(np.ma.masked_invalid(values))
    ax.add_collection(spots, autolim=False)
    return spots


def _inches(ax: Axes) -> tuple[float, float]:
    box, dpi = ax.get_window_extent(), figure_of(ax).dpi
    return box.width / dpi, box.height / dpi


def draw_panel(ax: Axes, tissue: Tissue, panel: Panel, style: MapStyle) -> Collection | None:
    """Draw one map without its colour bar."""
    draw_tissue(ax, tissue, alpha=style.image_alpha)
    ax.set_title(wrap(panel.title, _inches(ax)[0], size=TITLE_SIZE), fontsize=TITLE_SIZE)
    if panel.values is None:
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": TITLE_SIZE}
        text["path_effects"] = [withStroke(linewidth=3, foreground="white")]
        ax.text(0.5, 0.5, panel.label, transform=ax.transAxes, **text)
        return None
    norm = Normalize(*panel.limits)
    return draw_spots(ax, tissue, panel.values, cmap=panel.cmap, norm=norm, style=style)


def runs_of(group: Sequence[Panel]) -> list[list[int]]:
    """Positions of neighbouring maps that share a colour scale; empty panels go with their neighbour."""
    runs: list[list[int]] = []
    scale: Panel | None = None
    for i, panel in enumerate(group):
        if scale is None or panel.values is None or panel.shares_colours(scale):
            runs[-1:] = [[*runs[-1], i]] if runs else [[i]]
        else:
            runs.append([i])
        scale = scale if panel.values is None else panel
    return runs


def draw_group(axes: Sequence[Axes], tissue: Tissue, group: Sequence[Panel], style: MapStyle) -> None:
    """Draw maps side by side; one colour bar serves neighbours with the same scale."""
    spots = [draw_panel(ax, tissue, panel, style) for ax, panel in zip(axes, group, strict=True)]
    for run in runs_of(group):
        drawn = [i for i in run if spots[i] is not None]
        if drawn and group[drawn[0]].categories:
            _add_legend(axes[run[-1]], group[drawn[0]], alpha=style.alpha)
        elif drawn:
            _add_colour_bar(axes[run[-1]], spots[drawn[0]], [group[i] for i in drawn])


def _add_legend(ax: Axes, panel: Panel, *, alpha: float | None) -> None:
    cmap = plt.get_cmap(panel.cmap)
    marks = [
        Line2D([], [], linestyle="none", marker="s", markersize=5.5, color=cmap(i), alpha=alpha, label=name)
        for i, name in enumerate(panel.categories)
    ]
    place: dict[str, Any] = {
        "loc": "center left",
        "bbox_to_anchor": (1 + 0.04 / _inches(ax)[0], 0.5),
        "borderaxespad": 0,
    }
    style: dict[str, Any] = {"fontsize": SMALL_SIZE, "frameon": False, "handletextpad": 0.2, "alignment": "left"}
    ax.legend(handles=marks, title=panel.label or None, title_fontsize=SMALL_SIZE, **place, **style)


def _add_colour_bar(ax: Axes, spots: Any, panels: Sequence[Panel]) -> None:
    low, high = panels[0].limits
    values = np.concatenate([p.values[np.isfinite(p.values)] for p in panels if p.values is not None])
    # Arrows tell that colours saturate there.
    below, above = bool((values < low).any()), bool((values > high).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    width, height = _inches(ax)
    length = min(0.7, 2.4 / height)
    place = ax.inset_axes((1 + 0.07 / width, 0.5 - length / 2, 0.11 / width, length))
    bar = figure_of(ax).colorbar(spots, cax=place, extend=extend)
    bar.set_label(panels[0].label, fontsize=SMALL_SIZE)
    bar.ax.tick_params(labelsize=SMALL_SIZE)
    bar.outline.set_visible(False)


def draw_maps(tissue: Tissue, groups: Sequence[Sequence[Panel]], *, per_row: int, style: MapStyle) -> Figure:
    """Draw groups of maps in a new figure, `per_row` groups in a row."""
    whole("n_cols", per_row, least=1)
    width = max(len(group) for group in groups)
    # Few panels are drawn large; many must still fit on a screen.
    side = 4.2 if len(groups) * width == 1 else 3.2 if per_row * width <= 4 else 2.5
    side *= min(1.0, _TALLEST / tissue.aspect)
    height = side * tissue.aspect
    sides = [_GAP_IN] * width
    for group in groups:
        for run in runs_of(group):
            sides[run[-1]] = max(sides[run[-1]], *(group[i].side_in for i in run if group[i].values is not None), 0.0)
    steps = [side + beside for beside in sides]
    rows = [groups[i : i + per_row] for i in range(0, len(groups), per_row)]
    lines = [max(wrap(p.title, side, size=TITLE_SIZE).count("\n") + 1 for g in row for p in g) for row in rows]
    titles = [0.1 + _LINE_IN * n for n in lines]
    total = sum(titles) + len(rows) * (height + _GAP_IN)
    figure = plt.figure(figsize=(per_row * sum(steps) + 2 * _GAP_IN, total))
    y = 0.0
    for row, title in zip(rows, titles, strict=True):
        y += title
        for i, group in enumerate(row):
            left = _GAP_IN + i * sum(steps)
            axes = [axes_at(figure, left + sum(steps[:j]), y, size=(side, height)) for j in range(len(group))]
            draw_group(axes, tissue, group, style)
        y += height + _GAP_IN
    return figure


def show_maps(
    tissue: Tissue,
    groups: Sequence[Sequence[Panel]],
    *,
    per_row: int,
    style: MapStyle,
    ax: Axes | None,
    save: str | Path | None,
    show: bool | None,
) -> Figure | Axes:
    """Draw maps into a new figure, or the only one into `ax`; save and show it; return the figure or `ax`."""
    if ax is not None:
        draw_group([ax], tissue, groups[0], style)
        return finish(figure_of(ax), ax, save, show)
    return finish(draw_maps(tissue, groups, per_row=per_row, style=style), ax, save, show)


def _opposite(colour: str) -> str:
    return "white" if colour == "black" else "black"


def add_scale_bar(ax: Axes, width_um: float, *, per_unit: float, colour: str) -> None:
    """Add a bar of a round length, about a fifth of the panel.

    Parameters
    ----------
    width_um
        Width of the panel in µm.
    per_unit
        µm per data unit of the panel.
    colour
        Colour of bar and text, which stand on a patch of its opposite, as tissue and spots have colours of their own.
    """
    length = round_length(width_um / 5)
    bar = AnchoredSizeBar(
        ax.transData,
        length / per_unit,
        f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm",
        loc="lower right",
        pad=0.3,
        borderpad=0.5,
        sep=2,
        color=colour,
        frameon=True,
        size_vertical=0.008 * width_um / per_unit,
        fontproperties=FontProperties(size=SMALL_SIZE),
    )
    bar.patch.set(boxstyle="round,pad=0,rounding_size=0.2", linewidth=0, facecolor=_opposite(colour), alpha=0.75)
    ax.add_artist(bar)


def round_length(um: float) -> float:
    """Largest of 1, 2, 5 times a power of ten that is not above a length in µm."""
    power = 10.0 ** np.floor(np.log10(um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= um * 1.0001))
