"""Embedded sections as a library of vectors with facts about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.made_by import MadeBy
from sealst._core.rows import unit_rows
from sealst._errors import DataError, MissingKeyError, OrderError
from sealst._keys import Keys
from sealst._section import Data, Region, sections_of
from sealst._validate import check_embedding, listed, patient_names
from sealst.io import Collection
from sealst.models import SealModel
from sealst.tl._retrieve.compared import search_readout

Sections: TypeAlias = Data | Sequence[Data] | Collection

OBS_NAME, X_UM, Y_UM = "obs_name", "x_um", "y_um"
#: what is known of every spot, in the order of the columns
FACTS = (Keys.SECTION, OBS_NAME, Keys.PATIENT, Keys.ORGAN, Keys.TECHNOLOGY, X_UM, Y_UM)


@dataclass(frozen=True)
class Sheet:
    """The embedded spots of one section."""

    section: str
    #: unit vectors, float32 (n, d)
    vectors: np.ndarray
    #: mean of the unit vectors, float64 (d,)
    mean: np.ndarray
    #: length of every unit vector minus that mean, float32 (n,)
    spread: np.ndarray
    #: columns `FACTS` and those asked for
    facts: pd.DataFrame
    #: what made the embeddings
    made_by: MadeBy
    #: predictions in the programs of a readout, float64 (n, programs), and which readout; None without a model that has
    programs: np.ndarray | None = None
    readout: str | None = None


def provenance(data: Data, table: AnnData, regions: Sequence[Region], key: str) -> dict[str, Any]:
    """What made the embeddings in a slot; raises when there are none, or the crops have changed since."""
    hint = embed_hint(key)
    if key not in table.obsm:
        raise OrderError(f"No embeddings: {key!r} not found in `.obsm`; found: {listed(table.obsm)}. {hint}")
    entry = _section.recorded(table, "embed").get(key)
    if entry is None or "model" not in entry:
        raise OrderError(
            f"`.obsm[{key!r}]` was made by an unknown model, or by several. {hint} `anndata.concat` drops what is "
            'known of its tables; tables of one model are joined with `anndata.concat(..., uns_merge="unique")`.'
        )
    for one in regions:
        if "crops" in entry and not _section.same_crops(table, one, entry["crops"].get(one.name), data):
            raise OrderError(
                f"`.obsm[{key!r}]` was made from other crops of {one.name!r} than the present ones. {hint}"
            )
    return dict(entry)


def embed_hint(key: str) -> str:
    """How embeddings get into a slot."""
    return "Run `sl.tl.embed(sdata, model)` first" + ("." if key == Keys.EMBEDDING else f" (`key_added={key!r}`).")


def positions_um(table: AnnData, region: Region) -> np.ndarray:
    """Positions of a region's rows in µm."""
    if Keys.SPATIAL not in table.obsm:
        raise MissingKeyError(
            f"`suppress_um` needs positions: {Keys.SPATIAL!r} not found in `.obsm`; found: {listed(table.obsm)}."
        )
    um = float(_section.crop_definition(table, region)["um_per_unit"])
    return np.asarray(table.obsm[Keys.SPATIAL], dtype=float)[region.rows, :2] * um


def read_sheets(
    sections: Sections,
    *,
    key: str,
    table_key: str,
    columns: Sequence[str],
    model: SealModel | None = None,
    readout: str | None = None,
) -> Iterator[Sheet]:
    """Sections one by one; of a collection none is held once its sheet is made.

    With `model` vectors lie in the space that it shares between images and expression, and predictions come with them:
    all by one readout, `readout`, or else the one by which the first section would be searched.
    """
    items = [sections] if isinstance(sections, SpatialData | AnnData) else sections
    # A sequence of any kind is not unrolled: it may make or open its sections as they are asked for.
    items = items if isinstance(items, Sequence) else list(items)
    if not items:
        raise DataError("`sections` is empty; pass at least one embedded section.")
    # By `map`: a variable of a loop would keep a section while the next one is opened.
    decided: list[str | None] = [] if readout is None else [readout]
    sheets_of = partial(_sheets_of, key=key, table_key=table_key, columns=columns, model=model, decided=decided)
    yield from chain.from_iterable(map(sheets_of, items))


def _sheets_of(
    data: Data,
    key: str,
    table_key: str,
    columns: Sequence[str],
    model: SealModel | None,
    decided: list[str | None],
) -> list[Sheet]:
    table = _section.get_table(data, table_key)
    regions = sections_of(table)
    try:
        entry = provenance(data, table, regions, key)
    except OrderError as error:
        raise OrderError(f"Section {regions[0].section!r}: {error}") from error
    made_by = MadeBy.of(entry)
    if made_by is None:
        raise OrderError(f"Section {regions[0].section!r}: `.obsm[{key!r}]` names no model. {embed_hint(key)}")
    if model is not None and made_by.model != model.fingerprint:
        raise OrderError(
            f"Section {regions[0].section!r}: `.obsm[{key!r}]` was made by {made_by.model!r}, `model` is "
            f"{model.fingerprint!r}. {embed_hint(key)}"
        )
    embedding = np.asarray(table.obsm[key])
    if embedding.ndim != 2:
        raise DataError(f"`.obsm[{key!r}]` must be (n_obs, dim), found {embedding.shape}. {embed_hint(key)}")
    check_embedding(embedding, where=f"`.obsm[{key!r}]` of section {regions[0].section!r}")
    if not decided:
        decided.append(None if model is None else search_readout(data, table, model, key))
    readout = decided[0]
    sheets = []
    for region in regions:
        z = embedding[region.rows].astype(np.float64)
        known = np.isfinite(z).all(axis=1) & (z != 0).any(axis=1)
        if not known.any():
            raise DataError(f"No spot of section {region.section!r} has an embedding; see `.obs['crop_reason']`.")
        unit = unit_rows(z[known] if model is None else model.shared_images(z[known]).astype(np.float64))
        mean = unit.mean(axis=0)
        spread = np.linalg.norm(unit - mean, axis=1).astype(np.float32)
        facts = _facts(table, region, columns)[known].reset_index(drop=True)
        programs = None
        if model is not None and readout is not None:
            xy = _section.centres_um(data, table, region)[known]
            if not np.isfinite(xy).all() and readout != model.crop_search_readout:
                raise DataError(
                    f"Predictions by {readout!r}, as of the first section of the index, need the place of every spot, "
                    f"and `.obsm[{Keys.SPATIAL!r}]` of section {region.section!r} has gaps or no scale. Begin with "
                    "this section, which takes a readout of the crop alone for all, or leave out `model`."
                )
            programs = model.image_programs(z[known], readout=readout, xy=xy)
        sheets.append(Sheet(region.section, unit.astype(np.float32), mean, spread, facts, made_by, programs, readout))
    return sheets


def _facts(table: AnnData, region: Region, columns: Sequence[str]) -> pd.DataFrame:
    obs = table.obs.iloc[region.rows]
    if missing := [name for name in columns if name not in obs]:
        raise MissingKeyError(
            f"`columns`: {listed(missing)} not found in `.obs` of section {region.section!r}; found: {listed(obs)}."
        )
    texts = {name: obs[name].astype(str) if name in obs else "" for name in (Keys.ORGAN, Keys.TECHNOLOGY)}
    patient = patient_names(obs[Keys.PATIENT]).fillna("") if Keys.PATIENT in obs else region.section
    located = Keys.SPATIAL in table.obsm and _section.has_crops(table, region)
    xy = positions_um(table, region) if located else np.full((len(obs), 2), np.nan)
    named = {Keys.SECTION: region.section, OBS_NAME: obs.index.astype(str), Keys.PATIENT: patient}
    found = pd.DataFrame(named | texts, index=obs.index).assign(**{X_UM: xy[:, 0], Y_UM: xy[:, 1]})
    further = [name for name in columns if name not in FACTS]
    # Whole columns alike in every section: numbers as float64, all else as text.
    numbers = {name: pd.api.types.is_numeric_dtype(obs[name]) and obs[name].dtype != bool for name in further}
    return found.assign(**{n: obs[n].astype("float64" if numbers[n] else str) for n in further})
