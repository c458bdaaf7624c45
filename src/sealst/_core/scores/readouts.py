"""A linear readout of expression behind a trained encoder: target, penalty and rank chosen on held-out groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.probes import Spectral, inner_folds, within_sections
from sealst._errors import DataError

#: genes that share a penalty, those of similar mean expression: one gene's own scores are too noisy to choose by
_GENES_PER_PENALTY = 100
#: penalties of standardised embeddings that are compared
_PENALTIES = np.logspace(1, 8, 29)
#: how many times as strong as its mixed model says a penalty is: the model takes spots for independent, but neighbours
#: share what is not explained, and other patients are further away than other spots
_CAUTION = 2.0
#: how much better, as a share, than what is usually best a score must be to be believed: between patients, of whom few
#: are held out, smaller differences are noise
_MARGIN = 0.1
#: ranks that are compared with the full one
RANKS: tuple[int, ...] = (8, 16, 32, 64)


@dataclass(frozen=True, eq=False)
class LinearReadout:
    """Coefficients from embeddings to expression, and how they were chosen."""

    #: (d, genes) and (genes,), in the unit of the targets
    coef: np.ndarray
    intercept: np.ndarray
    #: target and rank that were chosen; None is the full rank
    target: str
    rank: int | None
    #: penalty of every gene, (genes,)
    alphas: np.ndarray
    #: (target, rank) → mean over genes of the Pearson correlation within held-out groups
    scores: dict[tuple[str, int | None], float]

    @property
    def score(self) -> float:
        """Score of what was chosen."""
        return self.scores[self.target, self.rank]


def fit_readout(
    x: np.ndarray,
    targets: Mapping[str, np.ndarray],
    truth: np.ndarray,
    *,
    groups: np.ndarray,
    sections: np.ndarray,
    known: np.ndarray | None = None,
    ranks: tuple[int, ...] = RANKS,
    max_folds: int = 10,
) -> LinearReadout:
    """Fit ridge regressions within sections, and keep the one that predicts held-out groups best.

    Candidates differ in the target they are fitted to and in their rank (reduced-rank regression, Izenman 1975); all
    are scored by the mean over genes of the Pearson correlation with `truth` within held-out groups. Penalties are
    those of the mixed model in which an embedding explains a share of each gene's variance within sections, by
    restricted maximum likelihood (Patterson & Thompson 1971) for a hundred genes of similar expression at a time:
    scores of a few held-out patients are too noisy to choose them by.

    Parameters
    ----------
    x
        Embeddings (n, d), finite.
    targets
        By name, what may be fitted, (n, genes); the first one, unless another is better by a tenth.
    truth
        What counts, (n, genes): the expression of single spots.
    groups
        Group of every row, (n,), that is held out as one: patients, or sections where there is one patient.
    sections
        Section of every row, (n,); differences between sections are not learned, see `within_sections`.
    known
        bool (n, genes): whether a row's section measures a gene. None where all do.
    ranks
        Ranks to compare with the full one.
    max_folds
        Most folds; where there are more groups, whole groups are dealt to this many folds.

    Returns
    -------
    The readout, fitted on all rows. A factor for every gene's hundred makes held-out slopes 1. Genes that too few rows
    measure to hold some out are predicted by their mean (penalty infinite).

    Raises
    ------
    DataError
        When nothing can be held out for any gene.
    """
    n_genes = truth.shape[1]
    parts: list[tuple[np.ndarray, dict[str, _Candidate]]] = []
    unfitted: list[np.ndarray] = []
    for rows, genes in _measured_together(known, truth.shape):
        try:
            inner = inner_folds(len(rows), groups[rows], max_folds, seed=0)
        except DataError:
            # Too few spots measure these genes to hold some out.
            unfitted.append(genes)
            continue
        section, some = sections[rows], np.ix_(rows, genes)
        y = [within_sections(v[some], section, deviation=True) for v in (truth, *targets.values())]
        shared = _Regressions(
            within_sections(x[rows], section),
            within_sections(truth[some], section),
            np.hstack(y),
            inner,
            len(np.unique(section)),
        )
        columns = [slice(i * len(genes), (i + 1) * len(genes)) for i in range(1, len(y))]
        made = [_Candidate(shared, one, max(ranks, default=1)) for one in columns]
        parts.append((genes, dict(zip(targets, made, strict=True))))
    if not parts:
        raise DataError(f"{len(x)} spots in {len(np.unique(groups))} group(s) leave none to hold out.")
    scores: dict[tuple[str, int | None], float] = {}
    n_fitted = sum(len(genes) for genes, _ in parts)
    for name in targets:
        for rank in (None, *(r for r in ranks if r < min(x.shape[1], n_genes))):
            scores[name, rank] = sum(c[name].score(rank) * len(genes) for genes, c in parts) / n_fitted
    by_target = {name: max(score for (one, _), score in scores.items() if one == name) for name in targets}
    target = _first_of_the_best(by_target)
    rank = max((key for key in scores if key[0] == target), key=lambda key: scores[key])[1]
    coef, intercept, alphas = np.zeros((x.shape[1], n_genes)), np.zeros(n_genes), np.zeros(n_genes)
    for genes, found in parts:
        coef[:, genes], intercept[genes] = found[target].fitted(rank)
        alphas[genes] = found[target].shared.alphas
    for genes in unfitted:
        measured = np.ones(len(x), bool) if known is None else known[:, genes[0]]
        intercept[genes], alphas[genes] = truth[np.ix_(measured, genes)].mean(axis=0), np.inf
    return LinearReadout(coef, intercept, target, rank, alphas, scores)


def best_readouts(
    inputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], truth: np.ndarray, **options: Any
) -> dict[str, LinearReadout]:
    """Fit a readout to each of several inputs; what should predict comes first.

    That is the first one, unless another predicts held-out groups better by a tenth; the others follow by their score.

    Parameters
    ----------
    inputs
        By name, what a readout may see, (n, d), in the order in which they are believed.
    targets, truth, options
        See `fit_readout`.
    """
    found = {name: fit_readout(x, targets, truth, **options) for name, x in inputs.items()}
    chosen = _first_of_the_best({name: one.score for name, one in found.items()})
    return dict(sorted(found.items(), key=lambda item: (item[0] != chosen, -item[1].score)))


def _first_of_the_best(scores: Mapping[str, float]) -> str:
    """The first whose score is the best but for a margin."""
    best = max(scores.values())
    return next(name for name, score in scores.items() if score >= best - _MARGIN * abs(best))


def _measured_together(known: np.ndarray | None, shape: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and genes to fit together: those genes that the same rows measure."""
    if known is None or known.all():
        return [(np.arange(shape[0]), np.arange(shape[1]))]
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    return [(np.flatnonzero(p), np.flatnonzero(which.ravel() == i)) for i, p in enumerate(patterns.T) if p.any()]


def _bins(mean: np.ndarray) -> np.ndarray:
    """Number of the penalty of every gene."""
    order = np.argsort(np.argsort(-mean, kind="stable"), kind="stable")
    n = max(1, len(mean) // _GENES_PER_PENALTY)
    return np.minimum(order * n // len(mean), n - 1)


@dataclass(frozen=True, eq=False)
class _Regressions:
    """Ridge regressions on the same rows, of the expression of single spots and of all targets side by side."""

    x: np.ndarray
    #: what counts, (n, genes), and it again beside all targets, (n, genes of these)
    truth: np.ndarray
    y: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]
    n_sections: int

    @cached_property
    def by_fold(self) -> list[Spectral]:
        """On the training rows of every fold."""
        return [Spectral(self.x[train], self.y[train], None) for train, _ in self.folds]

    @cached_property
    def of_all(self) -> Spectral:
        """On all rows."""
        return Spectral(self.x, self.y, None)

    @cached_property
    def bins(self) -> np.ndarray:
        """Number of the penalty of every gene."""
        return _bins(self.truth.mean(axis=0))

    @cached_property
    def alphas(self) -> np.ndarray:
        """Penalty of every gene: what its mixed model says, and stronger."""
        n_genes = self.truth.shape[1]
        likelihood = self.of_all.of(slice(n_genes)).likelihood(self.y[:, :n_genes], _PENALTIES, lost=self.n_sections)
        best = [likelihood[:, self.bins == number].sum(axis=1).argmax() for number in range(self.bins.max() + 1)]
        return _CAUTION * _PENALTIES[np.array(best)[self.bins]]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One target, and what its predictions say of held-out groups."""

    shared: _Regressions
    #: its columns of `shared.y`
    columns: slice
    #: largest rank that is asked for
    most: int

    def score(self, rank: int | None) -> float:
        """Mean Pearson over genes and held-out groups."""
        found = [np.nan_to_num(gene_pearson(p, self.shared.truth[held])).mean() for p, held in self._held_out(rank)]
        return float(np.mean(found))

    def fitted(self, rank: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercept for embeddings as they are, from all rows; held-out slopes made 1."""
        covariance, variance = np.zeros((2, self.shared.bins.max() + 1))
        for predicted, held in self._held_out(rank):
            truth = self.shared.truth[held] - self.shared.truth[held].mean(axis=0)
            # Every gene counts alike, whatever its deviation.
            unit = 1 / np.maximum((truth**2).mean(axis=0), 1e-12)
            predicted = predicted - predicted.mean(axis=0)
            covariance += np.bincount(self.shared.bins, ((predicted * truth).sum(axis=0) * unit))
            variance += np.bincount(self.shared.bins, ((predicted**2).sum(axis=0) * unit))
        slope = np.divide(covariance, variance, out=np.ones_like(variance), where=variance > 0)
        slope = np.where(slope > 0, slope, 1.0)[self.shared.bins]
        fit = self.shared.of_all.of(self.columns)
        coef = fit.coef(self.shared.alphas)
        if rank is not None:
            coef = _projected(coef, fit.directions(self.shared.alphas, rank), rank)
        coef *= slope / fit.scaler.scale_[:, None]
        return coef, fit.intercept - fit.scaler.mean_ @ coef

    @cached_property
    def _full(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Predictions of every fold's held-out rows, in what directions they vary, and these rows."""
        pairs = zip(self.shared.by_fold, self.shared.folds, strict=True)
        return [
            (
                fit.scaler.transform(self.shared.x[held]) @ fit.coef(self.shared.alphas),
                fit.directions(self.shared.alphas, self.most),
                held,
            )
            for fit, held in ((fit.of(self.columns), held) for fit, (_, held) in pairs)
        ]

    def _held_out(self, rank: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Predictions of every fold's held-out rows by coefficients of a rank, and these rows."""
        return [
            (predicted if rank is None else _projected(predicted, directions, rank), held)
            for predicted, directions, held in self._full
        ]


def _projected(values: np.ndarray, directions: np.ndarray, rank: int) -> np.ndarray:
    return values @ directions[:rank].T @ directions[:rank]
