"""What an alignment changed beside prediction: neighbourhoods, what can be told from embeddings, and by what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sealst._core.scores.neighbourhoods import neighbours_kept, robustness_index
from sealst._core.splits import evenly
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Part
from sealst._validate import check_key
from sealst.tl._evaluate.views import FROZEN, SEAL, SectionView

#: what the encoders are called in rows that need no readout, as those of retrieval
_METHODS = {FROZEN: "frozen", SEAL: "adapted"}
_NEIGHBOURS, _FOLDS = 10, 5
#: of more spots, some: work grows with their square
_MOST = 20_000


def columns_of(labels: Sequence[str], confounder: str, parts: Sequence[Part]) -> list[str]:
    """Names of columns, which every section must have, before any crop is embedded."""
    if isinstance(labels, str):
        raise DataError(f"`labels` must be a list of columns of `.obs`, found {labels!r}; say `labels=[{labels!r}]`.")
    wanted = {name for name in (*labels, confounder) if labels and name != Keys.PATIENT}
    for part in parts:
        for name in sorted(wanted):
            hint = "`labels` and `confounder` name columns that every section has."
            check_key(part.table.obs, name, where=f"`.obs` of section {part.section!r}", hint=hint)
    return list(dict.fromkeys(labels))


@dataclass(frozen=True)
class Changes:
    """Columns of ``.obs`` whose values are told from embeddings, and what should not decide who is near whom."""

    labels: Sequence[str] = ()
    confounder: str = Keys.PATIENT

    def rows(self, seen: Sequence[SectionView], held: Sequence[SectionView]) -> Iterator[dict[str, Any]]:
        """One row a method and measure: ``view`` (None for all together), method, metric, genes, value, chance."""
        features = {name: method for name, method in _METHODS.items() if name in held[0].features}
        if SEAL in features:
            for view in held:
                some = evenly(len(view), _MOST)
                before, after = (view.features[name][some] for name in (FROZEN, SEAL))
                value = neighbours_kept(before, after, _NEIGHBOURS)
                chance = min(1.0, _NEIGHBOURS / max(1, len(some) - 1))
                yield {"view": view, "method": "adapted", "metric": "neighbours_kept", "value": value, "chance": chance}
        for name, method in features.items():
            for label in self.labels:
                yield from (row | {"method": method, "genes": label} for row in self._told(name, label, seen, held))

    def _told(
        self, feature: str, label: str, seen: Sequence[SectionView], held: Sequence[SectionView]
    ) -> Iterator[dict[str, Any]]:
        """How well a label is told on held-out sections, or where each has one value, from spot to spot."""
        views = [*seen, *held]
        x, y = _labelled(views, feature, label)
        if len(np.unique(y)) < 2:
            # After hours of training, a column that says nothing must not take the others along.
            warn(f"The spots of this fold have {len(np.unique(y))} value(s) of label {label!r}; it is not scored.")
            return
        if all(len(np.unique(view.labels[label][view.labels[label] != ""])) < 2 for view in views):
            yield {"view": None, "metric": "label_accuracy", **_within(x, y)}
            return
        known, values = _labelled(seen, feature, label)
        if len(np.unique(values)) < 2:
            logger.info("label %r has one value in training, so it is not told on held-out sections", label)
        else:
            probe = _probe().fit(known, values)
            for view in held:
                own, truth = _labelled([view], feature, label)
                if len(truth):
                    score = float(balanced_accuracy_score(truth, probe.predict(own)))
                    chance = 1 / len(np.unique(truth))
                    yield {"view": view, "metric": "label_accuracy", "value": score, "chance": chance}
        yield from self._robust(views, x, y, label)

    def _robust(
        self, views: Sequence[SectionView], x: np.ndarray, y: np.ndarray, label: str
    ) -> Iterator[dict[str, Any]]:
        given = [view.labels[label] != "" for view in views]
        confounder = np.concatenate([view.labels[self.confounder][own] for view, own in zip(views, given, strict=True)])
        sections = np.repeat([view.name for view in views], [int(own.sum()) for own in given])
        if len(np.unique(confounder)) < 2:
            logger.info("all spots share one %s, so there is no robustness index over it", self.confounder)
            return
        # Neighbours of the same section tell nothing new, unless sections are what is asked about.
        several = all(len(np.unique(sections[confounder == one])) > 1 for one in np.unique(confounder))
        some = evenly(len(y), _MOST)
        groups = sections[some] if several else some
        found = robustness_index(x[some], y[some], confounder[some], groups)
        yield {"view": None, "metric": f"robustness_index over {self.confounder}", "value": found.value, "chance": 0.5}


def _labelled(views: Sequence[SectionView], feature: str, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of the spots that have one."""
    given = [view.labels[label] != "" for view in views]
    x = np.concatenate([view.features[feature][own] for view, own in zip(views, given, strict=True)])
    return x, np.concatenate([view.labels[label][own] for view, own in zip(views, given, strict=True)])


def _probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))


def _within(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy on spots that were left out: what each section has one value of cannot be told on others."""
    values, counts = np.unique(y, return_counts=True)
    # Of a single spot nothing can be left out.
    values, counts = values[counts > 1], counts[counts > 1]
    if len(values) < 2:
        return {"value": float("nan"), "chance": float("nan")}
    some = np.isin(y, values)
    folds = StratifiedKFold(int(min(_FOLDS, counts.min())), shuffle=True, random_state=0)
    score = float(balanced_accuracy_score(y[some], cross_val_predict(_probe(), x[some], y[some], cv=folds)))
    return {"value": score, "chance": 1 / len(values)}
