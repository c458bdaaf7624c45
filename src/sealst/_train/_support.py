"""What training needs beside its pairs: more expression, and the frozen encoder's score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sealst._core.device import autocast
from sealst._core.metrics import gene_pearson
from sealst._core.probes import ridge_probe
from sealst._data.dataset import Draw, Measured, PairDataset
from sealst._logging import logger

#: spots that the frozen encoder's probe is fitted on, at most
_PROBE_SPOTS = 5000
_BATCH = 64


def joined_expression(train: PairDataset, more: PairDataset) -> PairDataset:
    """Expression of the training spots and of tables without images, for the warm-up."""
    parts = [_measured(train), _measured(more)]
    table = np.concatenate([part.table for part in parts])
    section = np.concatenate([parts[0].section, parts[1].section + len(parts[0].table)])
    return PairDataset(None, np.concatenate([train.expression, more.expression]), measured=Measured(table, section))


def _measured(data: PairDataset) -> Measured:
    if data.measured is not None:
        return data.measured
    return Measured(np.ones((1, data.expression.shape[1]), bool), np.zeros(len(data), dtype=int))


def frozen_baseline(
    model: Any, train: PairDataset, held_out: PairDataset, *, groups: np.ndarray, seed: int
) -> dict[str, float]:
    """Held-out gene Pearson of a ridge probe on the frozen encoder: the line to beat, by metric."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(train), min(len(train), _PROBE_SPOTS), replace=False))
    known = np.ones(train.expression.shape[1], bool)
    for data in (train, held_out):
        if data.measured is not None:
            known &= data.measured.table.all(0)
    if not known.any():
        return {}
    with model.frozen_encoder():
        x, z = (_embedded(model, data, r) for data, r in ((train, rows), (held_out, np.arange(len(held_out)))))
    probe = ridge_probe(x, train.expression[rows][:, known], z, groups=groups[rows])
    found = float(np.nanmean(gene_pearson(np.asarray(probe.predictions), held_out.expression[:, known])))
    logger.info("frozen encoder with a ridge probe: held-out gene Pearson %.4f, the line to beat", found)
    return {"pearson": found}


def _embedded(model: Any, data: PairDataset, rows: np.ndarray) -> np.ndarray:
    """Embeddings of some spots' first view, by the encoder as it is."""
    model.eval()
    out = []
    with torch.inference_mode(), autocast(model.device):
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            batch = data[Draw(part, np.zeros(len(part), dtype=int))]
            if "tokens" in batch:
                z = model.encoder.tail(batch["tokens"].to(model.device).float(), model.n_trunk)
            else:
                z = model.encoder(batch["crops"].to(model.device).permute(0, 3, 1, 2).float() / 255)
            out.append(z.float().cpu().numpy())
    return np.concatenate(out)
