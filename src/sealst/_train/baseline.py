"""The frozen encoder's score on held-out sections: the line to beat."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sealst._core.device import to_images, training_autocast
from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.probes import ridge_probe
from sealst._data.dataset import Draw, PairDataset
from sealst._logging import logger

#: spots that the frozen encoder's probe is fitted on, at most
_PROBE_SPOTS = 5000
_BATCH = 64


def frozen_baseline(
    model: Any, train: PairDataset, held_out: PairDataset, *, groups: np.ndarray, seed: int, precision: str = "auto"
) -> dict[str, float]:
    """Held-out gene Pearson of a ridge probe on the frozen encoder: the line to beat, by metric.

    `precision` is that of the training, as Lightning calls it.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(train), min(len(train), _PROBE_SPOTS), replace=False))
    known = np.ones(train.expression.shape[1], bool)
    for data in (train, held_out):
        if data.measured is not None:
            known &= data.measured.table.all(0)
    if not known.any():
        return {}
    with model.frozen_encoder():
        x, z = (
            _embedded(model, data, r, precision) for data, r in ((train, rows), (held_out, np.arange(len(held_out))))
        )
    probe = ridge_probe(x, train.expression[rows][:, known], z, groups=groups[rows])
    found = float(np.nanmean(gene_pearson(np.asarray(probe.predictions), held_out.expression[:, known])))
    logger.info("frozen encoder with a ridge probe: held-out gene Pearson %.4f, the line to beat", found)
    return {"pearson": found}


def _embedded(model: Any, data: PairDataset, rows: np.ndarray, precision: str) -> np.ndarray:
    """Embeddings of some spots' first view, by the encoder as it is."""
    model.eval()
    out = []
    with torch.inference_mode(), training_autocast(model.device, precision):
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            batch = data[Draw(part, np.zeros(len(part), dtype=int))]
            if "tokens" in batch:
                z = model.encoder.tail(batch["tokens"].to(model.device).float(), model.n_trunk)
            else:
                z = model.encoder(to_images(batch["crops"], model.device))
            out.append(z.float().cpu().numpy())
    return np.concatenate(out)
