"""What a query found: where on the tissue, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._validate import check_positive
from sealst.pl import _base
from sealst.pl._crops import Crop, draw_gallery, gallery_size, load_crops, spot_title
from sealst.pl._tissue import MapStyle, Panel, Tissue, draw_group, read_tissue

_CROP_COLUMNS = 4
#: inches: header of a gallery, colour bar, narrowest and widest map, tallest map
_HEADER_IN, _BAR_IN, _MAP_IN, _TALLEST_IN = 0.18, 0.95, (3.6, 5.6), 7.0


def retrieval(
    sdata: SpatialData,
    *,
    key: str = Keys.SIMILARITY,
    rank_key: str = Keys.RANK,
    n: int = 8,
    title: str | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    image_alpha: float = 0.6,
    spot_size: float = 1.0,
    region: str | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure:
    """Show what a query found: similarity on the H&E, and the most and least similar crops.

    Parameters
    ----------
    sdata
        Section with the result of a query (`tl.retrieve`) and crops (`pp.pair_crops`).
    key
        ``.obs`` column with the similarity that `tl.retrieve` wrote.
    rank_key
        ``.obs`` column with the rank (1 = most similar); it stands before the similarity in the crops' titles, and is
        left out where absent.
    n
        Most similar, and least similar, crops to show.
    title
        Title of the figure; by default the query that `tl.retrieve` recorded.
    percentiles
        Percentiles of the similarity at which colours saturate.
    cmap
        Colour map of the similarity.
    image_alpha
        Opacity of the H&E, 0 to 1.
    spot_size
        Factor on the spots' true diameter.
    region
        Region to show; needed where the table has several.
    coordinate_system
        System in which spots and image meet.
    table_key
        Table whose rows are the spots.
    save
        File to write, at 150 dpi; its ending picks the format (``.png``, ``.pdf``, …).
    show
        True calls `matplotlib.pyplot.show`; None leaves it to the session (a notebook shows open figures when a cell
        ends); False closes the figure in pyplot, so that only what is returned shows it.

    Returns
    -------
    The Figure: the map on the left, crops on the right.

    Raises
    ------
    OrderError
        When nothing was retrieved, or spots were not paired with crops.
    DataError
        When the table has several regions and none is named, or none of its spots has a similarity.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.retrieval(sdata, n=8, save="hits.png")  # doctest: +SKIP
    """
    _base.require_spatialdata(sdata)
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    check_positive("n", n)
    table = _section.get_table(sdata, table_key)
    one = _base.one_region(table, region)
    similarity = _base.stored_column(table, key, "sl.tl.retrieve(sdata, model, query)")
    usable = _section.crop_boxes(sdata, table, one)[0]
    best, worst = _ends(similarity, usable, n, one.name)
    hits = load_crops(sdata, table, np.concatenate([best, worst]), [one], _crop_um(table, key))
    tissue = read_tissue(sdata, table, one, coordinate_system=coordinate_system)
    values = similarity[one.rows]
    panel = Panel("", values, "similarity", cmap, _base.robust_limits([values], percentiles))

    texts = _titles(table, hits, similarity, rank_key)
    heading = _query(table, key) if title is None else title
    galleries = [("Most similar", hits[: len(best)], texts[: len(best)])]
    galleries += [("Least similar", hits[len(best) :], texts[len(best) :])]
    figure = _draw(tissue, panel, MapStyle(image_alpha, spot_size), galleries=galleries, heading=heading)
    _base.finish(figure, save, show)
    return figure


def _draw(
    tissue: Tissue,
    panel: Panel,
    style: MapStyle,
    *,
    galleries: Sequence[tuple[str, Sequence[Crop], Sequence[str]]],
    heading: str,
) -> Figure:
    width, height = gallery_size(galleries[0][2], _CROP_COLUMNS)
    body = len(galleries) * (height + _HEADER_IN)
    # The map is as tall as the crops beside it, within reason.
    map_width = min(max(body / tissue.aspect, _MAP_IN[0]), _MAP_IN[1], max(body, _TALLEST_IN) / tissue.aspect)
    body = max(body, map_width * tissue.aspect)
    left = map_width + _BAR_IN
    heading = _base.wrap(heading, 0.9 * (left + width), size=_base.TITLE_SIZE + 2)
    top = 0.25 + 0.2 * (heading.count("\n") + 1)
    figure = plt.figure(figsize=(left + width, top + body))
    figure.text(0.5, 1 - 0.12 / (top + body), heading, ha="center", va="top", fontsize=_base.TITLE_SIZE + 2)
    size = (map_width, map_width * tissue.aspect)
    ax = _base.axes_at(figure, 0.1, top + (body - size[1]) / 2, size=size)
    draw_group([ax], tissue, [panel], style)
    for i, (name, hits, texts) in enumerate(galleries):
        y = top + i * (height + _HEADER_IN)
        place = ((left + width / 2) / (left + width), 1 - (y + 0.05) / (top + body))
        figure.text(*place, name, ha="center", va="top", fontsize=_base.TITLE_SIZE, fontweight="bold")
        draw_gallery(figure, left, y + _HEADER_IN, crops=hits, texts=texts, n_cols=_CROP_COLUMNS)
    return figure


def _ends(similarity: np.ndarray, usable: np.ndarray, n: int, region: str) -> tuple[np.ndarray, np.ndarray]:
    known = usable[np.isfinite(similarity[usable])]
    if known.size < 2:
        raise DataError(
            f"{known.size} spot(s) of region {region!r} have a crop and a similarity; at least 2 are needed. "
            "Run `sl.tl.retrieve(sdata, model, query)` on this region."
        )
    order = known[np.argsort(-similarity[known], kind="stable")]
    # In a small section no spot may be both most and least similar.
    n = min(n, len(order) // 2)
    return order[:n], order[::-1][:n]


def _titles(table: AnnData, hits: Sequence[Crop], similarity: np.ndarray, rank_key: str) -> list[str]:
    rank = _base.numeric(table.obs[rank_key], where=f"`.obs[{rank_key!r}]`") if rank_key in table.obs else None
    texts = []
    for crop in hits:
        place = f"#{rank[crop.row]:.0f}  " if rank is not None and np.isfinite(rank[crop.row]) else ""
        texts.append(f"{spot_title(table, crop.row)}\n{place}{_base.number(similarity[crop.row], '.2f')}")
    return texts


def _recorded(table: AnnData, key: str) -> dict[str, Any]:
    # `tl.retrieve` records a query with a prefix of its own beside the default one.
    entry = "retrieve" if key == Keys.SIMILARITY else f"retrieve_{key.removesuffix('_similarity')}"
    return dict(table.uns.get(Keys.UNS, {}).get(entry, {}))


def _crop_um(table: AnnData, key: str) -> float | None:
    """Size of the crops that were searched; None (the first that was paired) where it is not known."""
    embedded = table.uns.get(Keys.UNS, {}).get("embed", {}).get(_recorded(table, key).get("key"), {})
    return None if "crop_um" not in embedded else float(embedded["crop_um"])


def _query(table: AnnData, key: str) -> str:
    stored = _recorded(table, key).get("query")
    return f"Query: {stored}" if isinstance(stored, str) and stored else "Similarity to the query"
