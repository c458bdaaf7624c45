"""How well a gene set, asked as a query of image embeddings, finds the spots where it is active."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sealst._core.genes.sets import SOURCE, TARGET, WEIGHT, restrict
from sealst._core.scores.metrics import signature_auroc, signature_average_precision
from sealst._core.search.queries import centred, cosine, gene_weights
from sealst._errors import DataError
from sealst._logging import logger
from sealst.models import SealModel
from sealst.tl._evaluate.views import View
from sealst.tl._retrieve.questions import signature_vector


def set_vectors(model: SealModel, net: pd.DataFrame, *, tmin: int) -> dict[str, np.ndarray]:
    """Vector of every gene set, asked as `sealst.tl.retrieve` does.

    Sets with fewer than `tmin` genes in the model's panel are left out, and those that its gene encoder ignores.
    """
    found: dict[str, np.ndarray] = {}
    for source, edges in restrict(net, model.panel.genes).groupby(SOURCE, sort=False):
        weights = dict(zip(edges[TARGET], edges[WEIGHT], strict=True))
        if len(weights) < tmin or not any(weights.values()):
            continue
        try:
            found[str(source)] = signature_vector(model, gene_weights(weights, model.panel.genes))
        except DataError as error:
            # After hours of training, one set that cannot be asked must not take the others along.
            logger.info("%s is not asked as a query. %s", source, error)
    return found


def query_similarities(view: View, name: str, vectors: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Similarity of every spot's image embedding to each gene set, (spots, sets)."""
    images = centred(view.shared[name], np.zeros(len(view), dtype=int))
    found = {source: cosine(vector, images) for source, vector in vectors.items()}
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
