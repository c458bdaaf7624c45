"""The readout of a trained model: what predicts expression from its embeddings, chosen on held-out sections."""

from __future__ import annotations

from typing import Any

import numpy as np

from sealst._core.scores.readouts import fit_readout
from sealst._core.space.views import N_SYMMETRIES
from sealst._data.dataset import Draw, PairDataset
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, progress, warn
from sealst.models import SealModel
from sealst.models._seal.readout import Readout
from sealst.tl._finetune.pairs import Pairs

#: fewer spots leave nothing to hold out
_MIN_SPOTS = 50
_BATCH = 64


def fitted_readout(model: SealModel, train: PairDataset, pairs: Pairs, *, show: bool | None) -> Readout | None:
    """Fit a readout behind a trained model; None where there are too few spots to hold any out."""
    rows = pairs.sample
    if len(rows) < _MIN_SPOTS:
        logger.info("readout = head (%d spots are too few to hold some out)", len(rows))
        return None
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
    try:
        found = fit_readout(z, targets, pairs.single, cautious=held != "patients", **options)
    except DataError as error:
        # The training is done, and the head predicts.
        warn(f"No readout could be fitted, so the head predicts: {error}")
        return None
    names = {key: _name(*key) for key in found.scores}
    best = names[found.target, found.rank]
    logger.info("readout = %s (mean Pearson %.3f on held-out %s)", best, found.scores[found.target, found.rank], held)
    facts: dict[str, Any] = {"kind": "ridge", "target": found.target, "rank": found.rank}
    facts |= {"held_out": held, "n_spots": len(rows)}
    facts |= {"scores": {names[key]: round(score, 6) for key, score in found.scores.items()}}
    return Readout.of(found.coef, found.intercept, facts).to(model.device)


def _name(target: str, rank: int | None) -> str:
    return f"{'ridge' if rank is None else f'rank-{rank} ridge'} on {target}"


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
