"""Whether predictions of slides mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import linregress

from sealst._core.scores.slide_curves import reliability
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._docs import documented
from sealst._validate import check_count
from sealst.pl import _base
from sealst.pl._base import plain
from sealst.pl._slides.methods import (
    Slides,
    classes_of,
    held_out,
    is_class,
    legend_below,
    methods_of,
    panel_axes,
    require_slides,
    score_text,
    targets_of,
)


@documented
def slide_calibration(
    evaluation: SlideEvaluation,
    *,
    targets: str | Sequence[str] | None = None,
    classes: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    n_bins: int = 5,
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Compare what was predicted for held-out slides with what is true.

    Classification: one panel per target and class with the share of slides that are of the class, by bins of equal
    width of the probability that was predicted, with Wilson's 95 % interval; bars below count the slides of each bin.
    Regression: one panel per target and embedding with a dot per slide, measured over predicted, and a fitted line; on
    the dashed diagonal predictions are right, and a line flatter than it says that differences between slides are
    overstated.

    Parameters
    ----------
    evaluation
        A `tl.SlideEvaluation` of a classification or a regression.
    %(shown.targets)s
    classes
        Classes to show, of a classification; by default the second of two, or all.
    %(embeddings.methods)s
    n_bins
        Bins of the predicted probability.
    %(by_number.n_cols)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a target, a class, a method or a column is absent.
    DataError
        When the evaluation is one of survival, or holds no predictions.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.slide_calibration(model.evaluation, save="calibration.png")  # doctest: +SKIP
    """
    _base.check_save(save)
    check_count("n_bins", n_bins)
    evaluation = require_slides(evaluation, ["classification", "regression"], ["truth", "prediction"])
    shown, kept = targets_of(evaluation, targets), methods_of(evaluation, methods)
    if evaluation.task == "regression":
        pairs = [held_out(evaluation, t, m, ["truth", "prediction"]) for t in shown for m in kept]
        axes = panel_axes(ax, len(pairs), n_cols or min(len(pairs), max(len(kept), 2)), how="`targets=` and `methods=`")
        for one, slides in zip(axes, pairs, strict=True):
            same = [other.frame[["truth", "prediction"]] for other in pairs if other.target == slides.target]
            values = np.concatenate([frame.to_numpy(dtype=float).ravel() for frame in same])
            low, high = float(values.min()), float(values.max())
            margin = 0.05 * (high - low) or 0.5
            truth, predicted = (slides.frame[c].to_numpy(dtype=float) for c in ("truth", "prediction"))
            varies = np.ptp(predicted) > 0 and np.ptp(truth) > 0 and len(truth) > 2
            r = float(np.corrcoef(predicted, truth)[0, 1]) if varies else np.nan
            score = score_text(evaluation, slides, ("pearson",), r)
            title = f"{slides.target}, {slides.label}" + f"\nr = {score}" * bool(score)
            _square(one, (low - margin, high + margin), title)
            one.scatter(predicted, truth, s=16, color=slides.colour, edgecolors="white", linewidths=0.4, zorder=3)
            if varies:
                fit = linregress(predicted, truth)
                ends = np.array([predicted.min(), predicted.max()])
                one.plot(ends, fit.intercept + fit.slope * ends, color=slides.colour, linewidth=1.4, zorder=2)
                text = f"slope {_base.number(float(fit.slope), '.2f')}, {len(truth)} slides"
                one.text(0.97, 0.03, text, transform=one.transAxes, ha="right", fontsize=_base.SMALL_SIZE)
            one.set_xlabel(f"predicted {slides.target}", fontsize=_base.SMALL_SIZE + 1)
            one.set_ylabel(f"measured {slides.target}", fontsize=_base.SMALL_SIZE + 1)
        return _base.finish(_base.figure_of(axes[0]), ax, save, show)
    panels = [(target, name) for target in shown for name in classes_of(evaluation, target, classes)]
    groups = [[held_out(evaluation, t, m, ["truth", f"p_{name}"]) for m in kept] for t, name in panels]
    axes = panel_axes(ax, len(panels), n_cols, how="`targets=` and `classes=`", below=1.2)
    for one, (target, name), own in zip(axes, panels, groups, strict=True):
        _draw_bins(one, own, name, n_bins, title=f"{target}: {name}")
        legend_below(one, -0.36)
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def _draw_bins(ax: Axes, methods: Sequence[Slides], name: str, n_bins: int, *, title: str) -> None:
    _square(ax, (-0.02, 1.02), title)
    ax.set_ylabel(f"share of slides that are {name}", fontsize=_base.SMALL_SIZE + 1)
    ax.tick_params(labelbottom=False)
    counts = ax.inset_axes((0, -0.2, 1, 0.16), sharex=ax)
    plain(counts)
    width = 0.8 / n_bins / len(methods)
    for i, slides in enumerate(methods):
        truth = is_class(slides.frame["truth"], name)
        bins = reliability(truth, slides.frame[f"p_{name}"].to_numpy(dtype=float), n_bins)
        # A hair apart, so that intervals of methods do not hide each other.
        x = bins.predicted + (i - (len(methods) - 1) / 2) * 0.008
        errors = np.clip([bins.observed - bins.low, bins.high - bins.observed], 0, None)
        style: dict[str, Any] = {"color": slides.colour, "elinewidth": 0.9, "linewidth": 1.2, "markersize": 4}
        ax.errorbar(x, bins.observed, yerr=errors, marker="o", label=slides.label, zorder=3, **style)
        middle = (np.minimum((bins.predicted * n_bins).astype(int), n_bins - 1) + 0.5) / n_bins
        place = middle + (i - (len(methods) - 1) / 2) * width
        counts.bar(place, bins.counts, width * 0.92, color=slides.colour)
    ax.set_xlim(-0.02, 1.02)
    counts.set_ylabel("slides", fontsize=_base.SMALL_SIZE)
    counts.set_xlabel(f"predicted probability of {name}", fontsize=_base.SMALL_SIZE + 1)
    counts.tick_params(labelbottom=True)
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def _square(ax: Axes, limits: tuple[float, float], title: str) -> None:
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    ax.set_box_aspect(1)
    plain(ax)
    ax.plot(limits, limits, color="black", linewidth=0.8, linestyle="--", zorder=1)
    ax.set_title(title, fontsize=_base.TITLE_SIZE)
