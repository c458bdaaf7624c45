"""Expression of held-out sections, by every method that is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np

from sealst._core.genes.panel import GenePanel
from sealst._core.scores.probes import Protocol, knn_impute, mean_baseline
from sealst._core.scores.readouts import best_readouts
from sealst._core.space.surroundings import beside_surroundings, common_pitch
from sealst._core.splits import evenly
from sealst._data.arena import Arena
from sealst._logging import logger
from sealst.models import SealModel
from sealst.models._seal.readout import FIELDS, RIDGE, SURROUNDINGS
from sealst.tl._evaluate.views import COLOUR, FROZEN, SEAL, SectionView

FROZEN_PROBE, ADAPTED_PROBE, COLOUR_PROBE = "frozen + ridge", "adapted + ridge", "colour + ridge"
HEAD, IMPUTED, MEAN = "seal head", "seal retrieval", "mean"
#: what `tl.predict` writes, where that is not the head
PREDICTED = "seal prediction"
ST_NET, BLEEP, PERMUTED = "st-net", "bleep", "permuted + ridge"

#: by method, expression (n, genes) of every held-out section; NaN for genes it cannot predict
Predictions: TypeAlias = dict[str, list[np.ndarray]]

_NEIGHBOURS = 50
#: training spots that probes are fitted on and retrieval chooses from, at most: a fit holds some 200 kB a spot (3,072
#: features, 2,000 genes), and what is retrieved grows with the product of training and held-out spots
MOST_LEARNED = 50_000
#: features that a probe is fitted on, by method
_PROBES = {FROZEN_PROBE: FROZEN, ADAPTED_PROBE: SEAL, COLOUR_PROBE: COLOUR}
#: models whose gene embeddings are searched, by method
_SEARCHED = {IMPUTED: SEAL, BLEEP: BLEEP}
#: models that predict, by method, and by which readout
_HEADS: dict[str, tuple[str, str | None]] = {PREDICTED: (SEAL, None), HEAD: (SEAL, "head"), ST_NET: (ST_NET, "head")}


def predictions(
    seen: Sequence[SectionView],
    held: Sequence[SectionView],
    protocol: Protocol,
    *,
    models: Mapping[str, SealModel],
    genes: GenePanel,
    scored: np.ndarray,
    control: int | None = None,
    arena: Arena | None = None,
) -> Predictions:
    """Expression of every held-out section by every method that these views allow.

    Genes in the columns `scored` are fitted by themselves, so that the others do not decide on their penalty. With
    `control`, the seed of a permutation, a probe is fitted to spots that got each other's expression as well. Of more
    than `MOST_LEARNED` training spots some of every section are learned from. With `arena` results lie in files.
    """
    same_unit = protocol.target == "lognorm"
    fitted = [m for m, feature in _PROBES.items() if feature in held[0].features]
    searched = [m for m, model in _SEARCHED.items() if same_unit and model in held[0].codes]
    heads = [m for m, (model, _) in _HEADS.items() if same_unit and model in models]
    if PREDICTED in heads and models[SEAL].readout is None:
        heads.remove(PREDICTED)
    empty: Callable[..., np.ndarray] = np.empty if arena is None else arena.empty
    out = {
        method: [empty(view.measured.shape, np.float32) for view in held]
        for method in (*fitted, *searched, *([] if control is None else [PERMUTED]), MEAN)
    }
    for part in chain.from_iterable(out.values()):
        part.fill(np.nan)
    chosen = np.isin(np.arange(len(genes)), scored)
    patterns, which = np.unique(np.array([chosen, *(v.known for v in seen)]), axis=1, return_inverse=True)
    patterns = patterns[1:]
    # Genes are fitted together where the same sections measure them.
    for i in range(patterns.shape[1]):
        columns = np.flatnonzero(which.ravel() == i)
        having = [view for view, has in zip(seen, patterns[:, i], strict=True) if has]
        if not having:
            continue
        learn = _Learner(having, columns, protocol)
        found = {method: learn.probe(_PROBES[method]) for method in fitted}
        found |= {method: learn.imputer(_SEARCHED[method]) for method in searched}
        if control is not None:
            found[PERMUTED] = learn.permuted(SEAL if SEAL in held[0].features else FROZEN, control)
        for method, predict in (found | {MEAN: learn.mean}).items():
            for part, view in zip(out[method], held, strict=True):
                part[:, columns] = predict(view)
    for method in heads:
        name, readout = _HEADS[method]
        direct = (_direct(models[name], view, name, genes, readout) for view in held)
        out[method] = [part if arena is None else arena.keep(part) for part in direct]
    order = (FROZEN_PROBE, ADAPTED_PROBE, PREDICTED, HEAD, IMPUTED, ST_NET, BLEEP, COLOUR_PROBE, PERMUTED, MEAN)
    return {method: out[method] for method in order if method in out}


class _Learner:
    """What is learned about some genes from the sections that measure them."""

    def __init__(self, seen: Sequence[SectionView], columns: np.ndarray, protocol: Protocol) -> None:
        self.seen, self.protocol = seen, protocol
        #: spots of every section that are learned from
        self._some: list[slice | np.ndarray] = [slice(None)] * len(seen)
        if (n := sum(map(len, seen))) > MOST_LEARNED:
            self._some = [evenly(len(v), max(1, MOST_LEARNED // len(seen))) for v in seen]
        self.y = self._joined(lambda v: v.measured[:, columns])
        if len(self.y) < n:
            logger.info("%d genes are learned from %d of %d training spots", len(columns), len(self.y), n)
        # Serial sections of one patient are no independent folds; they must do where there is only one patient.
        patients = self._joined(lambda v: v.patients)
        several = len(np.unique(patients)) > 1
        self.sections = self._joined(lambda v: np.repeat(v.name, len(v)))
        self.groups = patients if several else self.sections
        self._width = None
        if protocol.surroundings and all(v.in_um for v in seen):
            self._width = common_pitch([v.xy for v in seen])

    def _joined(self, of: Callable[[SectionView], np.ndarray]) -> np.ndarray:
        """Something of the spots that are learned from, of all sections."""
        return np.concatenate([of(view)[some] for view, some in zip(self.seen, self._some, strict=True)])

    def probe(self, feature: str, y: np.ndarray | None = None) -> Callable[[SectionView], np.ndarray]:
        y, width = self.y if y is None else y, self._width
        if not self.protocol.within_sections or self.protocol.n_components is not None:
            alone = self._joined(lambda view: view.features[feature])
            predict = self.protocol.probe(alone, y, self.groups, self.sections)
            return lambda view: predict(view.features[feature])
        # As `tl.finetune` fits its readouts.
        sees: dict[str, Callable[[SectionView], np.ndarray]] = {}
        if width is not None:
            sees[SURROUNDINGS] = lambda view: beside_surroundings(view.features[feature], view.xy, width)
        if self.protocol.surroundings and all(feature in v.fields for v in self.seen):
            sees[FIELDS] = lambda view: _fields(view, feature, width)
        sees[RIDGE] = lambda view: view.features[feature]
        inputs = {kind: self._joined(see) for kind, see in sees.items()}
        found = best_readouts(inputs, {"single": y}, y, groups=self.groups, sections=self.sections)
        kind, best = next(iter(found.items()))
        return lambda view: np.asarray(sees[kind](view) @ best.coef + best.intercept, dtype=np.float32)

    def permuted(self, feature: str, seed: int) -> Callable[[SectionView], np.ndarray]:
        """A probe of spots that got the expression of another spot of their section."""
        rng = np.random.default_rng(seed)
        lengths = [len(view.spots[some]) for view, some in zip(self.seen, self._some, strict=True)]
        ends = np.cumsum(lengths)
        order = np.concatenate([rng.permutation(np.arange(e - n, e)) for e, n in zip(ends, lengths, strict=True)])
        return self.probe(feature, self.y[order])

    def imputer(self, model: str) -> Callable[[SectionView], np.ndarray]:
        reference = self._joined(lambda view: view.codes[model])
        k = min(_NEIGHBOURS, len(reference))
        return lambda view: knn_impute(view.shared[model], reference, self.y, k=k)

    def mean(self, view: SectionView) -> np.ndarray:
        return mean_baseline(self.y, len(view))


def _fields(view: SectionView, feature: str, width: float | None) -> np.ndarray:
    """Features of all fields of view, beside the surroundings of the first where spots have a pitch."""
    z = view.fields[feature]
    return z if width is None else beside_surroundings(z, view.xy, width, dim=view.features[feature].shape[1])


def _direct(model: SealModel, view: SectionView, name: str, genes: GenePanel, readout: str | None) -> np.ndarray:
    """The model's own prediction, in the order of the scored genes."""
    if not view.in_um:
        # There are no distances between patches, and nothing around them.
        readout = readout or model.crop_readout
    z = view.fields[name] if model.fields_of(readout) else view.features[name]
    predicted = model.predict_expression(z, readout=readout, xy=view.xy)
    if genes.genes == model.panel.genes:
        return predicted
    column = {g.upper(): i for i, g in enumerate(model.panel.genes)}
    out = np.full((len(z), len(genes)), np.nan, dtype=np.float32)
    for i, gene in enumerate(genes.genes):
        if gene.upper() in column:
            out[:, i] = predicted[:, column[gene.upper()]]
    return out
