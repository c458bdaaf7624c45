"""The readout of a trained model: what predicts expression from its embeddings, chosen on held-out sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sealst._core.scores.readouts import best_readouts
from sealst._core.space.surroundings import beside_surroundings, common_pitch
from sealst._core.space.views import N_SYMMETRIES
from sealst._data.crops.source import CropSource, iter_source
from sealst._data.dataset import Draw, PairDataset
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, progress, warn
from sealst.models import SealModel
from sealst.models._seal.readout import FIELDS, RIDGE, SURROUNDINGS, Readout
from sealst.tl._finetune.pairs import Pairs

#: fewer spots leave nothing to hold out
_MIN_SPOTS = 50
_BATCH = 64


def fitted_readouts(model: SealModel, train: PairDataset, pairs: Pairs, *, show: bool | None) -> list[Readout]:
    """Fit readouts behind a trained model, of all that each may see; best first.

    None where there are too few spots to hold any out.
    """
    rows = pairs.sample
    if len(rows) < _MIN_SPOTS:
        logger.info("readout = head (%d spots are too few to hold some out)", len(rows))
        return []
    section = pairs.measured.section[rows]
    patient = np.array(pairs.labels["patient"])[section]
    groups, held = patient, "patients"
    if len(np.unique(patient)) == 1:
        groups, held = section, "sections of one patient"
    if len(np.unique(groups)) == 1:
        # Strips of the section: of random spots the neighbours would stand on the other side.
        x = np.concatenate([source.boxes[:, 0] for source in pairs.sources])[rows]
        groups, held = np.digitize(x, np.quantile(x, (0.25, 0.5, 0.75))), "strips of one section"
    targets = {Keys.LOGNORM: pairs.single}
    if model.panel.layer != Keys.LOGNORM:
        targets[model.panel.layer] = np.asarray(train.expression[rows])
        targets["both"] = (targets[Keys.LOGNORM] + targets[model.panel.layer]) / 2
    z = _mean_over_views(model, train, rows, show=show)
    options: dict[str, Any] = {"groups": groups, "sections": section, "known": pairs.measured.table[section]}
    inputs, width = {RIDGE: z}, _width(pairs, section)
    if width is not None:
        inputs[SURROUNDINGS] = np.empty((len(z), 2 * z.shape[1]))
        for number in np.unique(section):
            own = section == number
            inputs[SURROUNDINGS][own] = beside_surroundings(z[own], pairs.centres[own], width)
    if pairs.wider:
        wider = (_of_sources(model, some, show=show) for some in pairs.wider.values())
        inputs[FIELDS] = np.hstack([z, *wider, inputs.get(SURROUNDINGS, z)[:, z.shape[1] :]])
    try:
        # The crop alone where two are equal.
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
        made.append(Readout.of(one.coef, one.intercept, facts))
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


def _mean_over_views(model: SealModel, train: PairDataset, rows: np.ndarray, *, show: bool | None) -> np.ndarray:
    """Embeddings (n, dim) as predictions start from: the mean over views of each crop, cached or turned here."""
    cached = train.caches_tokens
    n_views, out = train.views if cached else N_SYMMETRIES, np.zeros((len(rows), model.dim))
    with progress(None, desc="fitting the readout", total=len(rows), show=show) as bar:
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            if cached:
                for view in range(n_views):
                    batch = train[Draw(rows[part], np.full(len(rows[part]), view))]
                    out[part] += model.embed_tokens(batch["tokens"].float())
                out[part] /= n_views
            else:
                crops = train[Draw(rows[part], np.zeros(len(rows[part]), dtype=int))]["crops"].numpy()
                out[part] = model.embed_images(crops, views=n_views)
            bar.update(len(rows[part]))
    return out
