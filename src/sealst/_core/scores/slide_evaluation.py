"""What the cross-validation of a slide-level model found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sealst._keys import Keys
from sealst._validate import patient_names


@dataclass(frozen=True, eq=False)
class SlideEvaluation:
    """Held-out results of a slide-level model, beside those of the frozen encoder.

    Attributes
    ----------
    table
        One number per row: `fold` (``""`` for all held-out patients together), `method` (name of the embedding, such as
        ``"X_seal"``, ``"X_frozen"``; or ``"floor"``), `target`, `metric`, `value`, `low` and `high` (95 % bootstrap
        interval over patients), `n` (slides), `n_patients`. Rows with `method` ``"X_seal - X_frozen"`` are paired
        differences.
    predictions
        One row per held-out slide, method and target: `slide`, `patient`, `fold`, `method`, `target`, `truth` and
        `prediction` (regression: in the unit of the target; survival: the log risk, higher is worse). Classification
        has `p_<class>` for every class, and `prediction` is the most probable class; survival has `time` and `event`
        (bool) in place of `truth`.
    facts
        Task, targets, classes, aggregator, embeddings, folds, seed and versions.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if Keys.PATIENT in self.predictions:
            # Tables that were stored and read again may hold numbers.
            named = self.predictions.assign(**{Keys.PATIENT: patient_names(self.predictions[Keys.PATIENT])})
            object.__setattr__(self, "predictions", named)

    @property
    def task(self) -> str:
        """``"classification"``, ``"regression"`` or ``"survival"``."""
        return str(self.facts["task"])

    def summary(self) -> pd.DataFrame:
        """Pooled held-out numbers: targets and methods in rows, metrics in columns."""
        pooled = self.table[self.table["fold"] == ""]
        rows = pd.MultiIndex.from_frame(pooled[["target", "method"]].drop_duplicates())
        columns = pd.Index(pooled["metric"].unique(), name="metric")
        # A metric that is undefined for all stays as a column of NaN: `pivot_table` would leave it out.
        return pooled.pivot(index=["target", "method"], columns="metric", values="value").reindex(rows, columns=columns)

    def __repr__(self) -> str:
        targets, methods = self.table["target"].nunique(), self.predictions["method"].nunique()
        return f"SlideEvaluation of a {self.task}: {targets} target(s), {methods} embedding(s)"

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>{self.summary().round(3).to_html()}"
