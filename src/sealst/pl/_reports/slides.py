"""One HTML file on a slide-level model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from spatialdata import SpatialData

from sealst._core.report import Block
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._docs import documented
from sealst._errors import SealstWarning
from sealst._validate import listed
from sealst.pl._maps.attention import attention
from sealst.pl._reports import slides_text as text
from sealst.pl._reports.page import check_page, facts_table, picture_of, versions_table, write_page
from sealst.pl._slides.calibration import slide_calibration
from sealst.pl._slides.curves import precision_recall, roc
from sealst.pl._slides.kaplan_meier import kaplan_meier
from sealst.pl._slides.methods import classes_of, embeddings_of, held_out, no_curve, require_slides, targets_of

_TASKS = ("classification", "regression", "survival")


@documented
def slide_report(
    evaluation: SlideEvaluation,
    path: str | Path,
    *,
    title: str | None = None,
    slides: Mapping[str, SpatialData] | None = None,
    time_label: str = "time",
) -> Path:
    """Write one HTML file on a slide-level model: what was compared, what was found, and what that cannot say.

    The file needs nothing beside it and fetches nothing, so it can be sent by mail. It holds the held-out numbers with
    intervals, paired differences to the frozen encoder, folds one by one, curves, calibration, attention, limits and
    versions.

    Parameters
    ----------
    evaluation
        A `tl.SlideEvaluation`.
    %(html.path)s
    title
        Title; by default it names the targets.
    slides
        Slides by name with attention (`tl.predict_slide`) and crops, to show where the model looked.
    time_label
        Label of the time axis of survival curves, with its unit.

    Returns
    -------
    The path of the file.

    Raises
    ------
    DataError
        When `path` does not end in ``.html``, or there are no results.
    OrderError
        When a slide of `slides` has no attention.

    Examples
    --------
    >>> import sealst as sl
    >>> sl.pl.slide_report(model.evaluation, "slides.html", slides={"S1": sdata})  # doctest: +SKIP
    """
    path = Path(path)
    require_slides(evaluation, _TASKS)
    check_page(path, evaluation.table, "SlideEvaluation")
    facts = evaluation.facts
    versions = facts.get("versions", facts.get("version", {}))
    if not isinstance(versions, Mapping):
        versions = {"sealst that made the numbers": versions}
    folds = text.fold_tables(evaluation)
    spread = "Models of different folds saw different patients; the spread says how much that matters."
    blocks = [
        Block("What was compared", points=text.methods(evaluation), tables=[facts_table(facts)]),
        Block("Summary", tables=text.summary_tables(evaluation)),
        *([Block("Folds", [spread], tables=folds)] if folds else []),
        *_figures(evaluation, time_label),
        *_attention(dict(slides or {})),
        Block("Limits", points=text.limits(evaluation)),
        Block("Versions", tables=[versions_table({"versions": versions})]),
    ]
    title = title or f"Slide-level prediction of {', '.join(map(str, facts.get('targets', ['labels'])))}"
    return write_page(path, title, text.lead(evaluation), blocks)


def _figures(evaluation: SlideEvaluation, time_label: str) -> list[Block]:
    scores = text.summary_tables(evaluation)[0].frame
    numbers = "; ".join(f"{row.target}, {row.method}: {row[2]}" for row in scores.iloc[:, :3].itertuples(index=False))
    if evaluation.task == "survival":
        caption = "Patients above and below the median held-out risk of their fold, with 95 % intervals."
        shown = picture_of(kaplan_meier, caption, evaluation, time_label=time_label, alt=f"Survival curves. {numbers}.")
        return [Block("Survival", figures=[shown])]
    if evaluation.task == "regression":
        caption = "Measured over predicted, a dot per held-out slide; on the dashed line predictions are right."
        shown = picture_of(slide_calibration, caption, evaluation, alt=f"Scatter plots. {numbers}.")
        return [Block("Predicted and measured", figures=[shown])]
    caption = "Share of slides of the class by predicted probability, with Wilson's 95 % interval."
    reliability = picture_of(slide_calibration, caption, evaluation, alt="Reliability diagram, with slides per bin.")
    confusion = text.confusion_tables(evaluation)
    return [_curves(evaluation, numbers), Block("Calibration", tables=confusion, figures=[reliability])]


def _curves(evaluation: SlideEvaluation, numbers: str) -> Block:
    """Curves of the classes that have some; of the others why not."""
    method = embeddings_of(evaluation)[0]
    reasons = [
        no_curve(held_out(evaluation, target, method, ["truth", f"p_{name}"]), name)
        for target in targets_of(evaluation, None)
        for name in classes_of(evaluation, target, None)
    ]
    lacking = [reason for reason in reasons if reason]
    if len(lacking) == len(reasons):
        return Block("Curves", lacking)
    band = "Shaded: pointwise 95 % bootstrap interval over patients."
    shown = (
        (roc, f"ROC curves. {band}", "ROC curves"),
        (precision_recall, f"Precision over recall; dotted: the share of the class. {band}", "Precision-recall curves"),
    )
    with warnings.catch_warnings():
        # The page says so.
        warnings.filterwarnings("ignore", message="All held-out slides", category=SealstWarning)
        curves = [
            picture_of(draw, text, evaluation, alt=f"{name} of each embedding. {numbers}.")
            for draw, text, name in shown
        ]
    return Block("Curves", lacking, figures=curves)


def _attention(slides: dict[str, SpatialData]) -> list[Block]:
    if not slides:
        return []
    what = "attention (percentile within the slide) and the most attended crops."
    pictures = [
        picture_of(attention, f"Slide {name}: {what}", sdata, alt=f"Attention map of slide {name}.")
        for name, sdata in slides.items()
    ]
    line = (
        f"Attention in {listed(slides)}. It says which tiles a model used, not why, and not what causes the label; "
        "look for pen marks, folds and borders of the tissue among the most attended crops."
    )
    return [Block("Where the model looked", [line], figures=pictures)]
