"""Galleries of crops as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._data.crops.reader import read_crops
from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError
from sealst._keys import Keys
from sealst._section import Region
from sealst._settings import resolve_seed
from sealst._validate import check_count, listed
from sealst.pl import _base
from sealst.pl._maps.slide import numbers_of
from sealst.pl._maps.tissue import MapStyle, Panel, Tissue, add_scale_bar, draw_group

SIDE_IN = 1.45
_GAP_IN, _LINE_IN = 0.08, 0.13
_NAME_WIDTH = 20
#: columns that galleries beside a map may have
_BESIDE_COLUMNS = range(3, 9)
#: inches: header of a gallery, colour bar, narrowest and widest map, tallest map, widest figure
_HEADER_IN, _BAR_IN, _MAP_IN, _TALLEST_IN, _WIDEST_IN = 0.18, 0.95, (3.6, 7.0), 8.0, 20.0


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop ready to draw."""

    #: row of its spot in the table
    row: int
    #: uint8 (px, px, 3)
    pixels: np.ndarray
    #: side in µm
    um: float


@dataclass(frozen=True, eq=False)
class Gallery:
    """Crops with a text each, under one title."""

    title: str
    crops: Sequence[Crop]
    texts: Sequence[str]


@documented
def crops(
    sdata: SpatialData,
    *,
    n_crops: int = 16,
    spots: str | Sequence[str] | None = None,
    order_by: str | None = None,
    ascending: bool = False,
    title: str | Sequence[str] | None = None,
    n_cols: int = 8,
    seed: int | None = None,
    crop_um: float | None = None,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    title_by: str | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Show crops exactly as the model sees them: same square, same number of pixels.

    The first crop carries a scale bar.

    Parameters
    ----------
    sdata
        Section with crops (`pp.pair_crops`).
    n_crops
        Crops to show; not used with `spots`.
    spots
        Names (``.obs_names``) of the spots to show, in this order; of `region`, where several have a spot of a name.
    order_by
        Show the `n_crops` spots with the highest values of this: a numeric ``.obs`` column, else a gene of the layer
        ``"lognorm"``, else a gene of the predictions, else a pathway, else ``"key:column"`` of ``.obsm``. Without it,
        `n_crops` spots are drawn at random.
    ascending
        Show the lowest values of `order_by` instead.
    title
        One title per crop; by default the spot's name, with its value of `order_by`.
    %(n_cols)s
    seed
        Seed of the random draw; default ``settings.seed``.
    crop_um
        Which of the paired crop sizes to show, in µm; default the first.
    %(region)s
    %(table_key)s
    title_by
        ``.obs`` column whose values are the crops' titles, in place of `title`.
    %(ax)s
    %(figure)s

    Raises
    ------
    OrderError
        When spots were not paired with crops yet.
    MissingKeyError
        When a spot, `order_by` or `title_by` is unknown.
    DataError
        When a spot has no usable crop, or there are other titles than crops.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.pair_crops(sdata)
    >>> figure = sl.pl.crops(sdata, n_crops=8)
    """
    _base.require_spatialdata(sdata)
    _base.check_save(save)
    check_count("n_crops", n_crops)
    check_count("n_cols", n_cols)
    table = _section.get_table(sdata, table_key)
    regions = _section.regions_of(table, region)
    usable = np.concatenate([_section.region_crops(sdata, table, one).rows for one in regions])
    values = None if order_by is None else numbers_of(table, order_by, argument="order_by").values
    if spots is not None:
        names = _base.as_list(spots, name="spots")
        if unknown := [name for name in names if name not in table.obs_names]:
            raise MissingKeyError(
                f"Spot(s) {listed(unknown, 3)} not found in `.obs_names` (e.g. {table.obs_names[0]!r})."
            )
        rows = np.array([_section.row_of(table, name, regions) for name in names])
        if bad := [row for row in rows if row not in set(usable.tolist())]:
            reasons = [f"{table.obs_names[r]} ({table.obs[Keys.CROP_REASON].iloc[r]})" for r in bad]
            raise DataError(
                f"{len(bad)} of the spots have no crop to show: {listed(reasons, 3)}. Leave them out of `spots`."
            )
    else:
        rows = _pick_rows(usable, values, n=n_crops, ascending=ascending, seed=resolve_seed(seed))
    if title is not None and title_by is not None:
        raise DataError("`title` and `title_by` both say what stands above the crops; pass one of them.")
    if title_by is not None and title_by not in table.obs:
        raise MissingKeyError(
            f"`title_by` {title_by!r} is no column of `.obs`; found: {listed(table.obs.columns, 20)}."
        )
    if title_by is not None:
        texts = [_base.shorten(str(value), _NAME_WIDTH) for value in table.obs[title_by].iloc[rows]]
    elif title is not None:
        texts = _base.list_of_titles(title, len(rows), what="crop")
    else:
        texts = [spot_title(table, row) for row in rows]
        if values is not None:
            what = _base.shorten(str(order_by).removeprefix("seal_"), _NAME_WIDTH - 6)
            numbers = (_base.number(value, ".3g") for value in values[rows])
            texts = [f"{name}\n{what} {number}" for name, number in zip(texts, numbers, strict=True)]
    _base.check_single(ax, len(rows), how="`n_crops=1` or one of `spots`")
    shown = load_crops(sdata, table, rows, regions, crop_um)

    if ax is not None:
        _draw_crop(ax, shown[0], texts[0], scale_bar=True)
        return _base.finish(_base.figure_of(ax), ax, save, show)
    width, height = gallery_size(texts, n_cols)
    figure = plt.figure(figsize=(width, height))
    draw_gallery(figure, 0.0, 0.0, crops=shown, texts=texts, n_cols=n_cols)
    return _base.finish(figure, ax, save, show)


def load_crops(
    sdata: SpatialData, table: AnnData, rows: np.ndarray, regions: Sequence[Region], crop_um: float | None = None
) -> list[Crop]:
    """Read the crops of table rows, in their order."""
    found: dict[int, Crop] = {}
    for region in regions:
        paired = _section.region_crops(sdata, table, region, crop_um)
        wanted = np.isin(paired.rows, rows)
        if not wanted.any():
            continue
        pixels = read_crops(paired.levels, paired.boxes[wanted], paired.crop_px)
        for row, one in zip(paired.rows[wanted], pixels, strict=True):
            found[int(row)] = Crop(int(row), one, float(paired.definition["crop_um"]))
    return [found[int(row)] for row in rows]


def _cell(texts: Sequence[str]) -> tuple[float, float, float]:
    """Width and height of a crop with its title, and the height of the title, in inches."""
    title = 0.1 + _LINE_IN * max(text.count("\n") + 1 for text in texts)
    return SIDE_IN + _GAP_IN, SIDE_IN + title + 0.04, title


def gallery_size(texts: Sequence[str], n_cols: int) -> tuple[float, float]:
    """Width and height of a gallery in inches."""
    width, height, _ = _cell(texts)
    return min(n_cols, len(texts)) * width + _GAP_IN, -(-len(texts) // n_cols) * height + _GAP_IN


def draw_gallery(
    figure: Figure, x: float, y: float, *, crops: Sequence[Crop], texts: Sequence[str], n_cols: int
) -> None:
    """Draw crops with titles, a scale bar in the first one; `x` and `y` are inches from the upper left corner."""
    width, height, title = _cell(texts)
    for i, (crop, text) in enumerate(zip(crops, texts, strict=True)):
        left, top = x + _GAP_IN + (i % n_cols) * width, y + (i // n_cols) * height + title
        ax = _base.axes_at(figure, left, top, size=(SIDE_IN, SIDE_IN))
        _draw_crop(ax, crop, text, scale_bar=i == 0 or crop.um != crops[0].um)


def _draw_crop(ax: Axes, crop: Crop, text: str, *, scale_bar: bool) -> None:
    ax.set_axis_off()
    ax.grid(visible=False)
    ax.imshow(crop.pixels, extent=(0, crop.um, crop.um, 0), interpolation="antialiased")
    ax.set_title(text, fontsize=_base.SMALL_SIZE, pad=3)
    if scale_bar:
        add_scale_bar(ax, crop.um * 1.3, per_unit=1.0, colour="white")


def draw_beside(tissue: Tissue, panel: Panel, style: MapStyle, *, galleries: Sequence[Gallery], heading: str) -> Figure:
    """Draw a map on the left and galleries of crops on the right, in a new figure."""
    n_crops = len(galleries[0].texts)
    columns = min(_BESIDE_COLUMNS, key=lambda n: _left_blank(tissue.aspect, galleries, n) if n <= n_crops else np.inf)
    columns = min(columns, n_crops)
    width, height = gallery_size(galleries[0].texts, columns)
    map_width, body = _map_beside(tissue.aspect, (width, len(galleries) * (height + _HEADER_IN)))
    height = body / len(galleries) - _HEADER_IN
    left = map_width + _BAR_IN
    heading = _base.wrap(heading, 0.9 * (left + width), size=_base.TITLE_SIZE + 2)
    top = 0.25 + 0.2 * (heading.count("\n") + 1)
    figure = plt.figure(figsize=(left + width, top + body))
    figure.text(0.5, 1 - 0.12 / (top + body), heading, ha="center", va="top", fontsize=_base.TITLE_SIZE + 2)
    size = (map_width, map_width * tissue.aspect)
    ax = _base.axes_at(figure, 0.1, top + (body - size[1]) / 2, size=size)
    draw_group([ax], tissue, [panel], style)
    for i, one in enumerate(galleries):
        y = top + i * (height + _HEADER_IN)
        place = ((left + width / 2) / (left + width), 1 - (y + 0.05) / (top + body))
        figure.text(*place, one.title, ha="center", va="top", fontsize=_base.TITLE_SIZE, fontweight="bold")
        draw_gallery(figure, left, y + _HEADER_IN, crops=one.crops, texts=one.texts, n_cols=columns)
    return figure


def _map_beside(aspect: float, crops: tuple[float, float]) -> tuple[float, float]:
    """Width of a map as tall as the crops beside it (width and height), within reason, and the height of both."""
    least, most = _MAP_IN[0], max(_MAP_IN[0], min(_MAP_IN[1], _WIDEST_IN - _BAR_IN - crops[0]))
    width = min(max(crops[1] / aspect, least), most, max(crops[1], _TALLEST_IN) / aspect)
    return width, max(crops[1], width * aspect)


def _left_blank(aspect: float, galleries: Sequence[Gallery], columns: int) -> float:
    """Share of the page that neither map nor crops take, with so many crops in a row."""
    width, height = gallery_size(galleries[0].texts, columns)
    map_width, body = _map_beside(aspect, (width, len(galleries) * (height + _HEADER_IN)))
    crops = sum(len(one.texts) for one in galleries) * SIDE_IN**2
    return 1 - (map_width**2 * aspect + crops) / ((map_width + width) * body)


def embedded_um(table: AnnData, key: str | None) -> float | None:
    """Size in µm of the crops behind the embeddings in a slot; None (the first that was paired) where not known."""
    embedded = _section.recorded(table, "embed").get(str(key), {})
    return float(embedded["crop_um"]) if "crop_um" in embedded else None


def spot_title(table: AnnData, row: int) -> str:
    """Name of a spot, short enough for a crop's title."""
    return _base.shorten(str(table.obs_names[row]), _NAME_WIDTH)


def _pick_rows(usable: np.ndarray, values: np.ndarray | None, *, n: int, ascending: bool, seed: int) -> np.ndarray:
    if values is None:
        chosen = np.random.default_rng(seed).choice(len(usable), size=min(n, len(usable)), replace=False)
        return usable[np.sort(chosen)]
    known = usable[np.isfinite(values[usable])]
    if not known.size:
        raise DataError("`order_by` has no value for any spot with a crop.")
    order = np.argsort(values[known] if ascending else -values[known], kind="stable")
    return known[order[:n]]
