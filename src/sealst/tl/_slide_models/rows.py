"""Tables of what held-out slides say about a slide model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sealst._core.scores.slides import SCORERS, HeldOut, bootstrap_scores
from sealst._keys import Keys
from sealst._train.slide_engine import CLASSIFICATION, REGRESSION, SURVIVAL
from sealst.tl._slide_models.labels import Labels

FLOOR = "floor"
#: metrics that depend on which constant the floor is; the others are the same for any
_OF_LEVEL = ("f1", "ece", "brier", "r2", "mae")
_COLUMNS = ["fold", "method", "target", "metric", "value", "low", "high", "n", "n_patients"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Held-out predictions of one target."""

    labels: Labels
    #: rows of `obs` that were predicted
    rows: np.ndarray
    obs: pd.DataFrame
    #: fold of every predicted row
    fold: np.ndarray
    #: predictions by embedding, the adapted one first; (n, classes) or (n,)
    predicted: Mapping[str, np.ndarray]
    #: what the training side of every predicted row's fold predicts as a constant; (n, classes) or (n,)
    floor: np.ndarray
    #: per fold (time, event) of its training side, for survival
    train: Mapping[str, np.ndarray]

    @property
    def held(self) -> HeldOut:
        """Truth, folds and patients of the predicted rows."""
        patients = self.obs[Keys.PATIENT].to_numpy(dtype=object)[self.rows]
        return HeldOut(self.labels.values[self.rows], self.fold, patients, self.train)


def floor_of(labels: Labels, train: np.ndarray, n: int) -> np.ndarray:
    """Constant prediction of n slides from training labels: shares of classes, the mean, or no difference in risk."""
    values = labels.values[train]
    if labels.task == CLASSIFICATION:
        one = np.bincount(values.astype(int), minlength=len(labels.classes)) / len(values)
    else:
        one = np.array(values.mean() if labels.task == REGRESSION else 0.0)
    return np.repeat(one[None], n, axis=0)


def score_table(outcome: Outcome, *, n_bootstrap: int, seed: int) -> pd.DataFrame:
    """Rows of `SlideEvaluation.table` for one target."""
    held, score = outcome.held, SCORERS[outcome.labels.task]
    intervals = bootstrap_scores(outcome.predicted, held, score, n=n_bootstrap, seed=seed)
    rows: list[dict[str, Any]] = []

    def add(fold: str, method: str, scores: Mapping[str, float], part: HeldOut) -> None:
        facts: dict[str, Any] = {"fold": fold, "method": method, "target": outcome.labels.target}
        facts |= {"n": len(part.truth), "n_patients": len(np.unique(part.patients))}
        for metric, value in scores.items():
            low, high = intervals.get((method, metric), (np.nan, np.nan)) if fold == "" else (np.nan, np.nan)
            rows.append(facts | {"metric": metric, "value": value, "low": low, "high": high})

    def scores_of(inside: np.ndarray) -> dict[str, dict[str, float]]:
        part = held.take(inside)
        found = {method: score(values[inside], part) for method, values in outcome.predicted.items()}
        floor = outcome.floor[inside]
        # Where the folds' constants differ, their order says nothing and is not scored.
        constant = score(np.repeat(floor[:1], len(floor), axis=0), part)
        levels = {metric: value for metric, value in score(floor, part).items() if metric in _OF_LEVEL}
        return found | {FLOOR: constant | levels}

    pooled = scores_of(np.arange(len(outcome.rows)))
    for method, scores in pooled.items():
        add("", method, scores, held)
    first, *others = outcome.predicted
    for other in others:
        add("", f"{first} - {other}", {m: v - pooled[other][m] for m, v in pooled[first].items()}, held)
    names = np.unique(outcome.fold)
    for name in names if len(names) > 1 else ():
        inside = np.flatnonzero(outcome.fold == name)
        for method, scores in scores_of(inside).items():
            add(str(name), method, scores, held.take(inside))
    return pd.DataFrame(rows)[_COLUMNS]


def prediction_table(outcome: Outcome) -> pd.DataFrame:
    """Rows of `SlideEvaluation.predictions` for one target."""
    labels, held = outcome.labels, outcome.held
    tables = []
    for method, values in outcome.predicted.items():
        table = pd.DataFrame({"slide": outcome.obs.index[outcome.rows].astype(str), "patient": held.patients})
        table = table.assign(fold=outcome.fold.astype(str), method=method, target=labels.target)
        if labels.task == CLASSIFICATION:
            names = np.array(labels.classes, dtype=object)
            table = table.assign(truth=names[held.truth.astype(int)], prediction=names[values.argmax(axis=1)])
            table = table.assign(**{f"p_{name}": values[:, i] for i, name in enumerate(names)})
        elif labels.task == SURVIVAL:
            table = table.assign(time=held.truth[:, 0], event=held.truth[:, 1] > 0, prediction=values)
        else:
            table = table.assign(truth=held.truth.astype(float), prediction=values)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
