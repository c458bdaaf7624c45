"""One HTML file on an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from sealst import _section
from sealst._core.report import Block
from sealst._docs import documented
from sealst._evaluation import Evaluation
from sealst._validate import listed
from sealst.pl import _base
from sealst.pl._evaluation.bars import evaluation
from sealst.pl._evaluation.calibration import calibration
from sealst.pl._evaluation.gene_scatter import gene_scatter
from sealst.pl._evaluation.learning_curve import learning_curve
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, MEAN, pick
from sealst.pl._evaluation.pathway_agreement import pathway_agreement
from sealst.pl._evaluation.residual_maps import residual_maps
from sealst.pl._reports import evaluation_tables as tables
from sealst.pl._reports import evaluation_text as text
from sealst.pl._reports.page import check_page, facts_table, picture_of, versions_table, write_page

#: sections shown one by one: as groups of bars, as panels, as calibration panels, as maps
_MOST_BARS, _MOST_PANELS, _MOST_LINES, _MOST_MAPS = 8, 20, 9, 3
_GENE_COLUMNS = ("section", "method", "gene", "pearson", "moran_measured")


@documented
def report(
    evaluation: Evaluation,
    path: str | Path,
    *,
    title: str | None = None,
    sections: Mapping[str, SpatialData] | None = None,
    genes: str | Sequence[str] | None = None,
) -> Path:
    """Write one HTML file that says what was compared, what was found, and what that cannot say.

    The file needs nothing beside it and fetches nothing, so it can be sent by mail. It begins with the answers: whether
    it is better than the frozen encoder and by how much, on whom, for which genes, and whether search finds more. Then
    come the summary over folds, the learning curve, genes one by one, calibration, maps, search, pathways, every other
    metric, limits and versions. What the evaluation does not hold (a curve, search, pathways, spots) is left out.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returns.
    %(html.path)s
    title
        Title; by default it names the encoder.
    sections
        Sections by name, to draw maps on their H&E. Maps are drawn for three sections, these first.
    genes
        Genes to map; by default the best, the median and the worst predicted one (`pl.residual_maps`) of the half with
        the most structured measured pattern (Moran's I).

    Returns
    -------
    The path of the file.

    Raises
    ------
    DataError
        When `path` does not end in ``.html``, or there are no results.
    MissingKeyError
        When `sections` or `genes` names what was not evaluated.

    Examples
    --------
    >>> import sealst as sl
    >>> sl.pl.report(evaluation, "evaluation.html", sections={"B4": b4})  # doctest: +SKIP
    """
    path = Path(path)
    if not isinstance(evaluation, Evaluation):
        found = type(evaluation).__name__
        raise TypeError(f"Expected an Evaluation, as `sl.tl.evaluate(...)` returns it, found {found}.")
    check_page(path, evaluation.table, "Evaluation")
    maps = _maps(evaluation, dict(sections or {}), genes)
    blocks = [
        *_summary(evaluation),
        Block(
            "What was compared",
            text.preset(evaluation),
            points=text.methods(evaluation),
            tables=[facts_table(text.facts(evaluation))] if evaluation.facts else [],
        ),
        *_curve(evaluation),
        *_reliability(evaluation),
        *_genes(evaluation),
        *_calibration(evaluation),
        *maps,
        *_retrieval(evaluation),
        *_pathways(evaluation),
        *_others(evaluation),
        Block("Limits", points=text.limits(evaluation)),
        Block("Versions", tables=[versions_table(evaluation.facts)]),
    ]
    title = title or text.title(evaluation)
    return write_page(path, title, text.lead(evaluation), blocks, answers=text.answers(evaluation))


def _best(rows: pd.DataFrame) -> str:
    means = rows.groupby("method", sort=False, observed=True)["value"].mean().dropna()
    return f"Highest mean: {means.idxmax()}, {_base.number(means.max(), '.2f')}." if len(means) else ""


def _summary(result: Evaluation) -> list[Block]:
    rows = tables.expression_rows(result.table)
    if rows.empty:
        return []
    main, sections = tables.main_metric(rows), text.named(rows, "section")
    own, label = rows[rows["metric"] == main], _base.metric_label(main)
    caption = "What was asked, method by method: means over the sections; dots are single values behind a bar."
    pictures = [picture_of(evaluation, caption, result, alt=f"Bars of every method. {_best(own)}")]
    if 1 < len(sections) <= _MOST_BARS:
        caption = f"{label} by section. Bars with several values are means, dots single folds and seeds."
        alt = f"Bars of {label} by section. {_best(own)}"
        pictures.append(picture_of(evaluation, caption, rows, metrics=main, by="section", alt=alt))
    found = [*tables.summary_tables(result.table), *tables.difference_tables(result.table)]
    return [Block("Summary", tables=found, figures=pictures)]


def _others(result: Evaluation) -> list[Block]:
    """Metrics that are in no other part."""
    rows = tables.expression_rows(result.table)
    found = tables.other_tables(result.table) if len(rows) else []
    if not found:
        return []
    single = rows[rows["section"] != ""]
    names = [m for m in pd.unique(single["metric"]) if m != tables.main_metric(rows)]
    pictures = []
    if names:
        caption = "Mean over sections; dots are single sections."
        alt = f"Bars of {', '.join(_base.metric_label(str(m)) for m in names)}."
        pictures.append(picture_of(evaluation, caption, single, metrics=names, by="method", alt=alt))
    return [Block("Every other metric", tables=found, figures=pictures)]


def _curve(result: Evaluation) -> list[Block]:
    if result.curve.empty:
        return []
    said = text.curve(result)
    lines = (
        "Models that learned from a part of the training side of every fold, tested as those that learned from all of "
        "it. Whole patients leave first. Lines are means over folds, thin ones single folds; the band goes from the "
        "lowest to the highest draw."
    )
    known = list(pd.unique(result.curve["metric"]))
    metric = "pearson" if "pearson" in known else known[0]
    alt = " ".join(said) or "Lines of every method over the amount of training data."
    picture = picture_of(learning_curve, "Scores over what was learned from.", result, metrics=metric, alt=alt)
    found = tables.curve_tables(result.curve)
    return [Block("Would more data help?", [lines], points=said, tables=found, figures=[picture])]


def _reliability(result: Evaluation) -> list[Block]:
    if not text.knows_patients(result.genes) or not text.knows_patients(result.table):
        return []
    heading = "Which genes can be believed"
    if not text.told_from_chance(result.genes):
        unit, _ = tables.repeated(result.genes)
        return [Block(heading, [f"One {unit} was held out, which does not tell genes from chance."])]
    found = tables.reliability_tables(result.table, result.genes)
    lines = (
        "A gene is better than chance where its correlation is above 0 on average over what was held out, in turn "
        "(moderated t-test, false discoveries below 5 %). The others may be too shallow, or may leave no trace in the "
        "picture; their maps look as plausible."
    )
    return [Block(heading, [lines], tables=found)] if found else []


def _genes(result: Evaluation) -> list[Block]:
    genes = result.genes
    if genes.empty or not {FROZEN, ADAPTED} <= set(genes["method"]):
        return []
    pairs = genes.pivot_table(index=["section", "gene"], columns="method", values="pearson", sort=False, observed=True)
    pairs = pairs.reindex(columns=[FROZEN, ADAPTED]).dropna()
    there = list(pairs.index.unique("section"))
    names = [name for name in there if name] or there
    if not names:
        return []
    pairs = pairs[pairs.index.isin(names, level="section")]
    share = f"{int((pairs[ADAPTED] > pairs[FROZEN]).sum())} of {len(pairs)}"
    left = f" Shown are {_MOST_PANELS} of {len(names)} sections." if len(names) > _MOST_PANELS else ""
    picture = picture_of(
        gene_scatter,
        f"One dot per gene; above the line the adapted encoder is better.{left}",
        genes,
        sections=names[:_MOST_PANELS],
        alt=f"Scatter of Pearson r per gene, frozen against adapted: {share} dots above the line.",
    )
    lines = f"The adapted encoder predicts {share} pairs of gene and section better than the frozen one."
    return [Block("Frozen against adapted, gene by gene", [lines], figures=[picture])]


def _calibration(result: Evaluation) -> list[Block]:
    names = list(result.spots)[:_MOST_LINES]
    if not names:
        return []
    lines = (
        "Predictions in bins of equal size against what was measured there, each gene less its measured mean. A line "
        "flatter than the diagonal promises larger differences than there are, a steeper one is too cautious."
    )
    left = f" (the first {len(names)} of {len(result.spots)} sections)" if len(result.spots) > len(names) else ""
    caption = f"Measured against predicted expression by method{left}."
    alt = f"Calibration lines of every method in {listed(names, _MOST_LINES)}."
    return [Block("Calibration", [lines], figures=[picture_of(calibration, caption, result, sections=names, alt=alt)])]


def _maps(result: Evaluation, images: dict[str, SpatialData], genes: str | Sequence[str] | None) -> list[Block]:
    spots = result.spots
    if not spots:
        return []
    shown = [*pick("sections", list(images), list(spots))] if images else []
    shown = [*shown, *(name for name in spots if name not in shown)][:_MOST_MAPS]
    known = list(dict.fromkeys(m for spots in result.spots.values() for m in _section.layer_names(spots)))
    method = ADAPTED if ADAPTED in known else next((m for m in known if m != MEAN), known[0] if known else ADAPTED)
    if genes is None:
        chosen, why = _choose_genes(result.genes, method, sorted(set().union(*(spots[s].var_names for s in shown))))
    else:
        chosen, why = _base.as_list(genes, name="genes"), "Genes chosen by hand."
    pictures = []
    for name in shown:
        here = [g for g in chosen if _base.find_gene(g, spots[name].var_names)]
        if not here or method not in spots[name].layers:
            continue
        caption = f"Section {name}: measured, predicted by {method}, and measured minus predicted."
        options = {"section": name, "method": method, "sdata": images.get(name)}
        alt = f"Maps of {listed(here)} in section {name}: measured, predicted and residual."
        pictures.append(picture_of(residual_maps, caption, result, here, alt=alt, **options))
    if chosen and not pictures:
        raise _base.missing_name(chosen[0], list(spots[shown[0]].var_names), where="the evaluated genes")
    lines = (
        "All values are z-scores over the spots of a section, so that the maps compare patterns, not amounts. Orange "
        "spots express more than was predicted, purple ones less."
    )
    why = f"{why}{text.believed(result, method, chosen)}"
    left = f" Maps of {len(shown)} of {len(spots)} sections are shown." if len(spots) > len(shown) else ""
    return [Block("Maps", [why + left, lines], figures=pictures)] if pictures else []


def _choose_genes(genes: pd.DataFrame, method: str, known: Sequence[str]) -> tuple[list[str], str]:
    """Best, median and worst predicted gene among those with a pattern, and how they were chosen."""
    if any(column not in genes for column in _GENE_COLUMNS):
        return list(known[:3]), "The first genes of the evaluation."
    own = genes[(genes["method"] == method) & genes["gene"].isin(known)]
    means = own.groupby("gene", sort=False, observed=True)[["pearson", "moran_measured"]].mean()
    means = means.dropna(subset="pearson").sort_values("pearson", ascending=False, kind="stable")
    edge = means["moran_measured"].median()
    structured = means[means["moran_measured"] >= edge] if np.isfinite(edge) else means
    if structured.empty:
        return list(known[:3]), "The first genes of the evaluation; no correlation is known."
    places = dict.fromkeys([0, len(structured) // 2, len(structured) - 1])
    chosen = [str(structured.index[i]) for i in places]
    scores = ", ".join(f"{g} (r = {_base.number(structured.loc[g, 'pearson'], '.2f')})" for g in chosen)
    among = f" among the {len(structured)} with a measured Moran's I of at least {_base.number(edge, '.2f')}" * bool(
        np.isfinite(edge)
    )
    return chosen, f"Best, median and worst gene by the mean Pearson r of {method}{among}: {scores}."


def _retrieval(result: Evaluation) -> list[Block]:
    rows = result.table[tables.is_retrieval(result.table)]
    if rows.empty:
        return []
    known = [str(m) for m in pd.unique(rows["metric"])]
    shown = [m for m in known if m.endswith("R@10")] or [m for m in known if "R@" in m][:1] or known[:1]
    by = "section" if len(text.named(rows, "section")) <= _MOST_BARS else "method"
    own = rows[rows["metric"] == shown[0]]
    alt = f"Bars of {_base.metric_label(shown[0])} with a line at chance. {_best(own)}"
    picture = picture_of(
        evaluation, "How often the right one is found; dotted: chance.", rows, metrics=shown, by=by, alt=alt
    )
    lines = (
        "Each crop searches for its own expression profile among the profiles of the pool, and the other way round. "
        "Recall at k says how often it is among the first k; the median rank is 1 at best."
    )
    return [Block("Search", [lines], tables=tables.retrieval_tables(result.table), figures=[picture])]


def _pathways(result: Evaluation) -> list[Block]:
    found = tables.pathway_tables(result.pathways)
    if not found:
        return []
    caption = (
        "Correlation with the measured activity over the spots of a section: of the activity in predicted expression, "
        "and of the similarity of crops to the pathway's genes (query)."
    )
    alt = "Heat map of correlations by pathway, section and method; the table below has the numbers."
    picture = picture_of(pathway_agreement, caption, result.pathways, alt=alt)
    return [Block("Pathways", tables=found, figures=[picture])]
