"""Survival of patients whom a slide-level model calls at high and at low risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sealst._core.scores.slide_curves import at_risk, log_rank, survival_curve
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._validate import check_choice, listed
from sealst.pl import _base
from sealst.pl._base import RISK_COLOURS, plain
from sealst.pl._slides.methods import (
    Slides,
    held_out,
    methods_of,
    panel_axes,
    require_slides,
    score_text,
    targets_of,
)

_GROUPS = ("high risk", "low risk")
_COLUMNS = ("prediction", "time", "event")
#: points below the axis: the table's heading, and each of its lines
_TABLE_PT, _LINE_PT = 32.0, 10.5
#: points beside the axis' start: where the names of the table's lines end
_LEFT_PT = -12


@documented
def kaplan_meier(
    evaluation: SlideEvaluation,
    *,
    targets: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    split: Literal["fold", "all"] = "fold",
    time_label: str = "time",
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Draw survival of patients above and below the median of their held-out risk, adapted beside frozen.

    One panel per target and embedding, with pointwise 95 % intervals (log-log), ticks where patients were censored, the
    log-rank test's two-sided p-value, the evaluation's c-index with its interval where it has one, and how many
    patients are at risk. A patient with several slides counts once, with the mean of their risks. Two groups are a
    picture of the risk, not a cut-off for use.

    Parameters
    ----------
    evaluation
        A `tl.SlideEvaluation` of survival.
    %(shown.targets)s
    %(embeddings.methods)s
    split
        ``"fold"``: at the median within each fold, since every fold's model has a scale of its own; ``"all"``: at the
        median of all held-out patients.
    time_label
        Label of the time axis, with its unit, such as ``"months"``.
    n_cols
        Panels in a row; by default the embeddings of one target.
    ax
        Axes to draw into, for a single panel; leave room below it for the patients at risk.
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a target, a method or a column is absent.
    DataError
        When the evaluation is not one of survival, a patient's slides state different outcomes, all risks of a target
        are equal, or scikit-survival is not installed.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.kaplan_meier(model.evaluation, time_label="months", save="survival.png")  # doctest: +SKIP
    """
    _base.check_save(save)
    check_choice("split", split, ["fold", "all"])
    evaluation = require_slides(evaluation, ["survival"], _COLUMNS)
    shown, kept = targets_of(evaluation, targets), methods_of(evaluation, methods)
    pairs = [_patients(held_out(evaluation, t, m, _COLUMNS)) for t in shown for m in kept]
    groups = [_is_high(slides, split) for slides in pairs]
    axes = panel_axes(ax, len(pairs), n_cols or min(len(pairs), max(len(kept), 2)), how="`targets=` and `methods=`")
    latest = {t: max(s.frame["time"].max() for s in pairs if s.target == t) for t in shown}
    for one, slides, high in zip(axes, pairs, groups, strict=True):
        times, events = (slides.frame[c].to_numpy() for c in ("time", "event"))
        index = score_text(evaluation, slides, ("c_index", "harrell_c", "concordance"))
        p = log_rank(times.astype(float), events.astype(bool), high)
        said = "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.095 else f"p = {p:.2f}"
        test = f"log-rank {said if np.isfinite(p) else 'undefined'}" if events.any() else "no event"
        facts = [f"c-index {index}" if index else "", test]
        title = f"{slides.target}, {slides.label}\n" + ", ".join(filter(None, facts))
        one.set_title(title, fontsize=_base.TITLE_SIZE)
        one.set_ylim(0, 1.03)
        one.set_xlim(0, 1.03 * latest[slides.target])
        one.set_box_aspect(0.85)
        one.xaxis.set_major_locator(MaxNLocator(5))
        plain(one)
        one.set_ylabel("share of patients without event", fontsize=_base.SMALL_SIZE + 1)
        one.set_xlabel(time_label, fontsize=_base.SMALL_SIZE + 1)
        for name, colour, rows in zip(_GROUPS, RISK_COLOURS, (high, ~high), strict=True):
            frame = slides.frame[rows]
            time, event = frame["time"].to_numpy(dtype=float), frame["event"].to_numpy(dtype=bool)
            curve = survival_curve(time, event)
            label = f"{name} ({int(event.sum())} of {len(event)} with event)"
            one.step(curve.time, curve.share, where="post", color=colour, linewidth=1.6, label=label, zorder=3)
            one.fill_between(
                curve.time, curve.low, curve.high, step="post", color=colour, alpha=0.18, linewidth=0, zorder=2
            )
            censored = time[~event]
            height = curve.share[np.searchsorted(curve.time, censored, side="right") - 1]
            one.plot(
                censored, height, linestyle="none", marker="|", markersize=5, color=colour, zorder=4, gid="censored"
            )
        # Patients at risk below the axis, at its ticks.
        ticks = np.array([tick for tick in one.get_xticks() if 0 <= tick <= one.get_xlim()[1]])
        style: dict[str, Any] = {"fontsize": _base.SMALL_SIZE, "annotation_clip": False, "va": "top"}
        style["textcoords"] = "offset points"
        one.annotate("at risk", (0, 0), (_LEFT_PT, -_TABLE_PT), xycoords="axes fraction", ha="right", **style)
        for i, (name, colour, rows) in enumerate(zip(_GROUPS, RISK_COLOURS, (high, ~high), strict=True)):
            y = -_TABLE_PT - (i + 1) * _LINE_PT
            one.annotate(name, (0, 0), (_LEFT_PT, y), xycoords="axes fraction", ha="right", color=colour, **style)
            for tick, n in zip(ticks, at_risk(times.astype(float)[rows], ticks), strict=True):
                place = ("data", "axes fraction")
                one.annotate(str(n), (tick, 0), (0, y), xycoords=place, ha="center", gid="at risk", **style)
        one.legend(fontsize=_base.SMALL_SIZE, frameon=False, loc="best")
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def _patients(slides: Slides) -> Slides:
    """One row per fold and patient, with the mean of the slides' risks."""
    frame = slides.frame.assign(event=slides.frame["event"].astype(bool), time=slides.frame["time"].astype(float))
    outcomes = frame.groupby(Keys.PATIENT, observed=True)[["time", "event"]].nunique()
    if (several := outcomes[(outcomes > 1).any(axis=1)]).size:
        raise DataError(
            f"Slides of patient(s) {listed(several.index, 3)} state different times or events; a patient has one "
            "outcome. Correct the labels."
        )
    if (frame["time"] < 0).any():
        raise DataError(f"Times of {slides.target!r} must not be negative, found {frame['time'].min():g}.")
    rules = {"prediction": ("prediction", "mean"), "time": ("time", "first"), "event": ("event", "first")}
    one = frame.groupby(["fold", Keys.PATIENT], observed=True, sort=False).agg(**rules).reset_index()
    if one[Keys.PATIENT].duplicated().any():
        # Repeated cross-validation: one patient is one observation.
        rules |= {"fold": ("fold", "first")}
        one = one.groupby(Keys.PATIENT, observed=True, sort=False).agg(**rules).reset_index()
    return replace(slides, frame=one)


def _is_high(slides: Slides, split: str) -> np.ndarray:
    risk = slides.frame["prediction"].astype(float)
    middle = risk.groupby(slides.frame["fold"], observed=True).transform("median") if split == "fold" else risk.median()
    high = (risk > middle).to_numpy()
    if high.all() or not high.any():
        way = "Folds of one patient have no median: use `split='all'`." if split == "fold" else "All risks are equal."
        raise DataError(f"No patients of {slides.target!r} lie above the median risk by {slides.method!r}. {way}")
    return high
