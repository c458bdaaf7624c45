"""What an evaluation found: tables of numbers and the maps behind them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from anndata import AnnData

from sealst._validate import check_key

_SHOWN = ("pearson", "R@10", "gene→image R@10")


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
        Preset, encoder, folds, seeds, views of a crop, what the models of folds were made of (``"models"``) and
        versions; with early stopping ``"stopped_by"``, the training sections of every
        fold that were held out for it.
    """

    table: pd.DataFrame
    genes: pd.DataFrame
    pathways: pd.DataFrame
    spots: dict[str, AnnData] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Frames of several runs, one below the other, would repeat the labels of rows.
        for name in ("table", "genes", "pathways"):
            object.__setattr__(self, name, getattr(self, name).reset_index(drop=True))

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary().round(3).to_html()}"

    def __repr__(self) -> str:
        folds, sections = ((self.table[c].unique() != "").sum() for c in ("fold", "section"))
        preset = self.facts.get("preset", "?")
        return (
            f"Evaluation {preset!r}: {folds} fold(s), {sections} section(s), {self.table['method'].nunique()} methods"
        )

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
