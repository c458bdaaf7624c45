"""Agreement of pathway activity in predicted and in measured expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sealst._core.genes.panel import GenePanel
from sealst._core.genes.sets import SOURCE, TARGET, WEIGHT, restrict
from sealst._core.scores.genes import agreement
from sealst._core.scores.metrics import signature_auroc, signature_average_precision
from sealst._core.search.queries import centred, cosine, gene_weights
from sealst._errors import DataError, PanelError
from sealst._logging import logger
from sealst._section import Part
from sealst.models import SealModel
from sealst.tl._evaluate.methods import MEAN, ST_NET, Predictions
from sealst.tl._evaluate.views import SectionView
from sealst.tl._pathways.pathways import score_sets
from sealst.tl._retrieve.questions import reading_vector, signature_vector


def set_vectors(model: SealModel, net: pd.DataFrame, *, tmin: int, readout: str | None) -> dict[str, np.ndarray]:
    """Vector of every gene set, asked as `sealst.tl.retrieve` does, of the programs of a readout or of embeddings.

    Sets with fewer than `tmin` genes in the model's panel are left out, and those that its gene encoder ignores.
    """
    found: dict[str, np.ndarray] = {}
    for source, edges in restrict(net, model.panel.genes).groupby(SOURCE, sort=False):
        weights = dict(zip(edges[TARGET], edges[WEIGHT], strict=True))
        if len(weights) < tmin or not any(weights.values()):
            continue
        try:
            length = gene_weights(weights, model.panel.genes)
            found[str(source)] = (
                signature_vector(model, length) if readout is None else reading_vector(model, length, readout)
            )
        except DataError as error:
            # After hours of training, one set that cannot be asked must not take the others along.
            logger.info("%s is not asked as a query. %s", source, error)
    return found


@dataclass(frozen=True)
class Activities:
    """Gene sets whose activity is compared; none without a net."""

    net: pd.DataFrame | None = None
    tmin: int = 5

    def genes(self, parts: Sequence[Part]) -> list[str]:
        """Genes of the sets that every section measures."""
        if self.net is None:
            return []
        wanted = {str(g).upper() for g in self.net["target"]}
        for part in parts:
            wanted &= {str(g).upper() for g in part.table.var_names}
        return sorted(wanted)

    def rows(
        self,
        held: Sequence[SectionView],
        predicted: Predictions,
        genes: GenePanel,
        *,
        fold: str,
        seed: int,
        models: Mapping[str, SealModel] | None = None,
    ) -> list[pd.DataFrame]:
        """One frame per section and method: predictions, and the sets as queries of the models' embeddings."""
        if self.net is None:
            return []
        out = []
        # Vectors are the same for every section. What was trained on images alone has no side to ask from.
        asking = {name: model for name, model in (models or {}).items() if name != ST_NET}
        # Of one cohort, where all sections have distances or none has.
        ways = {name: held[0].search_readout(model) for name, model in asking.items()}
        asked = {
            name: set_vectors(model, self.net, tmin=self.tmin, readout=ways[name]) for name, model in asking.items()
        }
        for i, view in enumerate(held):
            able = np.all([np.isfinite(parts[i]).all(axis=0) for parts in predicted.values()], axis=0) & view.known
            measured = self._scores(view.measured, view, able, genes)
            if measured is None:
                continue
            facts = {"fold": fold, "seed": seed, "section": view.name, "patient": view.patient}
            for method, parts in predicted.items():
                # A constant profile has one activity everywhere: nothing to agree with.
                if method != MEAN and (found := self._scores(parts[i], view, able, genes)) is not None:
                    out.append(_agreement(measured, found[0]).assign(**facts, method=method))
            for name, vectors in asked.items():
                chosen = {s: vector for s, vector in vectors.items() if s in measured[0]}
                if chosen:
                    found_by = _similarities(asking[name], view, name, chosen, ways[name])
                    similar = pd.DataFrame(found_by, index=pd.Index(view.spots.astype(str)))
                    out.append(_agreement(measured, similar).assign(**facts, method=f"{name} query"))
        return out

    def _scores(
        self, values: np.ndarray, view: SectionView, able: np.ndarray, genes: GenePanel
    ) -> tuple[pd.DataFrame, pd.Series] | None:
        names = pd.Index([g for g, a in zip(genes.genes, able, strict=True) if a])
        try:
            frame = pd.DataFrame(values[:, able], index=pd.Index(view.spots.astype(str)), columns=names)
            result = score_sets(frame, self.net, tmin=self.tmin)
        except PanelError as error:
            logger.info("%s: no pathway is compared. %s", view.name, error)
            return None
        return result.scores, result.overlap["found"]


def _similarities(
    model: SealModel, view: SectionView, name: str, vectors: Mapping[str, np.ndarray], readout: str | None
) -> dict[str, np.ndarray]:
    """How similar every spot of a section is to each gene set, (n,)."""
    if readout is not None:
        predicted = model.image_programs(view.features[name], readout=readout, xy=view.xy)
        return {source: predicted @ vector for source, vector in vectors.items()}
    images = centred(view.shared[name], np.zeros(len(view), dtype=int))
    return {source: cosine(vector, images) for source, vector in vectors.items()}


def _agreement(measured: tuple[pd.DataFrame, pd.Series], scores: pd.DataFrame) -> pd.DataFrame:
    found = agreement(measured[0], scores)[["pearson", "spearman"]]
    rows = {}
    for name in measured[0].columns.intersection(scores.columns):
        known = np.isfinite(measured[0][name].to_numpy()) & np.isfinite(scores[name].to_numpy())
        pair = scores[name].to_numpy()[known], measured[0][name].to_numpy()[known]
        usable = len(pair[0]) > 1
        rows[name] = (signature_auroc(*pair), signature_average_precision(*pair)) if usable else (np.nan, np.nan)
    found = found.join(
        pd.DataFrame.from_dict(rows, orient="index", columns=["auroc", "average_precision"], dtype=float)
    )
    return found.assign(n_genes=measured[1].reindex(found.index)).rename_axis("pathway").reset_index()
