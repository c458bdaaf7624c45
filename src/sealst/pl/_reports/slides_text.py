"""Sentences and tables of a report on a slide-level model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sealst._core.report import Table
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._keys import Keys
from sealst.pl._base import number
from sealst.pl._evaluation.methods import ADAPTED, FROZEN
from sealst.pl._reports.page import count
from sealst.pl._slides.methods import FLOOR, embeddings_of, held_out, interval_text, kind_of, label_of, targets_of

#: with fewer patients, or fewer of one class or outcome, one more can change what a report says
_FEW_PATIENTS, _FEW_OF_KIND = 100, 20
_METRICS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "ece": "calibration error",
    "brier": "Brier score",
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "r2": "R²",
    "mae": "mean absolute error",
    "c_index": "c-index",
    "c_index_ipcw": "c-index (IPCW)",
}
_NOT_CAUSE = (
    "Held-out patients come from the same cohort. Scanner, stain and hospital can carry the label; only another cohort "
    "can tell."
)
_INTERVALS = (
    "Intervals come from drawing held-out patients anew. The models are the same in every draw, so they do not say how "
    "another training would come out."
)
_POOLED = "All held-out patients in one pool, 95 % bootstrap interval over patients in brackets."
_RISK = "Risks of different folds come from different models and have different scales."


def metric_name(metric: str) -> str:
    """Name of a metric for readers."""
    return _METRICS.get(metric, metric.replace("_", " "))


def is_difference(table: pd.DataFrame) -> pd.Series:
    """Rows that compare two embeddings."""
    return table["method"].astype(str).str.contains(" - ", regex=False)


def lead(evaluation: SlideEvaluation) -> list[str]:
    """What this is about, in one paragraph."""
    frame, facts = evaluation.predictions, evaluation.facts
    targets, folds = targets_of(evaluation, None), [f for f in frame["fold"].astype(str).unique() if f]
    models = f", a model ({facts['aggregator']}) per fold," if "aggregator" in facts else ""
    return [
        f"{', '.join(targets)} ({evaluation.task}) {'was' if len(targets) == 1 else 'were'} predicted from tile "
        f"embeddings of {count(frame['slide'].nunique(), 'slide')} of "
        f"{count(frame[Keys.PATIENT].nunique(), 'patient')}{models} held out in {count(len(folds), 'fold')}."
    ]


def methods(evaluation: SlideEvaluation) -> list[str]:
    """One line per embedding, and the floor."""
    kinds = {m: kind_of(evaluation, m) for m in embeddings_of(evaluation)}
    meanings = {
        ADAPTED: "tile embeddings of the encoder after training with expression",
        FROZEN: f"tile embeddings of {'the same' if ADAPTED in kinds.values() else 'an'} encoder as published",
    }
    lines = [f"{label_of(evaluation, m)}: {meanings[k]}." if k in meanings else f"{m}." for m, k in kinds.items()]
    if (evaluation.table["method"] == FLOOR).any():
        lines.append(
            "floor: for every slide of a fold the same answer, what the labels of the fold's training slides say "
            "without looking at any slide."
        )
    return lines


def summary_tables(evaluation: SlideEvaluation) -> list[Table]:
    """Pooled numbers with intervals, and paired differences."""
    pooled = evaluation.table[evaluation.table["fold"] == ""]
    differs = is_difference(pooled)
    scores = [Table(_wide(evaluation, pooled[~differs], signed=False), _POOLED)]
    if differs.any():
        text = "Paired differences between embeddings (first less second), the same patients drawn for both."
        scores.append(Table(_wide(evaluation, pooled[differs], signed=True), text))
    return scores


def _wide(evaluation: SlideEvaluation, rows: pd.DataFrame, *, signed: bool) -> pd.DataFrame:
    cells = {}
    for row in rows.to_dict("records"):
        bounds = [pd.Series([row.get(end, np.nan)]) for end in ("low", "high")]
        text = interval_text(row["value"], *bounds) if np.isfinite(row["value"]) else "–"
        name = label_of(evaluation, str(row["method"]))
        cells[(str(row["target"]), name, metric_name(str(row["metric"])))] = (
            f"+{text}" if signed and row["value"] > 0 else text
        )
    frame = pd.Series(cells).unstack(level=2, sort=False).fillna("–")
    return frame.rename_axis(["target", "method"]).reset_index()


def fold_tables(evaluation: SlideEvaluation) -> list[Table]:
    """The first metric fold by fold: how much it depends on who is held out."""
    rows = evaluation.table[(evaluation.table["fold"] != "") & ~is_difference(evaluation.table)]
    if rows.empty:
        return []
    metric = str(rows["metric"].iloc[0])
    own = rows[rows["metric"] == metric].assign(method=lambda t: [label_of(evaluation, str(m)) for m in t["method"]])
    wide = own.pivot_table(index=["target", "method"], columns="fold", values="value", sort=False, observed=True)
    frame = wide.map(lambda v: number(v, ".2f") if np.isfinite(v) else "–").fillna("–")
    frame.columns = [f"fold {name}" for name in frame.columns]
    return [Table(frame.reset_index(), f"{metric_name(metric)} fold by fold.")]


def confusion_tables(evaluation: SlideEvaluation) -> list[Table]:
    """True against predicted class of the first embedding, slides counted."""
    tables = []
    method = embeddings_of(evaluation)[0]
    for target in targets_of(evaluation, None):
        frame = held_out(evaluation, target, method, ["truth", "prediction"]).frame
        counts = pd.crosstab(frame["truth"].astype(str), frame["prediction"].astype(str))
        classes = [str(one) for one in evaluation.facts.get("classes", {}).get(target, [])]
        if set(classes) >= {*counts.index, *counts.columns}:
            counts = counts.reindex(index=classes, columns=classes, fill_value=0)
        counts.columns = [f"predicted {name}" for name in counts.columns]
        shown = counts.rename_axis("true class").reset_index()
        said = f"{target}: held-out slides by true and most probable class, {label_of(evaluation, method)}."
        tables.append(Table(shown, said))
    return tables


def limits(evaluation: SlideEvaluation) -> list[str]:
    """What the numbers cannot say, counted from the data."""
    points = []
    for target in targets_of(evaluation, None):
        own = evaluation.predictions[evaluation.predictions["target"] == target].drop_duplicates(Keys.PATIENT)
        if evaluation.task == "survival":
            events = int(own["event"].astype(bool).sum())
            text = f"{target}: {count(events, 'patient')} of {len(own)} with an event."
            points.append(f"{text} That is few." if events < _FEW_OF_KIND else text)
        elif evaluation.task == "classification":
            counts = own["truth"].astype(str).value_counts()
            text = f"{target}: patients by class {', '.join(f'{k} {v}' for k, v in counts.items())}."
            points.append(f"{text} The smallest class is small." if counts.min() < _FEW_OF_KIND else text)
    n, slides = (evaluation.predictions[c].nunique() for c in (Keys.PATIENT, "slide"))
    if n < _FEW_PATIENTS:
        points.insert(0, f"{count(n, 'patient')} {'is' if n == 1 else 'are'} few: expect intervals to be wide.")
    if slides > n:
        points.append(f"{slides} slides of {count(n, 'patient')} are not {slides} independent observations.")
    if evaluation.task == "survival":
        points.append(_RISK)
    return [*points, _INTERVALS, _NOT_CAUSE]
