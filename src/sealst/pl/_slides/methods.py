"""What figures of a slide-level evaluation share: who is drawn, what it is called, which numbers stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sealst._core.made_by import MadeBy
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._errors import DataError, MissingKeyError
from sealst._keys import Keys
from sealst._validate import listed, patient_names
from sealst.pl import _base
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, MEAN, colours_of, pick

FLOOR = "floor"
_FIGURES = {
    "classification": "`sl.pl.roc`, `sl.pl.precision_recall` and `sl.pl.slide_calibration`",
    "regression": "`sl.pl.slide_calibration`",
    "survival": "`sl.pl.kaplan_meier`",
}
#: inches: side of a panel among few and among many
_SIDE_IN, _SMALL_IN = 3.4, 2.7


@dataclass(frozen=True, eq=False)
class Slides:
    """Held-out slides of one target and one method."""

    target: str
    method: str
    #: name for readers
    label: str
    colour: str
    frame: pd.DataFrame

    @property
    def patients(self) -> np.ndarray:
        """Patient of every slide, as text."""
        return patient_names(self.frame[Keys.PATIENT]).to_numpy()


def require_slides(evaluation: object, tasks: Sequence[str], columns: Sequence[str] = ()) -> SlideEvaluation:
    """Return a SlideEvaluation of one of some tasks, with held-out predictions."""
    if not isinstance(evaluation, SlideEvaluation):
        raise TypeError(
            "Expected a SlideEvaluation, such as `.evaluation` of what `sl.tl.fit_slide(...)` returns, found "
            f"{type(evaluation).__name__}."
        )
    if evaluation.task not in tasks:
        raise DataError(
            f"This figure is for {' or '.join(tasks)}, the evaluation is of {evaluation.task}. Its figures: "
            f"{_FIGURES.get(evaluation.task, 'none')}."
        )
    needed = ["slide", Keys.PATIENT, "fold", "method", "target", *columns]
    if missing := [column for column in needed if column not in evaluation.predictions]:
        raise MissingKeyError(
            f"Column(s) {listed(missing)} not found in `.predictions`; found: "
            f"{listed(evaluation.predictions.columns, 20)}. Pass what `sl.tl.fit_slide(...)` made."
        )
    if evaluation.predictions.empty:
        raise DataError("The SlideEvaluation holds no predictions (`.predictions` has no rows).")
    return evaluation


def targets_of(evaluation: SlideEvaluation, targets: str | Sequence[str] | None) -> list[str]:
    """Targets to show, by default all."""
    known = list(dict.fromkeys([*evaluation.facts.get("targets", []), *evaluation.predictions["target"].astype(str)]))
    return pick("targets", targets, known)


def embeddings_of(evaluation: SlideEvaluation) -> list[str]:
    """Embeddings that were compared, the adapted one first."""
    found = [str(one) for one in pd.unique(evaluation.predictions["method"])]
    stated = [str(one) for one in evaluation.facts.get("keys", []) if one in found]
    return list(dict.fromkeys([*stated, *(one for one in found if one != FLOOR)]))


def methods_of(evaluation: SlideEvaluation, methods: str | Sequence[str] | None) -> list[str]:
    """Methods to show, by default all embeddings; a floor, which has no curve, only when it is asked for."""
    known = embeddings_of(evaluation)
    if methods is None:
        return known
    return pick("methods", methods, list(dict.fromkeys([*known, *evaluation.predictions["method"].astype(str)])))


def kind_of(evaluation: SlideEvaluation, method: str) -> str | None:
    """`ADAPTED` or `FROZEN` by what made an embedding; None where that is not known.

    Evaluations that do not say what made their embeddings go by the names of the slots.
    """
    if "embeddings" not in evaluation.facts:
        return {Keys.EMBEDDING: ADAPTED, Keys.FROZEN: FROZEN}.get(method)
    adapted = MadeBy.is_adapted(dict(evaluation.facts["embeddings"]).get(method))
    return None if adapted is None else ADAPTED if adapted else FROZEN


def label_of(evaluation: SlideEvaluation, method: str) -> str:
    """Name of a method for readers."""
    known = {ADAPTED: "adapted", FROZEN: "frozen"}
    kind = kind_of(evaluation, method)
    return method if kind is None else f"{known[kind]} ({method})"


def held_out(evaluation: SlideEvaluation, target: str, method: str, columns: Sequence[str]) -> Slides:
    """Slides of a target with a prediction of a method and a known outcome."""
    frame = evaluation.predictions
    frame = frame[(frame["target"] == target) & (frame["method"] == method)]
    if missing := [column for column in columns if column not in frame]:
        raise MissingKeyError(
            f"Column(s) {listed(missing)} not found in `.predictions`; found: {listed(frame.columns, 20)}."
        )
    frame = frame.dropna(subset=list(columns))
    if frame.empty:
        raise DataError(f"No held-out slide has a prediction of {target!r} by {method!r}.")
    # Adapted and frozen have the colours of every other figure; a second one of a kind has one of its own.
    stands: dict[str, str] = {FLOOR: MEAN}
    for one in embeddings_of(evaluation):
        kind = kind_of(evaluation, one)
        stands[one] = one if kind is None or kind in stands.values() else kind
    colours = colours_of([*(stands[one] for one in embeddings_of(evaluation)), MEAN])
    return Slides(target, method, label_of(evaluation, method), colours[stands.get(method, method)], frame)


def classes_of(evaluation: SlideEvaluation, target: str, classes: str | Sequence[str] | None) -> list[str]:
    """Classes to show against the rest; of two classes the second, which says the same as the first."""
    known = [str(one) for one in evaluation.facts.get("classes", {}).get(target, [])]
    if not known:
        raise DataError(f"The evaluation names no classes of {target!r} (`.facts['classes']`).")
    own = known[-1:] if len(known) == 2 else known
    if classes is None:
        return own
    wanted = [classes] if isinstance(classes, str) else [str(one) for one in classes]
    return pick("classes", wanted, known)


def is_class(truth: pd.Series, name: str) -> np.ndarray:
    """Which slides are of a class, whatever type their labels have."""
    same = (truth.astype(str) == name).to_numpy()
    numbers = pd.to_numeric(truth, errors="coerce").to_numpy(dtype=float)
    try:
        # A column of whole numbers with a gap reads as 0.0 and 1.0.
        return same | (numbers == float(name))
    except ValueError:
        return same


def no_curve(slides: Slides, name: str) -> str:
    """Why a class has no curve: the held-out slides are all of one kind; empty where it has."""
    truth = is_class(slides.frame["truth"], name)
    if truth.any() and not truth.all():
        return ""
    return f"All held-out slides of {slides.target!r} are {'' if truth.any() else 'not '}{name!r}: no curve."


def score_text(evaluation: SlideEvaluation, slides: Slides, metrics: Sequence[str], fallback: float = np.nan) -> str:
    """The evaluation's number for the first of some metrics, with its interval; else one computed here."""
    table = evaluation.table
    own = table[(table["target"] == slides.target) & (table["method"] == slides.method) & (table["fold"] == "")]
    for metric in metrics:
        rows = own[own["metric"] == metric]
        if len(rows):
            return interval_text(rows["value"].iloc[0], rows.get("low"), rows.get("high"))
    return _base.number(fallback, ".2f") if np.isfinite(fallback) else ""


def interval_text(value: float, low: pd.Series | None, high: pd.Series | None) -> str:
    """``0.81 (0.74 to 0.88)``, or without the bracket where the bounds are unknown."""
    text = _base.number(float(value), ".2f")
    bounds = [np.nan if one is None else float(one.iloc[0]) for one in (low, high)]
    if not np.isfinite(bounds).all():
        return text
    return f"{text} ({_base.number(bounds[0], '.2f')} to {_base.number(bounds[1], '.2f')})"


def panel_axes(ax: Axes | None, n: int, n_cols: int | None, *, how: str, below: float = 0.55) -> list[Axes]:
    """Axes for some panels: the one given, or those of a new figure, with some inches for what stands below each."""
    _base.check_single(ax, n, how=how)
    if ax is not None:
        return [ax]
    n_cols = min(n_cols or min(n, 4), n)
    side = _SIDE_IN if n <= 4 else _SMALL_IN
    return _base.grid_axes(n, n_cols, size=(side, side + below))


def legend_below(ax: Axes, y: float = -0.19) -> None:
    """Legend under the panel's own labels: inside it would hide what is drawn."""
    style = {"fontsize": _base.SMALL_SIZE, "frameon": False, "borderaxespad": 0.0, "labelspacing": 0.3}
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, y), **style)
