"""Is a section like what a model has seen in training? Percentiles of its spots, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._core.scores.novelty import PARTS, most_unlike
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Region
from sealst.models import SealModel
from sealst.models._novelty import Novelty

#: percentile beyond which spots and sections are called unlike
BEYOND = 0.95
#: values of a section, in `SectionNovelty` and in what is recorded
_PER_SECTION = ("section", "median", "beyond", "percentile")


class SectionNovelty(NamedTuple):
    """How unlike a section is."""

    section: str
    #: median percentile of its spots, and share of them beyond `BEYOND`
    median: float
    beyond: float
    #: percentile of the section as a whole
    percentile: float
    #: what is beyond `BEYOND` of it as a whole, of `PARTS`
    parts: tuple[str, ...]


class Novel(NamedTuple):
    """How unlike the spots of some sections are."""

    #: percentiles (n_obs,), NaN for spots without a crop and of other sections
    values: np.ndarray
    sections: list[SectionNovelty]
    known: Novelty


def judged(known: Novelty, section: str, log_distances: np.ndarray) -> tuple[np.ndarray, SectionNovelty]:
    """Percentiles of a section's spots, by their log distances (n, parts), and of the section."""
    percentiles, parts = known.scale.of_spots(log_distances), known.scale.of_section(log_distances)
    found = tuple(name for name, value in zip(PARTS, parts, strict=True) if value > BEYOND)
    share, whole = float((percentiles > BEYOND).mean()), float(most_unlike(parts))
    return percentiles, SectionNovelty(section, float(np.median(percentiles)), share, whole, found)


def novel_sections(
    known: Novelty, n_obs: int, regions: Sequence[Region], rows: np.ndarray, log_distances: np.ndarray
) -> Novel:
    """How unlike sections are, of which `rows` (n,) of a table have `log_distances` (n, parts)."""
    values, every = np.full(n_obs, np.nan), np.full((n_obs, len(PARTS)), np.nan)
    every[rows] = log_distances
    sections = []
    for region in regions:
        own = region.rows[np.isfinite(every[region.rows, 0])]
        if len(own):
            values[own], said = judged(known, region.section, every[own])
            sections.append(said)
    return Novel(values, sections, known)


def said_of(one: SectionNovelty, known: Novelty) -> str:
    """One line about a section."""
    return (
        f"section {one.section!r}: median novelty {one.median:.2f}; {one.beyond:.0%} of spots beyond the "
        f"{BEYOND * 100:.0f}th percentile of held-out {known.held_out}"
    )


def warning_of(one: SectionNovelty, known: Novelty) -> str | None:
    """What is to be said of a section that is unlike what the model has seen; None where it is not."""
    if one.percentile <= BEYOND:
        return None
    return (
        f"Section {one.section!r} is unlike what the model has seen: as a whole it lies beyond the "
        f"{BEYOND * 100:.0f}th percentile of what its {known.n_held_out} held-out {known.held_out} let expect; what "
        f"stands out: {' and '.join(one.parts)}. Organ, stain, scanner or the stated "
        "scale may be others; do not take for granted what is predicted."
    )


def novelty_entry(known: Novelty, sections: Sequence[SectionNovelty]) -> dict[str, Any]:
    """What provenance says of sections."""
    columns: dict[str, Any] = {name: np.array([getattr(one, name) for one in sections]) for name in _PER_SECTION}
    return {"held_out": known.held_out, "n_held_out": known.n_held_out, **columns}


def novelty_key(key: str) -> str:
    """Column of the novelty of spots, beside their embeddings."""
    return Keys.NOVELTY if key == Keys.EMBEDDING else Keys.related(key, "novelty")


def write_novelty(table: AnnData, key: str, found: Novel | None, before: pd.DataFrame | None) -> dict[str, Any]:
    """Write the novelty of spots beside their embeddings, which were just written; without any, remove what was there.

    That of sections whose embeddings an earlier call made, and the last one kept, stays: `before` is their record.
    Returns what belongs into that of the embeddings.
    """
    column = novelty_key(key)
    if found is None:
        if before is not None and column in table.obs:
            del table.obs[column]
        return {}
    values, sections = found.values, list(found.sections)
    if before is not None and column in table.obs:
        now, embedded = {one.section for one in sections}, np.isfinite(table.obsm[key][:, 0])
        for region in _section.sections_of(table):
            if region.section in before.index and region.section not in now and embedded[region.rows].any():
                values[region.rows] = table.obs[column].to_numpy(dtype=float)[region.rows]
                median, beyond, percentile = map(float, before.loc[region.section])
                sections.append(SectionNovelty(region.section, median, beyond, percentile, ()))
    table.obs[column] = values
    return {"novelty": novelty_entry(found.known, sections)}


def tell(found: Novel, column: str) -> None:
    """Log what was written of every section, and warn of those that are unlike what the model has seen."""
    logger.info("Wrote .obs[%r]: percentile of each spot among those of held-out %s", column, found.known.held_out)
    for one in found.sections:
        logger.info("%s", said_of(one, found.known))
        if (text := warning_of(one, found.known)) is not None:
            warn(text)


def watched(model: Any) -> Novelty | None:
    """What a model knows of its training; None of encoders, and of models from before."""
    return model.novelty if isinstance(model, SealModel) else None
