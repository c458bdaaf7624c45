"""What an evaluation found: tables of numbers and the maps behind them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst._validate import check_key

_SHOWN = ("pearson", "R@10", "gene→image R@10")
#: methods whose curve is put into words, the first that there is
_TOLD = ("adapted + ridge", "frozen + ridge")
#: what a part differs by, the largest first
_UNITS = {"n_patients": "training patients", "n_sections": "training sections", "n_spots": "training spots"}
#: the step that is put into words is the one nearest to twice the data
_HALF = 0.5
_WORDS = {0.5: "half", 0.25: "a quarter", 0.75: "three quarters", 0.1: "a tenth"}
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of `sealst.tl.evaluate`.

    Attributes
    ----------
    table
        One number per row: `fold`, `seed`, `section` (``""`` for all test sections of a fold together), `patient`,
        `organ`, `technology`, `method`, `genes` (name of a gene set, or ``""``), `metric`, `value`, `low` and `high`
        (95 % bootstrap interval), `pool` and `chance` (retrieval).
    genes
        One row per fold, seed, section, method and scored gene: `pearson`, `spearman`, `r2`, `slope` (of measured on
        predicted, 1 is calibrated), `moran_measured`, `moran_predicted`, `moran_residual`.
    pathways
        One row per fold, seed, section, method and gene set: `pearson` and `spearman` of the method's score and the
        activity in measured expression, `auroc` and `average_precision` of the score against the tenth of spots with
        the highest measured activity, and `n_genes` behind it. The score is the activity in predicted expression; for
        ``"seal query"`` it is the similarity of image embeddings to the gene set, as `sealst.tl.retrieve` asks it.
        Empty without gene sets.
    spots
        Held-out spots by section: measured expression of the scored genes in the preset's unit (``"cv"`` log1p-CP10k,
        ``"hest"`` log1p of counts) in ``.X``, predictions in ``.layers`` by
        method, ``.obsm["spatial"]`` in µm. Empty where there were too many spots.
    facts
        Preset, encoder, the encoder that it began as (``"base"``), folds, seeds, views of a crop, what the models of
        folds were made of (``"models"``) and versions; with early stopping ``"stopped_by"``, the training sections of
        every fold that were held out for it; with `train_fractions` these and ``"n_draws"``.
    curve
        Learning curve, of `train_fractions`; one row per fraction, fold, draw, seed, method, gene set and metric:
        `fraction` of the training side, `n_patients`, `n_sections` and `n_spots` that were learned from, and `value`,
        the mean over the test sections. Fraction 1 is what `table` says. Empty where nothing was asked for.
    """

    table: pd.DataFrame
    genes: pd.DataFrame
    pathways: pd.DataFrame
    spots: dict[str, AnnData] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        # Frames of several runs, one below the other, would repeat the labels of rows.
        for name in ("table", "genes", "pathways", "curve"):
            object.__setattr__(self, name, getattr(self, name).reset_index(drop=True))

    def _repr_html_(self) -> str:
        text = html.escape(repr(self)).replace("\n", "<br>")
        return f"<p>{text}</p>{self.summary().round(3).to_html()}"

    def __repr__(self) -> str:
        folds, sections = ((self.table[c].unique() != "").sum() for c in ("fold", "section"))
        preset = self.facts.get("preset", "?")
        methods = self.table["method"].nunique()
        first = f"Evaluation {preset!r}: {folds} fold(s), {sections} section(s), {methods} methods"
        return "\n".join([first, *curve_lines(self.curve)])

    def summary(self, metrics: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Means over sections within a fold, then over folds and seeds: methods in rows, (metric, genes) in columns.

        Parameters
        ----------
        metrics
            Values of the table's column ``metric``, or ``"all"``. By default those that fit on a screen: Pearson of the
            genes, and recall among the 10 nearest in both directions.

        Returns
        -------
        The means.

        Raises
        ------
        MissingKeyError
            When a metric is not in the table.
        """
        single = self.table[self.table["section"] != ""]
        single = single if len(single) else self.table
        known = list(single["metric"].unique())
        if metrics is None:
            metrics = [m for m in _SHOWN if m in known] or known
        elif metrics == "all":
            metrics = known
        wanted = [metrics] if isinstance(metrics, str) else list(metrics)
        for metric in wanted:
            check_key(known, metric, where="the table's `metric`", hint="`metrics='all'` shows every one.")
        single = single[single["metric"].isin(wanted)]
        # A fold counts once, however many sections it tests on.
        keys = [c for c in ("method", "metric", "genes", "fold", "seed") if c in single]
        single = single.groupby(keys, sort=False, observed=True)["value"].mean().reset_index()
        return single.pivot_table(index="method", columns=["metric", "genes"], values="value", sort=False)


def unit_of(curve: pd.DataFrame) -> str:
    """Column that says how much was learned from: patients where parts differ in them, else sections, else spots."""
    means = curve.groupby("fraction")[list(_UNITS)].mean()
    return next((unit for unit in _UNITS if (means[unit].diff().dropna() > 0).all()), "n_spots")


def steps(curve: pd.DataFrame, metric: str = "pearson") -> pd.DataFrame:
    """What all of the training side gave more than a part of it, by method, gene set and fraction.

    Values of one fold are compared with each other, as patients differ by more than what is learned. Draws and seeds of
    a fold are averaged first: they share its test patients.

    Parameters
    ----------
    curve
        ``Evaluation.curve``.
    metric
        Metric that is compared.

    Returns
    -------
    Columns ``method``, ``genes``, ``fraction``, ``value`` (mean over folds), ``whole`` (that of all of the training
    side), ``difference``, its 95 % interval ``low`` and ``high`` (t-distribution over folds; NaN with one) and
    ``n_folds``.
    """
    from scipy.stats import t

    found = []
    own = curve[curve["metric"] == metric]
    for (method, genes), rows in own.groupby(["method", "genes"], sort=False):
        wide = rows.pivot_table(index="fold", columns="fraction", values="value")
        for fraction in [part for part in wide if part < 1 and 1 in wide]:
            pairs = wide[[fraction, 1.0]].dropna()
            gain, n = (pairs[1.0] - pairs[fraction]).to_numpy(), len(pairs)
            if not n:
                continue
            half = t.ppf((1 + _CONFIDENCE) / 2, n - 1) * gain.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
            row = {"method": method, "genes": genes, "fraction": fraction, "value": pairs[fraction].mean()}
            row |= {"whole": pairs[1.0].mean(), "difference": gain.mean(), "n_folds": n}
            found.append(row | {"low": gain.mean() - half, "high": gain.mean() + half})
    return pd.DataFrame(found)


def curve_lines(curve: pd.DataFrame) -> list[str]:
    """One line per gene set: what all of the training side gave more than half of it."""
    if curve.empty:
        return []
    known = steps(curve)
    method = next((one for one in _TOLD if len(known) and (known["method"] == one).any()), None)
    if method is None:
        return []
    known = known[known["method"] == method]
    fraction = min(known["fraction"], key=lambda part: abs(np.log(part / _HALF)))
    lines = []
    for row in known[known["fraction"] == fraction].to_dict("records"):
        lines.append(f"learning curve, {method}, {row['genes']}: {_step(row, curve)}")
    return lines


def _step(row: Mapping[str, Any], curve: pd.DataFrame) -> str:
    unit = unit_of(curve)
    n = curve.groupby("fraction")[unit].mean()
    share = _WORDS.get(row["fraction"], f"{100 * row['fraction']:.3g} %")
    amount = [
        f"{n[fraction]:.0f}" if unit == "n_spots" else f"{n[fraction]:.3g}" for fraction in (row["fraction"], 1.0)
    ]
    value = f"r {row['value']:.3f} -> {row['whole']:.3f}"
    text = f"from {share} to all of the {_UNITS[unit]} ({amount[0]} -> {amount[1]}): {value}"
    if row["n_folds"] < 2:
        return f"{text}; one fold, so whether that is more than noise is not known"
    half = (row["high"] - row["low"]) / 2
    text = f"{text}, {row['difference']:+.3f} ± {half:.3f} over {row['n_folds']} folds; "
    if row["low"] > 0:
        return text + "still rising"
    return text + ("falling" if row["high"] < 0 else "no change that these folds tell from noise")
