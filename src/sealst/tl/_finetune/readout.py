"""What is fitted behind a trained encoder: readouts of expression, chosen on held-out sections, and what is novel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sealst._core.scores.novelty import N_PICTURE, fit_novelty, picture_features
from sealst._core.scores.readouts import best_readouts
from sealst._core.search.programs import fit_programs
from sealst._core.space.surroundings import beside_surroundings, common_pitch
from sealst._core.space.views import N_SYMMETRIES, first_and_mean
from sealst._core.splits import evenly
from sealst._data.crops.source import CropSource, iter_source
from sealst._data.dataset import Draw, PairDataset
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, progress, warn
from sealst.models import SealModel
from sealst.models._novelty import Novelty
from sealst.models._seal.readout import FIELDS, RIDGE, SURROUNDINGS, Readout
from sealst.tl._finetune.pairs import Pairs

#: fewer spots leave nothing to hold out
MIN_SPOTS = 50
_BATCH = 64
#: spots by which novelty is told, at most
_MAX_NOVELTY = 4000


@dataclass(frozen=True, eq=False)
class Seen:
    """Sampled spots as the trained model sees them, and who of them is held out in turn."""

    #: embeddings (n, dim): mean over views, and of the crop as it is
    mean: np.ndarray
    first: np.ndarray
    #: section of every spot, the group that it is held out with, and what groups are
    section: np.ndarray
    groups: np.ndarray
    held: str


def seen_spots(
    model: SealModel, train: PairDataset, pairs: Pairs, *, every_view: bool, show: bool | None
) -> Seen | None:
    """Embed the sampled spots (in one view alone unless `every_view`); None where they are too few to hold any out."""
    rows = pairs.sample
    if len(rows) < MIN_SPOTS:
        logger.info("readout = head (%d spots are too few to hold some out)", len(rows))
        return None
    section = pairs.measured.section[rows]
    across = np.concatenate([source.boxes[:, 0] for source in pairs.sources])[rows]
    groups, held = held_groups(np.array(pairs.labels["patient"])[section], section, across)
    first, mean = _embedded(model, train, rows, every_view=every_view, show=show)
    return Seen(mean, first, section, groups, held)


def held_groups(patient: np.ndarray, section: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, str]:
    """Groups of spots that are held out in turn, and what they are, by the patient, section and x of every spot."""
    if len(np.unique(patient)) > 1:
        return patient, "patients"
    if len(np.unique(section)) > 1:
        return section, "sections of one patient"
    # Strips of the section: of random spots the neighbours would stand on the other side.
    return np.digitize(across, np.quantile(across, (0.25, 0.5, 0.75))), "strips of one section"


def fitted_novelty(model: SealModel, train: PairDataset, pairs: Pairs, seen: Seen) -> Novelty | None:
    """Summarise what training looked like, by some spots; None where that cannot be said."""
    some = evenly(len(seen.first), _MAX_NOVELTY)
    picture = _pictures(model, train, pairs, pairs.sample[some])
    groups, units = seen.groups[some], seen.section[some]
    n = len(np.unique(groups))
    # Strips of one section take the place of sections.
    units = groups if n > len(np.unique(units)) else units
    try:
        cloud, scale = fit_novelty(seen.first[some], picture, groups=groups, units=units)
    except DataError as error:
        logger.info("what training looked like is not kept: %s", error)
        return None
    return Novelty(cloud, scale, seen.held, n, len(some), model.image_fingerprint)


def fitted_readouts(
    model: SealModel, train: PairDataset, pairs: Pairs, seen: Seen, *, show: bool | None
) -> list[Readout]:
    """Fit readouts behind a trained model, of all that each may see; best first."""
    rows, z, section, held = pairs.sample, seen.mean, seen.section, seen.held
    targets = {Keys.LOGNORM: pairs.single}
    if model.panel.layer != Keys.LOGNORM:
        smooth = np.asarray(train.expression[rows])
        targets |= {"both": (targets[Keys.LOGNORM] + smooth) / 2, model.panel.layer: smooth}
    options: dict[str, Any] = {"groups": seen.groups, "sections": section, "known": pairs.measured.table[section]}
    inputs, width = {}, _width(pairs, section)
    if width is not None:
        inputs[SURROUNDINGS] = np.empty((len(z), 2 * z.shape[1]))
        for number in np.unique(section):
            own = section == number
            inputs[SURROUNDINGS][own] = beside_surroundings(z[own], pairs.centres[own], width)
    if pairs.wider:
        wider = (_of_sources(model, some, show=show) for some in pairs.wider.values())
        inputs[FIELDS] = np.hstack([z, *wider, inputs.get(SURROUNDINGS, z)[:, z.shape[1] :]])
    inputs[RIDGE] = z
    try:
        found = best_readouts(inputs, targets, pairs.single, **options)
    except DataError as error:
        # The training is done, and the head predicts.
        warn(f"No readout could be fitted, so the head predicts: {error}")
        return []
    made: list[Readout] = []
    for kind, one in found.items():
        facts: dict[str, Any] = {"kind": kind, "target": one.target, "rank": one.rank}
        facts |= {"held_out": held, "n_spots": len(rows)}
        facts |= {"scores": {_name(*key): round(score, 6) for key, score in one.scores.items()}}
        if kind != RIDGE and width is not None:
            facts["surroundings_um"] = width
        if kind == FIELDS:
            facts["fields_um"] = [model.crop.crop_um, *pairs.wider]
        programs = None
        # What several fields show is not stored of a section, so nothing is searched by it.
        if kind != FIELDS:
            programs = fit_programs(inputs[kind], one.coef, pairs.single, sections=section, known=options["known"])
        made.append(Readout.of(one.coef, one.intercept, facts, programs))
        logger.info(
            "%s %s: %s (mean Pearson %.3f on held-out %s)", "readout =" if len(made) == 1 else "beside it",
            *(kind, _name(one.target, one.rank), one.score, held),
        )  # fmt: skip
    return made


def _width(pairs: Pairs, section: np.ndarray) -> float | None:
    """Width of the surroundings in µm: one pitch, what few widths that were tried on other patients differ from."""
    return common_pitch([pairs.centres[section == number] for number in np.unique(section)])


def _name(target: str, rank: int | None) -> str:
    return f"{'ridge' if rank is None else f'rank-{rank} ridge'} on {target}"


def _of_sources(model: SealModel, sources: Sequence[CropSource], *, show: bool | None) -> np.ndarray:
    """Embeddings (n, dim) of crops that are read from the picture, each the mean over its symmetries."""
    out, start = np.zeros((sum(len(source.boxes) for source in sources), model.dim)), 0
    with progress(None, desc="embedding a wider field", total=len(out), show=show) as bar:
        for source in sources:
            for positions, crops in iter_source(source, model.crop.crop_px, batch_size=_BATCH):
                out[start + positions] = model.embed_images(crops, views=N_SYMMETRIES)
                bar.update(len(positions))
            start += len(source.boxes)
    return out


def _embedded(
    model: SealModel, train: PairDataset, rows: np.ndarray, *, every_view: bool, show: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, dim) of crops as they are, and as predictions start from: the mean over views of each crop.

    Views are cached (the first is the crop as it is) or turned here.
    """
    cached = train.caches_tokens
    n_views = (train.views if cached else N_SYMMETRIES) if every_view else 1
    first, mean = np.zeros((2, len(rows), model.dim))
    with progress(None, desc="fitting the readout", total=len(rows), show=show) as bar:
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            if cached:
                for view in range(n_views):
                    batch = train[Draw(rows[part], np.full(len(rows[part]), view))]
                    found = model.embed_tokens(batch["tokens"].float())
                    mean[part] += found
                    if view == 0:
                        first[part] = found
                mean[part] /= n_views
            else:
                crops = train[Draw(rows[part], np.zeros(len(rows[part]), dtype=int))]["crops"].numpy()
                first[part], mean[part] = first_and_mean(model.embed_images, crops, n_views)
            bar.update(len(rows[part]))
    return first, mean


def _pictures(model: SealModel, train: PairDataset, pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """`picture_features` of the crops of some spots, which are read again where training saw tokens."""
    out = np.empty((len(rows), N_PICTURE), dtype=np.float32)
    if not train.caches_tokens:
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            crops = train[Draw(some, np.zeros(len(some), dtype=int))]["crops"].numpy()
            out[start : start + _BATCH] = picture_features(crops)
        return out
    begin = 0
    for source in pairs.sources:
        own = np.flatnonzero((rows >= begin) & (rows < begin + len(source.boxes)))
        few = CropSource(source.levels, source.boxes[rows[own] - begin])
        for positions, crops in iter_source(few, model.crop.crop_px, batch_size=_BATCH):
            out[own[positions]] = picture_features(crops)
        begin += len(source.boxes)
    return out
