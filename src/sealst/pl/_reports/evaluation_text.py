"""Sentences of a report on an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sealst._core.scores.reliability import BETTER
from sealst._evaluation import Evaluation, curve_lines
from sealst._validate import listed
from sealst.pl._base import number
from sealst.pl._evaluation.methods import MEANINGS
from sealst.pl._reports.evaluation_tables import expression_rows, held_out, is_difference
from sealst.pl._reports.page import count

#: with fewer, one patient more can change what a report says
_FEW_PATIENTS = 10

_PRESETS = {
    "plain": 'Preset "plain" is "cv" on the crop as it is, with probes fitted across sections.',
    "hest": 'Preset "hest" repeats the published HEST-bench protocol, so that numbers can be set beside the published '
    "ones: 50 genes chosen on all sections including the test sections, log1p of raw counts, features standardised and "
    "reduced to 256 principal components, and a ridge regression without intercept and with a fixed penalty.",
    "cv": 'Preset "cv" fits everything on the training sections alone: genes are chosen there, counts are normalised '
    "for depth (log1p of counts per 10,000), and the penalty of the ridge regression is found by cross-validation over "
    "training patients.",
}
_NOISE = (
    "Counts of single spots are noisy: a perfect prediction would not reach a correlation of 1 either. Compare methods "
    "within a column, not columns with each other."
)
_INTERVALS = (
    "Intervals come from resampling what was held out. They do not say how a further patient, scanner or laboratory "
    "would come out."
)


def named(table: pd.DataFrame, column: str) -> list[str]:
    """Different entries of a column, without empty ones."""
    if column not in table:
        return []
    return [str(v) for v in pd.unique(table[column].dropna()) if str(v)]


def lead(result: Evaluation) -> list[str]:
    """What this is about, in one paragraph."""
    table, methods = result.table, named(expression_rows(result.table), "method")
    parts = [count(len(named(table, c)), c) for c in ("section", "patient") if named(table, c)]
    n_genes = result.genes["gene"].nunique() if "gene" in result.genes else 0
    of_genes = f" of {count(n_genes, 'gene')}" if n_genes else ""
    folds = named(table[~is_difference(table)], "fold")
    return [
        f"Expression{of_genes} was predicted from H&E in {' of '.join(parts)}, in "
        f"{count(len(folds), 'fold')}. Methods: {', '.join(methods)}."
    ]


def preset(result: Evaluation) -> list[str]:
    """What the preset does, where it is known."""
    name = str(result.facts.get("preset", ""))
    return [_PRESETS[name]] if name in _PRESETS else [f'Preset "{name}".'] if name else []


def methods(result: Evaluation) -> list[str]:
    """One line per method."""
    found = named(expression_rows(result.table), "method")
    found += [m for m in named(result.table[~is_difference(result.table)], "method") if m not in found]
    return [f"{m}: {MEANINGS[m]}." if m in MEANINGS else m for m in found]


def curve(result: Evaluation) -> list[str]:
    """What the learning curve says, a sentence per gene set."""
    return [f"{line[:1].upper()}{line[1:]}.".replace(" -> ", " → ") for line in curve_lines(result.curve)]


def knows_patients(rows: pd.DataFrame) -> bool:
    """Whether a table of genes or of an evaluation says who was held out."""
    return len(rows) > 0 and {"fold", "patient", "section", "method"} <= set(rows)


def believed(result: Evaluation, method: str, genes: Sequence[str]) -> str:
    """Held-out r of some genes, as a sentence; empty where it is not known."""
    if not knows_patients(result.genes) or (own := result.genes[result.genes["method"] == method]).empty:
        return ""
    found, unit = held_out(own)
    known = {str(gene).upper(): row for (_, gene), row in found.iterrows() if np.isfinite(row["pearson"])}
    said = [
        f"{gene} {number(row['pearson'], '.2f')} ({'' if row[BETTER] else 'not '}better than chance)"
        for gene in genes
        if (row := known.get(gene.upper())) is not None
    ]
    return f" Held-out r of {method}, mean over {unit}s: {'; '.join(said)}." if said else ""


def limits(result: Evaluation) -> list[str]:
    """What the numbers cannot say, counted from the data."""
    table = result.table
    patients, sections = named(table, "patient"), named(table, "section")
    seeds, organs = table["seed"].nunique() if "seed" in table else 0, named(table, "organ")
    points, n = ["The patients are not named in the table."], len(patients)
    if patients:
        points = [f"{count(n, 'patient')} ({count(len(sections), 'section')}) {'was' if n == 1 else 'were'} held out."]
        if n == 1:
            points[0] += " Nothing can be said about differences between patients."
        elif n < _FEW_PATIENTS:
            points[0] += " That is few: one patient more can change means and the order of methods."
    if len(sections) > len(patients) > 0:
        points.append(
            f"{len(sections)} sections of {count(len(patients), 'patient')} are not {len(sections)} independent "
            "observations: sections of one patient resemble each other."
        )
    if len(organs) == 1:
        points.append(f"All sections are of one organ ({organs[0]}); others were not tested.")
    if len(technologies := named(table, "technology")) == 1:
        points.append(f"All sections were measured with one technology ({technologies[0]}).")
    elif technologies:
        points.append(f"Sections were measured with {len(technologies)} technologies ({listed(technologies)}).")
    if seeds == 1:
        points.append("One seed was run: how much results vary from training to training is not known.")
    if len(result.curve):
        points.append(
            "The learning curve is of the patients at hand: folds share their training patients, so its intervals are "
            "rather too narrow, and what lies beyond all of the data was not tried."
        )
    if not result.spots:
        points.append("The evaluation kept no spots, so maps and calibration are missing.")
    return [*points, _INTERVALS, _NOISE]
