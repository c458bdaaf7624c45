"""How well a gene set, asked as a query of image embeddings, finds the spots where it is active."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sealst._core.gene_sets import SOURCE, TARGET, WEIGHT, restrict
from sealst._core.metrics import signature_auroc, signature_average_precision
from sealst._core.queries import QUERY_STD, centred, cosine, direction, gene_weights, shifted_profiles
from sealst.models import SealModel
from sealst.tl._views import View


def query_similarities(
    view: View, name: str, model: SealModel, net: pd.DataFrame, *, sets: Sequence[str], tmin: int
) -> pd.DataFrame:
    """Similarity of every spot's image embedding to each gene set, (spots, sets), asked as `sealst.tl.retrieve` does.

    Sets with fewer than `tmin` genes in the model's panel are left out.
    """
    images = centred(view.shared[name], np.zeros(len(view), dtype=int))
    panel = model.panel
    known = restrict(net[net[SOURCE].isin(list(sets))], panel.genes)
    found: dict[str, np.ndarray] = {}
    for source, edges in known.groupby(SOURCE, sort=False):
        weights = dict(zip(edges[TARGET], edges[WEIGHT], strict=True))
        if len(weights) < tmin or not any(weights.values()):
            continue
        profiles = shifted_profiles(panel.mean, panel.std, gene_weights(weights, panel.genes), n_std=QUERY_STD)
        vector = direction(model.shared_genes(model.embed_genes(profiles)))
        found[str(source)] = cosine(vector, images)
    return pd.DataFrame(found, index=pd.Index(view.spots.astype(str)))


def finds(measured: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """``auroc`` and ``average_precision`` of scores against the tenth of spots with the highest measured activity."""
    rows = {}
    for name in measured.columns.intersection(scores.columns):
        known = np.isfinite(measured[name].to_numpy()) & np.isfinite(scores[name].to_numpy())
        pair = scores[name].to_numpy()[known], measured[name].to_numpy()[known]
        usable = len(pair[0]) > 1
        rows[name] = (signature_auroc(*pair), signature_average_precision(*pair)) if usable else (np.nan, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["auroc", "average_precision"], dtype=float)
