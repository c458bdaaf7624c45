"""Agreement of pathway activity in predicted and in measured expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sealst._core.agreement import agreement
from sealst._core.panel import GenePanel
from sealst._errors import PanelError
from sealst._logging import logger
from sealst._parts import Part
from sealst.tl._methods import MEAN, Predictions
from sealst.tl._pathways import Net, gene_set_edges, score_sets
from sealst.tl._views import View


@dataclass(frozen=True)
class Activities:
    """Gene sets whose activity is compared; none without a net."""

    net: pd.DataFrame | None = None
    tmin: int = 5

    @classmethod
    def of(cls, net: Net | None) -> Activities:
        """From a net as `sealst.tl.pathways` takes it; a resource is fetched once."""
        return cls(None if net is None else gene_set_edges(net))

    def genes(self, parts: Sequence[Part]) -> list[str]:
        """Genes of the sets that every section measures."""
        if self.net is None:
            return []
        wanted = {str(g).upper() for g in self.net["target"]}
        for part in parts:
            wanted &= {str(g).upper() for g in part.table.var_names}
        return sorted(wanted)

    def rows(
        self, held: Sequence[View], predicted: Predictions, genes: GenePanel, *, fold: str, seed: int
    ) -> list[pd.DataFrame]:
        """One frame per section and method."""
        if self.net is None:
            return []
        out = []
        for i, view in enumerate(held):
            able = np.all([np.isfinite(parts[i]).all(axis=0) for parts in predicted.values()], axis=0) & view.known
            measured = self._scores(view.measured, view, able, genes)
            if measured is None:
                continue
            for method, parts in predicted.items():
                # A constant profile has one activity everywhere: nothing to agree with.
                if method != MEAN and (found := self._scores(parts[i], view, able, genes)) is not None:
                    facts = {"fold": fold, "seed": seed, "section": view.name, "patient": view.patient}
                    out.append(_agreement(measured, found).assign(**facts, method=method))
        return out

    def _scores(
        self, values: np.ndarray, view: View, able: np.ndarray, genes: GenePanel
    ) -> tuple[pd.DataFrame, pd.Series] | None:
        names = pd.Index([g for g, a in zip(genes.genes, able, strict=True) if a])
        try:
            frame = pd.DataFrame(values[:, able], index=pd.Index(view.spots.astype(str)), columns=names)
            result = score_sets(frame, self.net, tmin=self.tmin)
        except PanelError as error:
            logger.info("%s: no pathway is compared. %s", view.name, error)
            return None
        return result.scores, result.overlap["found"]


def _agreement(measured: tuple[pd.DataFrame, pd.Series], predicted: tuple[pd.DataFrame, pd.Series]) -> pd.DataFrame:
    found = agreement(measured[0], predicted[0])[["pearson", "spearman"]]
    return found.assign(n_genes=measured[1].reindex(found.index)).rename_axis("pathway").reset_index()
