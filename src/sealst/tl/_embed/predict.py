"""Expression (and pathway activity) predicted from the image."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.device import resolve_device
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Data, PairedTable, for_writing
from sealst._validate import as_columns, check_slot
from sealst.models import SealModel
from sealst.tl._embed.embed import SPOTS, Made, embed_fields, embed_watched, merged, stored_embedding, write_embedding
from sealst.tl._embed.inputs import check_model, views_of
from sealst.tl._embed.trust import (
    LOCAL,
    believed,
    better_genes,
    check_views,
    intervals_for,
    reliability_entry,
    tell,
    write_limits,
)
from sealst.tl._fine.cells import local_head, one_region, predict_cells
from sealst.tl._fine.maps import predict_map
from sealst.tl._pathways.pathways import read_net, score_sets, write_pathways


@documented
def predict(
    sdata: SpatialData,
    model: SealModel,
    *,
    genes: Sequence[str] | None = None,
    at: str = SPOTS,
    resolution_um: float | None = None,
    path: str | PathLike[str] | None = None,
    embedding_key: str | None = None,
    surroundings_um: float = 50.0,
    net: Any = None,
    method: str = "ulm",
    readout: str | None = None,
    min_reliability: float | None = None,
    intervals: float | None = None,
    views: int | str = "auto",
    key_added: str = Keys.EXPRESSION,
    image_key: str | None = None,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    device: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> Data | None:
    """Predict gene expression from H&E alone and write it into the table.

    Embeds the crops first, or uses ``.obsm["X_seal"]`` when this model made it from the same crops.

    Parameters
    ----------
    sdata
        Section(s) with crops, see `sealst.pp.pair_crops`. Measured expression is not used.
    model
        A SEAL model.
    genes
        Genes to write; by default the whole panel. Maps need some.
    at
        ``"spots"``, or the name of an element that holds cells (shapes, points or labels), as for `sealst.tl.embed`:
        the expression of each cell, by a model that has learned that of single patches, see `sealst.tl.fit_local`.
    resolution_um
        Write a map in place of the table: bins of this many µm across the whole picture (on tissue alone, where
        `sealst.pp.tissue` has run), no smaller than the encoder's patches; needs `sealst.tl.fit_local`, too.
    path
        With `resolution_um`: new zarr store for the map, which is read from there lazily. Memory is then that of a row
        of crops and of a few rows of bins, whatever the height of the picture; what a call that was cut off left there
        is gone on with. Without a path the map is in memory, up to 2 GiB.
    embedding_key, surroundings_um
        With `at`: slot for embeddings of the cells (``"X_seal"``), as `sealst.tl.embed` makes them, of the same passes
        of the encoder; by default there are none.
    net
        Gene sets; when given, pathway activity is scored on the whole predicted panel too, see `sealst.tl.pathways`.
    method
        decoupler method for `net`.
    readout
        One of ``model.readouts``: ``"head"``, the network that was trained with the encoder, or what was fitted behind
        it, on the crop alone (``"ridge"``), beside what lies around it (``"surroundings"``) or on several fields of
        view (``"fields"``, of a model that was trained with several sizes of crops). Default the first, which
        predicted held-out training sections best; for tiles of slides, which have no expression, the first that sees
        the crop alone: tiles lie closer to each other than the spots it was fitted to, and further fields take a pass
        of the encoder each.
    min_reliability
        Leave out genes whose Pearson on held-out patients is lower, see `sealst.models.Reliability`; gene sets are
        then scored on the others alone.
    intervals
        Share of spots of further patients that limits beside the predictions are to hold: 0.5, 0.8, 0.9 or 0.95. Of
        models that were cross-fitted on three patients or more, for the readout that predicts by default and means over
        eight views; not for tiles of slides.
    views
        Over how many flips and rotations of each crop embeddings are averaged, 1 to 8. ``"auto"`` takes the embeddings
        that are there, else it is 8 for spots and 1 for tiles of slides.
    key_added
        Slot in ``.obsm``; of a map the name of the element, by default ``"<image>_expression"``.
    image_key
        With `at` and `resolution_um`: the H&E image, by default that of the table's region, or the only one.
    region, table_key
        Region(s) to embed where that is still to be done, by default all; and the table to write to. Regions that this
        model embedded before are predicted too.
    %(model.device)s
    %(progress)s
    copy
        Whether to return a copy of `sdata` with the result, in place of writing to it.

    Returns
    -------
    None, or with ``copy=True`` a copy of `sdata`; in the table

    - ``.obsm["seal_expression" | key_added]``: DataFrame (n_obs, genes), float32, log1p-CP10k, named genes; NaN for
      spots without a crop. ``/`` in a gene's name becomes ``_`` in that of its column, so that the table can be saved
    - ``.obsm["seal_expression_low" | key_added + "_low"]``, ``.obsm["seal_expression_high" | key_added + "_high"]``:
      the same, limits between which the measured expression of a single spot lies as often as `intervals` says, with
      `intervals`; NaN for genes of which that is unknown. Without, those of an earlier call are removed
    - ``.obsm["X_seal"]``: the embeddings, as `sealst.tl.embed` writes them, and ``.obs["seal_novelty"]``, how unlike
      the training each spot is; with the readout ``"fields"`` also ``.obsm["X_seal_fields"]``
    - ``.obsm["seal_pathways" | key_added + "_pathways"]``: DataFrame (n_obs, pathways), with `net`
    - with `at`, the expression in the table that annotates the cells, or in a new one without genes, ``"<at>_table"``,
      and with `embedding_key` the embeddings
    - with `resolution_um` nothing, but ``sdata.images["<image>_expression" | key_added]``: (genes, rows, columns),
      float32, log1p-CP10k, channels named by genes, in the coordinate systems of the picture; 0 where nothing was
      read. Before the logarithm values are additive: their mean over a spot is what is predicted of it
    - ``.uns["sealst"]["predict"][key]``: model fingerprint, readout, unit, layer, and ``"reliability"``: for every
      column ``"pearson"`` on held-out patients and whether that is ``"better_than_chance"``; or ``"unknown"``; with
      `intervals` ``"intervals"``: ``"coverage"``, ``"held_out"``, ``"n_held_out"``

    Raises
    ------
    PanelError
        When a gene of `genes` is not in the model's panel; or `genes` or `net` is given and the panel's genes have no
        names.
    DataError
        When no spot has a usable crop, no gene reaches `min_reliability`, or the model's reliability or its intervals
        are unknown and asked for.

    Notes
    -----
    Levels are those of the training sections: what differs between whole sections (depth, stain, scanner) is not
    predicted, see `sealst.tl.finetune`. The readout ``"surroundings"`` sees the section's other crops, too: where some
    are set aside, predictions of their neighbours change a little. The head was trained on the layer named in
    ``model.panel.layer``; with the spot-context layer (default) its predictions are smoother than the measured values
    of single spots.

    Examples
    --------
    >>> sl.tl.predict(sdata, model, genes=["ERBB2", "COL1A1"])  # doctest: +SKIP
    """
    check_model(model)
    check_slot(key_added)
    if at != SPOTS or resolution_um is not None:
        return _predict_fine(
            sdata, model, genes, at, resolution_um, path=path, embedding_key=embedding_key,
            surroundings_um=surroundings_um, min_reliability=min_reliability, views=views, key=key_added,
            image_key=image_key, region=region, table_key=table_key, device=device, show=progress, copy=copy,
            refused={"net": net, "readout": readout, "intervals": intervals},
        )  # fmt: skip
    if path is not None or embedding_key is not None:
        raise DataError("`path` is for maps (`resolution_um`), `embedding_key` for cells (`at`); leave them out.")
    # Before any crop is embedded: there may be no readout of that name.
    table = _section.get_table(sdata, table_key)
    readout = readout or default_readout(model, table)
    layer = model.target_of(readout)
    limited = intervals_for(model, table, readout, intervals)
    check_views(limited, views_of(views, table))
    regions = _section.regions_of(table, region)
    sets = None
    if net is not None:
        model.panel.require_names()
        # Before any crop is read, too: a resource may not be at hand.
        sets = read_net(net)
    wanted = believed(model, (model.panel if genes is None else model.panel.subset(genes)).genes, min_reliability)
    columns = as_columns(wanted, what="Genes")
    slot = Keys.FIELDS if model.fields_of(readout) else Keys.EMBEDDING
    made: dict[str, Made] = {}
    embedding = stored_embedding(sdata, table, regions, model, views, slot)
    if device is not None:
        model.to(resolve_device(device))
    if embedding is None:
        paired = _section.paired_table(sdata, table_key, region=region, trained_on=model.crop)
        made = _embedded(paired, model, slot, views=views, show=progress)
        embedding = made[slot][0]
    # "auto" takes embeddings that are there, or their views, as they are.
    entry = made[slot][1] if made else _section.recorded(table, "embed")[slot]
    check_views(limited, int(entry.get("views", 1)))
    # All spots that this model has embedded, so that regions can be predicted one by one.
    if not np.isfinite(embedding).all(axis=1).any():
        raise DataError("No spot has a usable crop; see `.obs['crop_reason']`.")
    values = predicted_values(sdata, table, model, embedding, readout)
    expression = pd.DataFrame(values, index=table.obs_names, columns=pd.Index(model.panel.genes))
    limits = None
    if limited is not None and intervals is not None:
        sides = (pd.DataFrame(side, expression.index, expression.columns) for side in limited.limits(values, intervals))
        limits = [side[wanted].set_axis(columns, axis=1) for side in sides]
    pathways = None
    if sets is not None:
        kept = believed(model, model.panel.genes, min_reliability)
        scored = expression if len(kept) == len(model.panel) else expression[kept]
        pathways = score_sets(scored, sets, method=method, believed=better_genes(model))
    given, target = for_writing(sdata, table_key, copy=copy)
    for key, found in made.items():
        write_embedding(target, key, *found)
    target.obsm[key_added] = expression[wanted].set_axis(columns, axis=1)
    facts: dict[str, Any] = {"model": model.fingerprint, "readout": readout, "unit": "log1p-CP10k"}
    facts |= {"layer": layer, "reliability": reliability_entry(model, wanted)}
    if columns != wanted:
        facts["genes"] = np.array(wanted, dtype=str)
    if limited is not None:
        facts["intervals"] = {"coverage": intervals, "held_out": limited.held_out, "n_held_out": limited.n_held_out}
    _section.record_slot(target, "predict", key_added, facts)
    logger.info("Wrote .obsm[%r]: %d genes", key_added, len(wanted))
    write_limits(target, key_added, limits, facts)
    tell(model, wanted, readout)
    if pathways is not None:
        write_pathways(target, Keys.pathways(key_added), pathways, source="predicted", slot=key_added)
    return given if copy else None


def _predict_fine(
    sdata: SpatialData,
    model: SealModel,
    genes: Sequence[str] | None,
    at: str,
    resolution_um: float | None,
    *,
    path: str | PathLike[str] | None,
    embedding_key: str | None,
    surroundings_um: float,
    min_reliability: float | None,
    views: int | str,
    key: str,
    image_key: str | None,
    region: str | Sequence[str] | None,
    table_key: str,
    device: str | None,
    show: bool | None,
    copy: bool,
    refused: dict[str, Any],
) -> Data | None:
    """What `predict` does of cells and of maps."""
    if given := [name for name, value in refused.items() if value is not None]:
        raise DataError(f"`{given[0]}` is for spots; leave it out with `at` and `resolution_um`.")
    if (resolution_um is None and path is not None) or (resolution_um is not None and embedding_key is not None):
        raise DataError("`path` is for maps (`resolution_um`), `embedding_key` for cells (`at`); leave the other out.")
    if embedding_key is not None:
        check_slot(embedding_key, argument="embedding_key")
        if embedding_key == key:
            raise DataError(f"`embedding_key` and `key_added` are both {key!r}; they are slots of one table.")
    _section.needs_pixels(sdata)
    local_head(model)
    asked = (model.panel if genes is None else model.panel.subset(genes)).genes
    wanted = believed(model, asked, min_reliability, readout=LOCAL)
    if device is not None:
        model.to(resolve_device(device))
    common: dict[str, Any] = {"views": views, "region": one_region(region), "table_key": table_key, "show": show}
    common["image_key"] = image_key
    common["facts"] = {"model": model.fingerprint, "readout": LOCAL, "unit": "log1p-CP10k"}
    common["facts"]["reliability"] = reliability_entry(model, wanted, readout=LOCAL)
    found: Data | None = None
    if resolution_um is None:
        common |= {"embedding_key": embedding_key, "surroundings_um": surroundings_um}
        found, _ = predict_cells(sdata, model, at, wanted, key=key, copy=copy, **common)
    elif at != SPOTS or copy or genes is None:
        raise DataError(
            "Maps are of the genes that are named and of the whole picture, and are added to the SpatialData itself: "
            "pass `genes`, and leave out `at` and `copy`."
        )
    else:
        name = None if key == Keys.EXPRESSION else key
        predict_map(sdata, model, wanted, resolution_um, path=path, key=name, **common)
    tell(model, wanted, LOCAL)
    return found if copy else None


def default_readout(model: SealModel, table: AnnData) -> str:
    """What predicts unless another readout is asked for: for tiles without expression, one that sees the crop alone."""
    return model.readouts[0] if table.n_vars else model.crop_readout


def predicted_values(
    sdata: SpatialData, table: AnnData, model: SealModel, embedding: np.ndarray, readout: str
) -> np.ndarray:
    """Expression of the whole panel (n_obs, genes), section by section; NaN where there is no embedding."""
    values = np.full((table.n_obs, len(model.panel)), np.nan, dtype=np.float32)
    for one in _section.sections_of(table):
        own = np.isfinite(embedding[one.rows]).all(axis=1)
        if own.any():
            xy = _section.centres_um(sdata, table, one)[own]
            values[one.rows[own]] = model.predict_expression(embedding[one.rows[own]], readout=readout, xy=xy)
    return values


def _embedded(
    paired: PairedTable, model: SealModel, slot: str, *, views: int | str, show: bool | None
) -> dict[str, Made]:
    """Embeddings and their provenance by slot: of the crops, and, where `slot` asks for them, of several fields."""
    table, recorded = paired.table, paired.embedded
    regions = [one.region for one in paired.sections]
    stored = stored_embedding(paired.sections[0].sdata, table, regions, model, views)
    found: dict[str, Made] = {}
    if stored is None:
        embedding, entry, novel = embed_watched(paired, model, views=views, show=show)
        before = recorded.get(Keys.EMBEDDING)
        found[Keys.EMBEDDING] = (*merged(table, Keys.EMBEDDING, embedding, entry, before), novel)
    else:
        embedding, entry = stored, recorded[Keys.EMBEDDING]
        views = int(entry.get("views", 1)) if views == "auto" else views
    if slot == Keys.FIELDS:
        fields, facts = embed_fields(paired, model, embedding, entry, views=views, show=show)
        found[slot] = (*merged(table, slot, fields, facts, recorded.get(slot)), None)
    return found
