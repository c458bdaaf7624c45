"""What a query found: where on the tissue, and what it looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._validate import whole
from sealst.pl import _base
from sealst.pl._maps.crops import Gallery, draw_beside, embedded_um, load_crops, spot_title
from sealst.pl._maps.tissue import MapStyle, Panel, read_tissue, show_maps


@documented
def retrieval(
    sdata: SpatialData,
    *,
    key: str = Keys.SIMILARITY,
    rank_key: str | None = None,
    n_crops: int = 8,
    title: str | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
    cmap: str = "viridis",
    image_alpha: float = 0.6,
    spot_size: float = 1.0,
    region: str | None = None,
    coordinate_system: str = "global",
    table_key: str = Keys.TABLE,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Show what a query found: similarity on the H&E, and the most and least similar crops.

    The map stands on the left, the crops on the right.

    Parameters
    ----------
    sdata
        Section with the result of a query (`tl.retrieve`) and crops (`pp.pair_crops`).
    key
        ``.obs`` column with the similarity that `tl.retrieve` wrote.
    rank_key
        ``.obs`` column with the rank (1 = most similar), which stands before the similarity in the crops' titles. None
        takes the one that `tl.retrieve` wrote beside `key`, ``<key>_rank``; titles do without where there is none.
    n_crops
        Most similar, and least similar, crops to show; 0 for the map alone.
    title
        Title above the map and its crops; by default the query that `tl.retrieve` recorded.
    %(percentiles)s
    cmap
        Colour map of the similarity.
    %(image_alpha)s
    %(spot_size)s
    %(shown.region)s
    %(coordinate_system)s
    %(table_key)s
    %(map.ax)s
    %(figure)s

    Raises
    ------
    OrderError
        When nothing was retrieved, ranks are missing, or spots were not paired with crops.
    DataError
        When the table has several regions and none is named, or none of its spots has a similarity.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.retrieval(sdata, n_crops=8, save="hits.png")  # doctest: +SKIP
    """
    _base.check_save(save)
    _base.check_map_options(percentiles, image_alpha, spot_size)
    n_crops = whole("n_crops", n_crops, least=0)
    table, one = _base.table_with_region(sdata, table_key, region)
    similarity = _base.stored_column(table, key, "sl.tl.retrieve(sdata, model, query)")
    # Ranks of the query that `key` answers; those of another query would look right and be wrong.
    ranked, rank = Keys.related(key, "rank") if rank_key is None else rank_key, None
    if rank_key is not None or ranked in table.obs:
        rank = _base.stored_column(table, ranked, f"sl.tl.retrieve(sdata, model, query, key_added={key!r})")
    usable = _section.region_crops(sdata, table, one).rows
    known = usable[np.isfinite(similarity[usable])]
    if known.size < 2:
        raise DataError(
            f"{known.size} spot(s) of region {one.name!r} have a crop and a similarity; at least 2 are needed. "
            "Run `sl.tl.retrieve(sdata, model, query)` on this region."
        )
    order = known[np.argsort(-similarity[known], kind="stable")]
    # In a small section no spot may be both most and least similar.
    n = min(n_crops, len(order) // 2)
    best, worst = order[:n], order[::-1][:n]
    _base.check_single(ax, 1 + len(best) + len(worst), how="`n_crops=0`, which is the map alone")
    tissue = read_tissue(sdata, table, one, coordinate_system=coordinate_system)
    values = similarity[one.rows]
    query = _section.recorded(table, "retrieve").get(key, {})
    asked = query.get("query")
    heading = f"Query: {asked}" if isinstance(asked, str) and asked else "Similarity to the query"
    heading = heading if title is None else title
    # Genes by expression are no cosine.
    label = "above the section's mean (SD)" if query.get("by") == "expression" and "weights" in query else "similarity"
    panel = Panel("" if n_crops else heading, values, label, cmap, _base.robust_limits([values], percentiles))
    style = MapStyle(image_alpha, spot_size)
    if not n_crops:
        return show_maps(tissue, [[panel]], per_row=1, style=style, ax=ax, save=save, show=show)
    hits = load_crops(sdata, table, np.concatenate([best, worst]), [one], embedded_um(table, query.get("key")))
    texts = []
    for crop in hits:
        place = f"#{rank[crop.row]:.0f}  " if rank is not None and np.isfinite(rank[crop.row]) else ""
        texts.append(f"{spot_title(table, crop.row)}\n{place}{_base.number(similarity[crop.row], '.2f')}")
    galleries = [Gallery("Most similar", hits[: len(best)], texts[: len(best)])]
    galleries += [Gallery("Least similar", hits[len(best) :], texts[len(best) :])]
    figure = draw_beside(tissue, panel, style, galleries=galleries, heading=heading)
    return _base.finish(figure, ax, save, show)
