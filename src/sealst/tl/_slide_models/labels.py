"""Labels of slides: which task a column asks for, and its values as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sealst._errors import DataError
from sealst._logging import logger, warn
from sealst._train.slide_engine import CLASSIFICATION, REGRESSION, SURVIVAL, TASKS
from sealst._validate import as_text, check_choice, check_key, listed

#: words for an event that was seen, and for none
_SEEN = ("dead", "deceased", "died", "death", "yes", "true", "event", "progressed", "recurred", "relapsed")
_CENSORED = ("alive", "living", "no", "false", "censored", "none", "disease free", "diseasefree", "progression free")
_HINT = "Add it with `bags.with_labels(table)`, or pass `labels=` to `sl.io.read_bags`."


@dataclass(frozen=True, eq=False)
class Labels:
    """One target of all slides."""

    target: str
    task: str
    #: names of the classes, in the order of their numbers; empty unless they are classes
    classes: tuple[str, ...]
    #: class numbers, numbers, or (time, event) in two columns; undefined where not `known`
    values: np.ndarray
    #: which slides have the label
    known: np.ndarray

    @property
    def strata(self) -> np.ndarray:
        """What folds balance: classes, numbers, or whether the event was seen."""
        return self.values[:, 1].astype(int) if self.task == SURVIVAL else self.values


def infer_task(column: pd.Series, event: str | None) -> tuple[str, str]:
    """Task that a column asks for, and why."""
    if event is not None:
        return SURVIVAL, f"`event` names column {event!r}"
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(kind):
        return CLASSIFICATION, f"the column holds {kind}"
    if pd.api.types.is_bool_dtype(kind):
        return CLASSIFICATION, "the column holds yes and no"
    if (distinct := column.dropna().nunique()) <= 2:
        return CLASSIFICATION, f"the column holds {distinct} distinct numbers"
    return REGRESSION, f"the column holds {distinct} distinct numbers; classes are asked for with `task`"


def task_of(obs: pd.DataFrame, targets: Sequence[str], task: str | None, event: str | None) -> str:
    """The one task of all targets, given or inferred."""
    for name in targets:
        check_key(obs.columns, name, where="`bags.obs`", hint=_HINT)
    if task is not None:
        check_choice("task", task, TASKS)
        found = task
    else:
        inferred = {name: infer_task(obs[name], event) for name in targets}
        for name, (kind, reason) in inferred.items():
            logger.info("%s: %s, as %s", name, kind, reason)
        kinds = {kind for kind, _ in inferred.values()}
        if len(kinds) > 1:
            raise DataError(
                f"Targets {listed(targets)} ask for several tasks ({listed(sorted(kinds))}); fit them apart."
            )
        found = kinds.pop()
    if (found == SURVIVAL) != (event is not None):
        raise DataError(f"Survival needs a time as `target` and a column as `event`; found task {found!r}, {event=}.")
    if found == SURVIVAL and len(targets) > 1:
        raise DataError(f"Survival has one target, the time; found {listed(targets)}.")
    return found


def labels_of(obs: pd.DataFrame, target: str, task: str, *, event: str | None = None,
              classes: Sequence[str] | None = None) -> Labels:  # fmt: skip
    """Read one target of all slides; `classes` are known already for slides that are only tested on."""
    column = obs[target]
    if task == CLASSIFICATION:
        known = column.notna().to_numpy()
        texts = np.array([as_text(v) if k else "" for v, k in zip(column, known, strict=True)], dtype=object)
        present = set(texts[known])
        if classes is None:
            order = (
                column.cat.categories
                if isinstance(column.dtype, pd.CategoricalDtype)
                else sorted(column[known].unique(), key=lambda v: (isinstance(v, str), v))
            )
            names = [name for name in dict.fromkeys(map(as_text, order)) if name in present]
        else:
            names = list(classes)
            if strange := sorted(present - set(names)):
                raise DataError(f"{target!r} of the test slides has classes {listed(strange)}, unknown in training.")
        if len(names) < 2:
            raise DataError(f"{target!r} holds {len(names)} class(es), {listed(names)}; at least 2 are needed.")
        number = {name: i for i, name in enumerate(names)}
        values = np.array([number.get(text, -1) for text in texts])
        return Labels(target, CLASSIFICATION, tuple(names), values, known)
    values = _numbers(column, target)
    if task == REGRESSION:
        return Labels(target, task, (), values, np.isfinite(values))
    check_key(obs.columns, event, where="`bags.obs`", hint=_HINT)  # type: ignore[arg-type]
    seen = _numbers(_events(obs[event]), str(event))
    known = np.isfinite(values) & np.isfinite(seen)
    if (early := known & (values <= 0)).any():
        raise DataError(
            f"Times in {target!r} must be positive, found {values[known].min():g} (slide(s) {listed(obs.index[early])}"
            "). Leave these slides' times empty, or, where the event came on the first day, give them half a day."
        )
    if not np.isin(seen[known], (0, 1)).all():
        raise DataError(
            f"{event!r} must hold 1 (event seen) and 0 (censored), or words such as '1:DECEASED' and '0:LIVING', found "
            f"{listed(np.unique(seen[known]))}."
        )
    return Labels(target, task, (), np.column_stack([values, seen]), known)


def _events(column: pd.Series) -> pd.Series:
    """Events as numbers, where all are written in one of the usual ways: ``1:DECEASED``, ``dead``, ``yes``."""
    texts = column.dropna().map(lambda value: str(value).strip().lower())
    known = {text: found for text in texts.unique() if (found := _event_of(text)) is not None}
    # Others are told by what reads numbers.
    return column if not len(texts) or len(known) < texts.nunique() else texts.map(known).reindex(column.index)


def _event_of(text: str) -> float | None:
    number, colon, _ = text.partition(":")
    if colon and number.strip() in ("0", "1"):
        return float(number)
    return 1.0 if text in _SEEN else 0.0 if text in _CENSORED else None


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    try:
        values = pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise DataError(f"Column {name!r} must hold numbers: {error}.") from error
    if np.isinf(values).any():
        raise DataError(f"Column {name!r} holds infinite values; leave those slides out or give them a number.")
    return values


def check_enough(labels: Labels, patients: np.ndarray, n_folds: int) -> None:
    """Raise where a fold would have to train without a class or without events; warn where one lacks them."""
    rows = np.flatnonzero(labels.known)
    missing = len(labels.known) - len(rows)
    if missing:
        logger.info("%s: %d of %d slides have no label and are left out", labels.target, missing, len(labels.known))
    if len(np.unique(patients[rows])) < 2:
        raise DataError(f"{labels.target!r} is known of {len(rows)} slide(s) of one patient; at least 2 are needed.")
    if labels.task == REGRESSION:
        if np.ptp(labels.values[rows]) == 0:
            raise DataError(f"{labels.target!r} is {labels.values[rows][0]:g} in every slide; there is nothing to fit.")
        return
    names = labels.classes or ("0", "1")
    per_class = {name: len(set(patients[rows][labels.strata[rows] == i])) for i, name in enumerate(names)}
    if labels.task == SURVIVAL:
        per_class = {"event": per_class["1"]}
    if rare := {name: n for name, n in per_class.items() if n < 2}:
        raise DataError(
            f"{labels.target!r}: {listed(rare)} occur(s) in {min(rare.values())} patient(s); at least 2 are needed, so "
            "that one can be held out. Merge classes or leave their slides out."
        )
    if few := {name: n for name, n in per_class.items() if n < n_folds}:
        warn(
            f"{labels.target!r}: {listed(few)} occur(s) in {min(few.values())} patient(s), fewer than the {n_folds} "
            "folds; some folds hold none, and intervals are wide."
        )
