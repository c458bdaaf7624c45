"""Embeddings of crops and of expression profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.device import resolve_device
from sealst._core.made_by import MadeBy
from sealst._core.space.views import first_and_mean
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Data, PairedTable, Region, for_writing
from sealst._validate import check_choice, check_slot
from sealst.io import Collection
from sealst.models import Encoder, SealModel
from sealst.models._encoders.encoder import base_name
from sealst.models._novelty import Novelty
from sealst.tl._embed.inputs import resolved, views_of
from sealst.tl._embed.novelty import Novel, novel_sections, novelty_key, tell, watched, write_novelty
from sealst.tl._fine.cells import embed_cells

#: what is embedded unless an element of cells is named
SPOTS = "spots"

#: an embedding, its provenance, and how unlike the model's training it is, where that is known
Made: TypeAlias = tuple[np.ndarray, dict[str, Any], Novel | None]


@documented
def embed(
    sdata: SpatialData | Collection,
    model: SealModel | Encoder | str,
    *,
    modality: str = "image",
    at: str = SPOTS,
    surroundings_um: float = 50.0,
    pool: str | None = None,
    pretrained: bool = True,
    crop_um: float | None = None,
    views: int | str = "auto",
    key_added: str | None = None,
    image_key: str | None = None,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    device: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> Data | None:
    """Embed every spot's crop (or its expression), or every cell, and write the embeddings into the table.

    Parameters
    ----------
    sdata
        Section(s) with crops, see `sealst.pp.pair_crops`. Of a `sealst.io.Collection` one section after the other is
        opened, embedded and saved.
    model
        A SEAL model, or an encoder to use as it is, or its name: a key of `sealst.models.list_encoders`, a timm model
        (also convolutional) or ``"local-dir:<folder>"``, see `sealst.models.build_encoder`.
    modality
        ``"image"``, or ``"gene"`` for the embedding of the measured expression (needs `sealst.pp.normalize`).
    at
        ``"spots"``, or the name of an element that holds cells, of any segmentation: shapes (polygons or circles),
        points, or labels. An embedding of a cell is the mean of the encoder's patch tokens under it (of a point the
        token that it lies in), and beside it the mean of those around it: twice the encoder's width, see
        `sealst.tl.token_map`. A model's adapter has its part in it, what it learned of pooled crops has not.
    surroundings_um
        With cells: width in µm of the disc around each cell's centre that the second half is the mean of.
    pool, pretrained
        For an encoder given by name: how tokens become one vector (default: the encoder's own way, see
        `sealst.models.build_encoder`), and whether to load weights.
    crop_um
        For an encoder: which of the paired crop sizes to embed, in µm; default the first. Cells need no paired crops.
        A SEAL model takes the size that it was trained on.
    views
        Over how many flips and rotations of each crop embeddings are averaged: 1 (the crop as it is) to 8. ``"auto"``
        is 8 for spots, 1 for cells and 1 for tiles of slides, which have no expression. Each view is a forward pass.
    key_added
        Slot in ``.obsm``; default ``"X_seal"`` for images, ``"X_seal_gene"`` for expression.
    image_key
        With cells: the H&E image, by default that of the table's region, or the only one. Spots have theirs by pairing.
    %(region)s
    %(table_key)s
    device
        Device; default the model's own. On CUDA devices an encoder runs in the precision of its published users
        (`spec.precision`), elsewhere in float32.
    %(progress)s
    copy
        Whether to return a copy of `sdata` with the result, in place of writing to it.

    Returns
    -------
    None, or with ``copy=True`` a copy of `sdata`; in the table, which of cells is the one that annotates them, or a new
    one without genes, ``"<at>_table"``

    - ``.obsm["X_seal" | key_added]``: float32 (n_obs, dim), not normalised; NaN for spots without a crop. Rows of
      other regions keep what the same model wrote
    - ``.obsm["X_seal_fields" | key_added + "_fields"]``: with a model that was trained with several sizes of crops
      (``model.fields``), of spots, the embeddings of all these squares side by side, float32 (n_obs, fields * dim)
    - ``.obs["seal_novelty" | key_added + "_novelty"]``: of images, with a SEAL model that knows what its training
      looked like, how unlike it each spot is: float64 (n_obs,), percentile (0 to 1) among the spots of held-out
      training patients, NaN without a crop. The log has a line for each section, and warns where one lies beyond
    - ``.uns["sealst"]["embed"][key]``: model fingerprint or encoder record, modality, views, crops; ``"novelty"`` of
      sections

    Raises
    ------
    OrderError
        When crops (or, for genes, layers) are missing.
    DataError
        When the crops are not those the model was trained on; when no cell lies on the picture, or the encoder has no
        patch tokens.
    MissingKeyError
        When there is no element `at`.

    Examples
    --------
    >>> sl.tl.embed(sdata, model)  # doctest: +SKIP
    >>> sc.pp.neighbors(sdata.tables["table"], use_rep="X_seal")  # doctest: +SKIP
    >>> sl.tl.embed(sdata, model, at="cell_boundaries")  # doctest: +SKIP
    """
    check_choice("modality", modality, ("image", "gene"))
    if key_added is not None:
        check_slot(key_added)
    if isinstance(sdata, Collection):
        if copy:
            raise DataError("`copy=True` works on one section; embeddings of a collection are saved to its stores.")
        options: dict[str, Any] = {"modality": modality, "pool": pool, "pretrained": pretrained, "crop_um": crop_um}
        options |= {"key_added": key_added, "region": region, "table_key": table_key, "device": device, "views": views}
        options |= {"at": at, "surroundings_um": surroundings_um, "image_key": image_key}
        sdata.apply(lambda one: embed(one, model, progress=progress, **options))
        return None
    if at != SPOTS:
        if modality != "image":
            raise DataError("Cells are embedded by the picture; leave out `modality`, or `at`.")
        made_of = resolved(model, pool=pool, pretrained=pretrained, device=device)
        where: dict[str, Any] = {"crop_um": crop_um, "region": region, "table_key": table_key}
        where["image_key"] = image_key
        given, _ = embed_cells(
            sdata, made_of, at, surroundings_um=surroundings_um, views=views, key=key_added or Keys.EMBEDDING,
            show=progress, copy=copy, **where,
        )  # fmt: skip
        return given if copy else None
    key = key_added or (Keys.EMBEDDING if modality == "image" else Keys.GENE_EMBEDDING)
    novel: Novel | None = None
    if modality == "gene":
        if not isinstance(model, SealModel):
            raise DataError("Embeddings of expression need a SEAL model; an encoder only sees images.")
        if device is not None:
            model.to(resolve_device(device))
        table = _section.get_table(sdata, table_key)
        rows = np.concatenate([one.rows for one in _section.regions_of(table, region)])
        embedding = np.full((table.n_obs, model.dim), np.nan, dtype=np.float32)
        embedding[rows] = model.embed_genes(_section.expression(table, model.panel, rows))
        entry = {"model": model.fingerprint, "modality": "gene", "layer": model.panel.layer}
        before = _section.recorded(table, "embed").get(key)
    else:
        trained_on = model.crop if isinstance(model, SealModel) else None
        paired = _section.paired_table(sdata, table_key, region=region, crop_um=crop_um, trained_on=trained_on)
        table = paired.table
        before, options = paired.embedded.get(key), {"pool": pool, "pretrained": pretrained, "device": device}
        embedding, entry, novel = embed_watched(paired, model, views=views, show=progress, **options)
    made: dict[str, Made] = {key: (*merged(table, key, embedding, entry, before), novel)}
    if modality == "image" and isinstance(model, SealModel) and model.fields and table.n_vars:
        slot = fields_key(key)
        fields, facts = embed_fields(paired, model, embedding, entry, views=views, show=progress)
        made[slot] = (*merged(table, slot, fields, facts, _section.recorded(table, "embed").get(slot)), None)
    given, target = for_writing(sdata, table_key, copy=copy)
    for slot, found in made.items():
        write_embedding(target, slot, *found)
    return given if copy else None


def embed_crops(
    paired: PairedTable,
    model: SealModel | Encoder | str,
    *,
    views: int | str = "auto",
    pool: str | None = None,
    pretrained: bool = True,
    device: str | None = None,
    show: bool | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Image embeddings (n_obs, dim), NaN where there is no crop, and their provenance."""
    options: dict[str, Any] = {"views": views, "pool": pool, "pretrained": pretrained, "device": device, "show": show}
    return _embedded(paired, model, None, **options)[:2]


def embed_watched(paired: PairedTable, model: SealModel | Encoder | str, **options: Any) -> Made:
    """What `embed_crops` returns, and how unlike the model's training the crops are, where it knows of that."""
    return _embedded(paired, model, watched(model), **options)


def _embedded(
    paired: PairedTable,
    model: SealModel | Encoder | str,
    known: Novelty | None,
    *,
    views: int | str,
    show: bool | None,
    pool: str | None = None,
    pretrained: bool = True,
    device: str | None = None,
) -> Made:
    if not any(one.usable.any() for one in paired.sections):
        raise DataError("No spot has a usable crop; `.obs['crop_reason']` says why.")
    made = resolved(model, pool=pool, pretrained=pretrained, device=device)
    encoder = made.encoder if isinstance(made, SealModel) else made
    if isinstance(made, SealModel):
        entry: dict[str, Any] = {"model": made.fingerprint}
    else:
        name = model if isinstance(model, str) else encoder.spec.key
        entry = {"model": name, "fingerprint": base_name(encoder), "pool": encoder.spec.pool}
    n = views_of(views, paired.table)
    if n > 1:
        n_crops = sum(int(one.usable.sum()) for one in paired.sections)
        logger.info("averaging %d views of %d crops; `views=1` takes 1/%d of the time", n, n_crops, n)
    dim = encoder.spec.dim

    def features(crops: np.ndarray) -> np.ndarray:
        first, mean = first_and_mean(encoder.embed, crops, n)
        return mean if known is None else np.hstack([mean, known.log_distances(first, crops)])

    rows, values, crops = _section.map_crops(paired.sections, features, show=show, desc="embedding crops")
    out = np.full((paired.table.n_obs, dim), np.nan, dtype=np.float32)
    out[rows] = values[:, :dim]
    novel = None
    if known is not None:
        regions = [one.region for one in paired.sections]
        novel = novel_sections(known, len(out), regions, rows, values[:, dim:])
    return out, entry | {"modality": "image", "crop_um": paired.size.crop_um, "views": n, "crops": crops}, novel


def fields_key(key: str) -> str:
    """Slot of the embeddings of several fields of view, beside that of the crop's."""
    return Keys.FIELDS if key == Keys.EMBEDDING else Keys.related(key, "fields")


def embed_fields(
    paired: PairedTable,
    model: SealModel,
    embedding: np.ndarray,
    entry: dict[str, Any],
    *,
    views: int | str,
    show: bool | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Embeddings (n_obs, fields * dim) of all fields of view that the model's readout sees, and their provenance.

    Those of the first are there already, with theirs.
    """
    parts = [embedding]
    for um in model.fields[1:]:
        logger.info("embedding the field of %g µm", um)
        parts.append(embed_crops(paired.widened(um), model, views=views, show=show)[0])
    fields = np.hstack(parts)
    # The first may hold what an earlier call made of other regions.
    fields[~np.isfinite(fields).all(axis=1)] = np.nan
    own = {name: value for name, value in entry.items() if name != "novelty"}
    return fields, own | {"fields_um": list(model.fields)}


def write_embedding(
    table: AnnData, key: str, embedding: np.ndarray, entry: dict[str, Any], novel: Novel | None
) -> None:
    """Write an embedding and its provenance, and how unlike the model's training it is."""
    # Without an embedding there is none of it, either.
    before = _section.novelty_of(table, key) if key in table.obsm else None
    table.obsm[key] = embedding
    _section.record_slot(table, "embed", key, entry | write_novelty(table, key, novel, before))
    embedded = int(np.isfinite(embedding[:, 0]).sum())
    logger.info("Wrote .obsm[%r]: %d spots, %d dimensions", key, embedded, embedding.shape[1])
    if embedded < len(embedding):
        logger.info(
            "%d spots have no usable crop and are NaN; leave them out for scanpy: `table[table.obs['crop_ok']].copy()`",
            len(embedding) - embedded,
        )
    if novel is not None:
        tell(novel, novelty_key(key))


def merged(
    table: AnnData, key: str, embedding: np.ndarray, entry: dict[str, Any], before: dict[str, Any] | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Keep what the same model wrote for other regions (`before` is its record): they can be embedded in turn."""
    if before is None or key not in table.obsm or table.obsm[key].shape != embedding.shape:
        return embedding, entry
    was, now = MadeBy.of(before), MadeBy.of(entry)
    if was is None or now is None or now.differences(was):
        return embedding, entry
    if "crops" not in entry:
        kept = np.isnan(embedding).all(axis=1)
        return np.where(kept[:, None], np.asarray(table.obsm[key]), embedding), entry
    crops = dict(entry["crops"])
    for region in _section.unchanged_regions(table, before.get("crops", {})):
        if region.name not in entry["crops"]:
            embedding[region.rows] = table.obsm[key][region.rows]
            crops[region.name] = before["crops"][region.name]
    return embedding, entry | {"crops": crops}


def stored_embedding(
    data: Data,
    table: AnnData,
    regions: Sequence[Region],
    model: SealModel,
    views: int | str,
    key: str = Keys.EMBEDDING,
) -> np.ndarray | None:
    """``X_seal`` when this very model made it from the present crops of these regions (and of `views`), else None.

    Or, by its `key`, what it made of several fields of view.
    """
    entry = _section.recorded(table, "embed").get(key)
    if entry is None or key not in table.obsm:
        return None
    valid = _section.unchanged_regions(table, entry.get("crops", {}), data)
    if entry["model"] != model.fingerprint or not {r.name for r in regions} <= {r.name for r in valid}:
        return None
    if views != "auto" and entry.get("views", 1) != views_of(views, table):
        return None
    stored = np.asarray(table.obsm[key], dtype=np.float32)
    usable = table.obs[Keys.CROP_OK].to_numpy(dtype=bool)
    if any(np.isnan(stored[region.rows[usable[region.rows]]]).any() for region in regions):
        # Crops that were set aside when the embedding was made.
        return None
    out = np.full(stored.shape, np.nan, dtype=np.float32)
    for region in valid:
        rows = region.rows[usable[region.rows]]
        out[rows] = stored[rows]
    return out
