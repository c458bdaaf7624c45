"""How well slides of a class are told from the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from sealst._core.scores import slide_curves
from sealst._core.scores.slide_curves import Curve
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._docs import documented
from sealst._errors import DataError
from sealst._logging import warn
from sealst._settings import resolve_seed
from sealst.pl import _base
from sealst.pl._base import plain
from sealst.pl._slides.methods import (
    Slides,
    classes_of,
    held_out,
    is_class,
    legend_below,
    methods_of,
    no_curve,
    panel_axes,
    require_slides,
    score_text,
    targets_of,
)


@documented
def roc(
    evaluation: SlideEvaluation,
    *,
    targets: str | Sequence[str] | None = None,
    classes: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    n_bootstrap: int = 200,
    seed: int | None = None,
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Draw ROC curves of held-out slides: one panel per target and class, the adapted encoder beside the frozen one.

    All held-out slides stand in one curve. The legend has the evaluation's AUROC with its interval where it has one (of
    more than two classes: the area under the curve that is drawn). The shaded band is a pointwise 95 % bootstrap
    interval over patients.

    Parameters
    ----------
    evaluation
        A `tl.SlideEvaluation` of a classification.
    %(shown.targets)s
    %(curves.classes)s
    %(embeddings.methods)s
    %(curves.n_bootstrap)s
    %(curves.seed)s
    %(by_number.n_cols)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a target, a class, a method or a column is absent.
    DataError
        When the evaluation is no classification, or the held-out slides are all of one kind (for every class, or one
        of `classes`).

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.roc(model.evaluation, save="roc.png")  # doctest: +SKIP
    """
    kind = _Kind(slide_curves.roc, False, ("auroc", "roc_auc"), "AUROC", roc_auc_score)
    chosen = _Choice(targets, classes, methods, n_cols, n_bootstrap, resolve_seed(seed))
    return _curves(evaluation, kind, chosen, ax=ax, save=save, show=show)


@documented
def precision_recall(
    evaluation: SlideEvaluation,
    *,
    targets: str | Sequence[str] | None = None,
    classes: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    n_bootstrap: int = 200,
    seed: int | None = None,
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Draw precision over recall of held-out slides, one panel per target and class, adapted beside frozen.

    The dotted line is the share of the class, which guessing reaches. The legend has the evaluation's average precision
    (AP) with its interval where it has one (of more than two classes: that of the curve that is drawn). The shaded band
    is a pointwise 95 % bootstrap interval over patients.

    Parameters
    ----------
    evaluation
        A `tl.SlideEvaluation` of a classification.
    %(shown.targets)s
    %(curves.classes)s
    %(embeddings.methods)s
    %(curves.n_bootstrap)s
    %(curves.seed)s
    %(by_number.n_cols)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a target, a class, a method or a column is absent.
    DataError
        When the evaluation is no classification, or the held-out slides are all of one kind (for every class, or one
        of `classes`).

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.precision_recall(model.evaluation, save="precision.png")  # doctest: +SKIP
    """
    names = ("average_precision", "auprc")
    kind = _Kind(slide_curves.precision_recall, True, names, "AP", average_precision_score)
    chosen = _Choice(targets, classes, methods, n_cols, n_bootstrap, resolve_seed(seed))
    return _curves(evaluation, kind, chosen, ax=ax, save=save, show=show)


@dataclass(frozen=True)
class _Kind:
    curve: Callable[[np.ndarray, np.ndarray], Curve]
    #: whether the curve goes in steps
    steps: bool
    #: the evaluation's metrics for it, and what it is called
    metrics: tuple[str, ...]
    name: str
    score: Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class _Choice:
    targets: str | Sequence[str] | None
    classes: str | Sequence[str] | None
    methods: str | Sequence[str] | None
    n_cols: int | None
    n_bootstrap: int
    seed: int


def _curves(
    evaluation: SlideEvaluation,
    kind: _Kind,
    chosen: _Choice,
    *,
    ax: Axes | None,
    save: str | Path | None,
    show: bool | None,
) -> Figure | Axes:
    _base.check_save(save)
    if chosen.n_bootstrap < 0:
        raise DataError(f"`n_bootstrap` must not be negative, found {chosen.n_bootstrap}.")
    evaluation = require_slides(evaluation, ["classification"], ["truth"])
    methods = methods_of(evaluation, chosen.methods)
    panels = _panels(evaluation, chosen, methods)
    axes = panel_axes(ax, len(panels), chosen.n_cols, how="`targets=` and `classes=`")
    for one, ((target, name), own) in zip(axes, panels.items(), strict=True):
        truth = is_class(own[0].frame["truth"], name)
        one.set_xlim(-0.02, 1.02)
        one.set_ylim(-0.02, 1.02)
        one.set_box_aspect(1)
        plain(one)
        # What guessing reaches.
        guess = [float(truth.mean())] * 2 if kind.steps else [0, 1]
        one.plot([0, 1], guess, color="black", linestyle=":", linewidth=0.9, zorder=1)
        title = f"{target}: {name} ({truth.sum()} of {len(truth)} slides)"
        one.set_title(_base.wrap(title, 3.0, size=_base.TITLE_SIZE), fontsize=_base.TITLE_SIZE)
        labels = ("recall", "precision") if kind.steps else ("1 − specificity", "sensitivity")
        one.set_xlabel(labels[0], fontsize=_base.SMALL_SIZE + 1)
        one.set_ylabel(labels[1], fontsize=_base.SMALL_SIZE + 1)
        binary = len(evaluation.facts["classes"][target]) == 2
        for slides in own:
            truth = is_class(slides.frame["truth"], name)
            score = slides.frame[f"p_{name}"].to_numpy(dtype=float)
            area = float(kind.score(truth, score))
            text = score_text(evaluation, slides, kind.metrics, area) if binary else _base.number(area, ".2f")
            curve = kind.curve(truth, score)
            label, style = f"{slides.label}, {kind.name} {text}", "steps-pre" if kind.steps else "default"
            one.plot(curve.x, curve.y, color=slides.colour, linewidth=1.6, drawstyle=style, label=label, zorder=3)
            if chosen.n_bootstrap:
                options: dict[str, Any] = {"steps": kind.steps, "n": chosen.n_bootstrap, "seed": chosen.seed}
                band = slide_curves.band(kind.curve, truth, score, groups=slides.patients, **options)
                low, high = np.asarray(band.low), np.asarray(band.high)
                one.fill_between(band.x, low, high, color=slides.colour, alpha=0.14, linewidth=0, zorder=2)
        legend_below(one)
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def _panels(
    evaluation: SlideEvaluation, chosen: _Choice, methods: Sequence[str]
) -> dict[tuple[str, str], list[Slides]]:
    """Slides by target and class; what has no curve is left out with a warning, unless it was asked for by name."""
    found, lacking = {}, []
    for target in targets_of(evaluation, chosen.targets):
        for name in classes_of(evaluation, target, chosen.classes):
            own = [held_out(evaluation, target, m, ["truth", f"p_{name}"]) for m in methods]
            if reason := no_curve(own[0], name):
                lacking.append(reason)
            else:
                found[target, name] = own
    if lacking and (chosen.classes is not None or not found):
        raise DataError(lacking[0])
    if lacking:
        warn(f"{' '.join(lacking)} Left out.")
    return found
