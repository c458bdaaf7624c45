"""Tables of a report on an evaluation, formatted for readers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from sealst._core.report import Table
from sealst._core.scores.reliability import BETTER, FALSE_DISCOVERIES, above_zero
from sealst._evaluation import steps
from sealst.pl._base import metric_label, number
from sealst.pl._evaluation.methods import POOLED

#: ways to search by the beginning of a metric's name
_DIRECTIONS = {"gene→image ": "expression → image", "image→image ": "image → image", "": "image → expression"}
#: how metrics begin that count neighbours of the right spot as found
_NEAR = "near "


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


def main_metric(rows: pd.DataFrame) -> str:
    """The metric that is shown first."""
    known = [str(metric) for metric in pd.unique(rows["metric"])]
    return "pearson" if "pearson" in known else known[0]


def summary_tables(table: pd.DataFrame) -> list[Table]:
    """The first metric, sections one by one: mean ± standard deviation over folds, a column per gene set."""
    rows = expression_rows(table)
    single = (rows["section"] != "").any()
    rows = rows[rows["section"] != ""] if single else rows
    main, what = main_metric(rows), "; sections scored one by one, then averaged" if single else ""
    own = rows[rows["metric"] == main]
    wide = _spread_over_folds(own).droplevel("metric", axis=1)
    wide.columns = [str(genes or metric_label(main)) for genes in wide.columns]
    return [Table(_framed(wide), f"{metric_label(main)}. {_how(own)}{what}.")]


def other_tables(table: pd.DataFrame) -> list[Table]:
    """The other metrics, a table per gene set; those of the test sections of a fold together where that differs."""
    rows = expression_rows(table)
    single = rows[rows["section"] != ""]
    parts = {
        "sections scored one by one": single[single["metric"] != main_metric(rows)],
        "test sections of a fold scored together": _of_several(rows[rows["section"] == ""], single),
    }
    found = []
    for what, part in parts.items():
        for genes, own in part.groupby("genes", sort=False, observed=True, dropna=False):
            wide = _spread_over_folds(own).droplevel("genes", axis=1)
            wide.columns = [metric_label(str(metric)) for metric in wide.columns]
            subject = f"{genes}, {what}." if genes else f"{what[:1].upper()}{what[1:]}."
            found.append(Table(_framed(wide), f"{subject} {_how(own)}."))
    return found


def _of_several(pooled: pd.DataFrame, single: pd.DataFrame) -> pd.DataFrame:
    """Pooled rows that say more than those of single sections: of one section alone both are the same number."""
    n = single.groupby("fold", observed=True)["section"].nunique()
    alone = pooled["fold"].map(n).eq(1) & pooled["metric"].isin(single["metric"])
    return pooled[~alone]


def _how(rows: pd.DataFrame) -> str:
    n = rows["fold"].nunique()
    return f"Mean ± standard deviation over {n} folds" if n > 1 else "One fold, so without a spread"


def _spread_over_folds(rows: pd.DataFrame) -> pd.DataFrame:
    """Methods in rows, (metric, genes) in columns, as text."""
    keys = ["method", "metric", "genes"]
    folds = rows.groupby([*keys, "fold"], sort=False, observed=True, dropna=False)["value"].mean()
    groups = folds.groupby(level=keys, sort=False, dropna=False)
    cells = pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=1)})
    text = [_with_spread(mean, sd) for mean, sd in cells.to_numpy()]
    wide = pd.Series(text, index=cells.index).unstack(["metric", "genes"])
    return wide.reindex(pd.unique(rows["method"])).fillna("–")


def _framed(wide: pd.DataFrame) -> pd.DataFrame:
    return wide.rename_axis("method").reset_index()


def _with_spread(mean: float, sd: float) -> str:
    if not np.isfinite(mean):
        return "–"
    return number(mean, ".3f") + (f" ± {sd:.3f}" if np.isfinite(sd) else "")


def _overall_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of paired differences, over everything where that was computed."""
    rows = table[is_difference(table)]
    for column in ("section", "fold"):
        rows = rows[rows[column] == ""] if (rows[column] == "").any() else rows
    return rows


def differences(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, float]]:
    """Paired difference to the frozen encoder by method and gene set: ``value``, ``low``, ``high``, widest of seeds."""
    found = {}
    rows = _overall_differences(table)
    for (method, genes), own in rows.groupby(["method", "genes"], sort=False, observed=True):
        ends = own.reindex(columns=["low", "high"]).to_numpy(dtype=float)
        row = {"value": own["value"].mean(), "low": ends[:, 0].min(), "high": ends[:, 1].max()}
        found[str(method), str(genes)] = row
    return found


def difference_tables(table: pd.DataFrame) -> list[Table]:
    """Paired differences with their intervals, over everything where that was computed; nothing without such rows."""
    rows = _overall_differences(table)
    if rows.empty:
        return []
    frame = pd.DataFrame({"method": rows["method"].astype(str)})
    for column in ("genes", "metric", "fold", "section"):
        # A column that says nothing, or the same in every row, is left out.
        if (column == "genes" and rows[column].ne("").any()) or rows[column].nunique() > 1:
            frame[column] = rows[column].astype(str).replace("", POOLED)
    frame["difference"] = [number(v, "+.3f") for v in rows["value"]]
    frame["95 % interval"] = _intervals(rows)
    return [Table(frame, "Paired difference to the frozen encoder (positive: better than frozen).")]


def retrieval_tables(table: pd.DataFrame) -> list[Table]:
    """Search among the spots of a section, and of all test sections of a fold, with what guessing reaches."""
    rows = table[is_retrieval(table)]
    plain = [str(metric).removeprefix(_NEAR) for metric in rows["metric"]]
    prefix = [next(p for p in _DIRECTIONS if metric.startswith(p)) for metric in plain]
    rows = rows.assign(
        direction=[_DIRECTIONS[p] for p in prefix],
        measure=[metric.removeprefix(p) for metric, p in zip(plain, prefix, strict=True)],
    )
    near = rows["metric"].astype(str).str.startswith(_NEAR)
    parts = {
        "Among the spots of one section": rows[(rows["section"] != "") & ~near],
        "Among the spots of all test sections of a fold": rows[(rows["section"] == "") & ~near],
        "Among the spots of one section, with neighbours of the right spot counted as found": rows[near],
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


def curve_tables(curve: pd.DataFrame) -> list[Table]:
    """What all of the training side gave more than each part of it, in Pearson r."""
    found = steps(curve)
    if found.empty:
        return []
    n = curve.groupby("fraction")[["n_patients", "n_sections", "n_spots"]].mean()
    frame = found[["method", "genes"]].copy()
    frame["learned from"] = [f"{fraction:.3g}" for fraction in found["fraction"]]
    for column, form in (("n_patients", ".3g"), ("n_sections", ".3g"), ("n_spots", ".0f")):
        frame[column.removeprefix("n_")] = [f"{n.loc[part, column]:{form}}" for part in found["fraction"]]
    frame["r"] = [number(v, ".3f") for v in found["value"]]
    frame["r of all"] = [number(v, ".3f") for v in found["whole"]]
    frame["difference"] = [number(v, "+.3f") for v in found["difference"]]
    frame["95 % interval"] = _intervals(found)
    return [Table(frame, "All of the training side against a part of it, compared within folds; intervals over folds.")]


def _intervals(rows: pd.DataFrame) -> list[str]:
    return [
        f"{number(low, '+.3f')} to {number(high, '+.3f')}" if np.isfinite([low, high]).all() else "–"
        for low, high in rows.reindex(columns=["low", "high"]).to_numpy(dtype=float)
    ]


def repeated(genes: pd.DataFrame) -> tuple[str, int]:
    """What was held out, ``"patient"``, or ``"section"`` of patients seen, and how many of them."""
    single = genes[genes["section"] != ""]
    folds = single.groupby("patient", observed=True)["fold"].nunique()
    unit = "patient" if (folds == 1).all() and (single["patient"] != "").all() else "section"
    return unit, single[unit].nunique()


def held_out(genes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Held-out r of every method and gene, and what was held out: ``"patient"``, or ``"section"`` of patients seen.

    As in `sealst.models.Reliability`: the mean over a patient's sections, then over patients, and the same test of
    whether it is above 0. Rows are named by method and gene; columns `pearson`, `lowest` and `highest` (of the
    patients), `better_than_chance`.
    """
    single, (unit, _) = genes[genes["section"] != ""], repeated(genes)
    keys = ["method", "gene", unit]
    # Seeds and folds of a section are no repetition.
    by_section = single.groupby([*keys, *(["section"] if unit == "patient" else [])], observed=True)["pearson"].mean()
    by_unit = by_section.groupby(keys, observed=True).mean().unstack(unit)
    found = pd.DataFrame(
        {"pearson": by_unit.mean(axis=1), "lowest": by_unit.min(axis=1), "highest": by_unit.max(axis=1)}
    )
    found[BETTER] = False
    for _, rows in by_unit.groupby(level="method", sort=False):
        pvalue = above_zero(rows.to_numpy(dtype=float).T)
        known = np.isfinite(pvalue)
        if known.any():
            called = stats.false_discovery_control(pvalue[known], method="bh") < FALSE_DISCOVERIES
            found.loc[rows.index[known], BETTER] = called
    return found, unit


def reliability_tables(table: pd.DataFrame, genes: pd.DataFrame) -> list[Table]:
    """By method, held-out r of every gene set with the patients it ranges over, and genes better than chance."""
    found, unit = held_out(genes)
    single = table[(table["metric"] == "pearson") & (table["section"] != "") & (table["genes"] != "")]
    keys = ["method", "genes", unit]
    by_unit = single.groupby([*keys, *(["section"] if unit == "patient" else [])], sort=False)["value"].mean()
    by_unit = by_unit.groupby(keys, sort=False).mean()
    lines = []
    for method, rows in by_unit.groupby(level="method", sort=False):
        line = {"method": method}
        for name, values in rows.groupby(level="genes", sort=False):
            low, mean, high = values.min(), values.mean(), values.max()
            line[str(name)] = f"{number(mean, '.2f')} ({number(low, '.2f')} to {number(high, '.2f')})"
        own = found.xs(method, level="method") if method in found.index.get_level_values("method") else found.iloc[:0]
        line["genes better than chance"] = f"{int(own[BETTER].sum())} of {len(own)}"
        lines.append(line)
    title = f"Held-out Pearson r by gene set: mean over {unit}s, in brackets the lowest and the highest {unit}."
    return [Table(pd.DataFrame(lines).fillna("–"), title)] if lines else []
