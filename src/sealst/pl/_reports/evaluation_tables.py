"""Tables of a report on an evaluation, formatted for readers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sealst._core.report import Table
from sealst.pl._base import metric_label, number
from sealst.pl._evaluation.methods import POOLED

#: ways to search by the beginning of a metric's name
_DIRECTIONS = {"gene→image ": "expression → image", "image→image ": "image → image", "": "image → expression"}


def is_difference(table: pd.DataFrame) -> pd.Series:
    """Rows that compare two methods instead of scoring one."""
    return table["metric"].astype(str).str.contains("difference")


def is_retrieval(table: pd.DataFrame) -> pd.Series:
    """Rows about search."""
    pool = table["pool"].notna() if "pool" in table else pd.Series(data=False, index=table.index)
    return pool & ~is_difference(table)


def expression_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows that score predicted expression in a fold."""
    rows = table[~is_difference(table) & ~is_retrieval(table)]
    return rows[rows["fold"] != ""] if (rows["fold"] != "").any() else rows


def summary_tables(table: pd.DataFrame) -> list[Table]:
    """Mean ± standard deviation over folds: single sections, and sections of a fold pooled."""
    rows = expression_rows(table)
    parts = {
        "sections scored one by one, then averaged": rows[rows["section"] != ""],
        "test sections of a fold scored together": rows[rows["section"] == ""],
    }
    found = []
    for what, part in parts.items():
        if part.empty:
            continue
        n = part["fold"].nunique()
        spread = f"Mean ± standard deviation over {n} folds" if n > 1 else "One fold, so without a spread"
        keys = ["method", "metric", "genes", "fold"]
        folds = part.groupby(keys, sort=False, observed=True, dropna=False)["value"].mean()
        groups = folds.groupby(level=["method", "metric", "genes"], sort=False, dropna=False)
        cells = pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=1)})
        text = [_with_spread(mean, sd) for mean, sd in cells.to_numpy()]
        order = pd.unique(part["method"])
        wide = pd.Series(text, index=cells.index).unstack(["metric", "genes"]).reindex(order)
        wide.columns = [", ".join(filter(None, (metric_label(m), str(g or "")))) for m, g in wide.columns]
        found.append(Table(wide.fillna("–").rename_axis("method").reset_index(), f"{spread}; {what}."))
    return found


def _with_spread(mean: float, sd: float) -> str:
    if not np.isfinite(mean):
        return "–"
    return number(mean, ".3f") + (f" ± {sd:.3f}" if np.isfinite(sd) else "")


def difference_tables(table: pd.DataFrame) -> list[Table]:
    """Paired differences with their intervals, over everything where that was computed; nothing without such rows."""
    rows = table[is_difference(table)]
    for column in ("section", "fold"):
        rows = rows[rows[column] == ""] if (rows[column] == "").any() else rows
    if rows.empty:
        return []
    frame = pd.DataFrame({"method": rows["method"].astype(str)})
    for column in ("genes", "metric", "fold", "section"):
        # A column that says nothing, or the same in every row, is left out.
        if (column == "genes" and rows[column].ne("").any()) or rows[column].nunique() > 1:
            frame[column] = rows[column].astype(str).replace("", POOLED)
    frame["difference"] = [number(v, "+.3f") for v in rows["value"]]
    frame["95 % interval"] = [
        f"{number(low, '+.3f')} to {number(high, '+.3f')}" if np.isfinite([low, high]).all() else "–"
        for low, high in rows.reindex(columns=["low", "high"]).to_numpy(dtype=float)
    ]
    return [Table(frame, "Paired difference to the frozen encoder (positive: better than frozen).")]


def retrieval_tables(table: pd.DataFrame) -> list[Table]:
    """Search among the spots of a section, and of all test sections of a fold, with what guessing reaches."""
    rows = table[is_retrieval(table)]
    prefix = rows["metric"].map(lambda metric: next(p for p in _DIRECTIONS if str(metric).startswith(p)))
    measure = [str(metric).removeprefix(p) for metric, p in zip(rows["metric"], prefix, strict=True)]
    rows = rows.assign(direction=prefix.map(_DIRECTIONS), measure=measure)
    parts = {
        "Among the spots of one section": rows[rows["section"] != ""],
        "Among the spots of all test sections of a fold": rows[rows["section"] == ""],
    }
    return [
        Table(_retrieval(part), f"{what}; in brackets what guessing reaches.")
        for what, part in parts.items()
        if len(part)
    ]


def _retrieval(rows: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for (direction, method), own in rows.groupby(["direction", "method"], sort=False, observed=True):
        low, high = int(own["pool"].min()), int(own["pool"].max())
        line = {"direction": direction, "method": method, "pool": f"{low}" if low == high else f"{low} to {high}"}
        for measure, cells in own.groupby("measure", sort=False, observed=True):
            form = ".1f" if measure == "median_rank" else ".3f"
            chance = cells["chance"].mean()
            line[metric_label(str(measure))] = f"{cells['value'].mean():{form}}" + (
                f" ({chance:{form}})" if np.isfinite(chance) else ""
            )
        lines.append(line)
    return pd.DataFrame(lines).fillna("–").sort_values("direction", ascending=False, kind="stable")


def pathway_tables(pathways: pd.DataFrame) -> list[Table]:
    """How well predictions and queries tell where a pathway is active, by method."""
    if pathways.empty:
        return []
    single = pathways[pathways["section"] != ""] if (pathways["section"] != "").any() else pathways
    found = [Table(_by_method(single, "pearson"), "Pearson r with the measured activity, mean over sections.")]
    if "auroc" in single:
        title = "AUROC of finding the tenth of spots with the highest measured activity, mean over sections."
        found.append(Table(_by_method(single, "auroc"), title))
    return found


def _by_method(pathways: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Pathways in rows, methods in columns, as text."""
    mean = pathways.pivot_table(index="pathway", columns="method", values=measure, sort=False, observed=True)
    n = pathways.groupby("pathway", observed=True)["n_genes"].median().reindex(mean.index)
    frame = mean.map(lambda v: number(v, ".2f") if np.isfinite(v) else "–").fillna("–")
    frame.insert(0, "genes", n.astype(int))
    return frame.rename_axis("pathway").reset_index()
