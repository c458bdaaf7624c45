"""Sentences of a report on an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sealst._core.scores.reliability import BETTER
from sealst._evaluation import Evaluation, curve_lines
from sealst._validate import listed
from sealst.pl._base import number
from sealst.pl._evaluation.methods import ADAPTED, FROZEN, MEANINGS
from sealst.pl._reports.evaluation_tables import differences, expression_rows, held_out, is_difference, repeated
from sealst.pl._reports.page import count, plain_text

#: with fewer, one patient more can change what a report says
_FEW_PATIENTS = 10
#: what stands against the frozen encoder, the first that there is: what a user gets before what was only probed
_MAIN = ("seal prediction", ADAPTED, "seal head")
_COLOUR = "colour + ridge"
#: patients or sections, and genes at each end, that an answer names
_MOST_NAMED, _MOST_GENES = 8, 3

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


def title(result: Evaluation) -> str:
    """What was evaluated; of a trained model also the encoder that it came from."""
    encoder, base = (plain_text(result.facts.get(key, "")) for key in ("encoder", "base"))
    if not encoder:
        return "Evaluation"
    return f"Evaluation of {encoder} ({base})" if base and base not in encoder else f"Evaluation of {encoder}"


def facts(result: Evaluation) -> dict[str, Any]:
    """What was recorded; the base of a model where its name does not say it."""
    known = dict(result.facts)
    return {k: v for k, v in known.items() if k != "base" or str(v) not in str(known.get("encoder", ""))}


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


def answers(result: Evaluation) -> list[tuple[str, str]]:
    """The questions that a reader has first, with what the evaluation says: whether, on whom, for which genes."""
    rows = expression_rows(result.table)
    rows = rows[(rows["metric"] == "pearson") & (rows["genes"] != "") & rows["method"].notna()]
    if rows.empty:
        return []
    means = result.summary("pearson")["pearson"]
    main = next((one for one in _MAIN if one in means.index), None)
    if main is None or FROZEN not in means.index:
        return [("What does it reach?", _reached(means))]
    found = [("Is it better than the frozen encoder?", _better(result, means, main))]
    single = rows[rows["section"] != ""]
    if len(single):
        found.append(("On whom?", _on_whom(single[single["genes"] == single["genes"].iloc[0]], main)))
    if said := _for_which(result, main):
        found.append(("For which genes?", said))
    if said := _recalled(result.table):
        found.append(("Does a crop find its own expression?", said))
    return found


def _reached(means: pd.DataFrame) -> str:
    """Mean r of every method where nothing was trained to compare with."""
    lines = []
    for method, values in means.iterrows():
        own = ", ".join(f"{number(v, '.3f')} ({genes})" for genes, v in values.items() if np.isfinite(v))
        if own:
            lines.append(f"{method} {own}")
    return f"Nothing was trained. Mean Pearson r: {'; '.join(lines)}."


def _better(result: Evaluation, means: pd.DataFrame, main: str) -> str:
    known = differences(result.table)
    said: list[str] = []
    verdicts: dict[str, str] = {}
    for genes in means.columns:
        before, after = means.loc[FROZEN, genes], means.loc[main, genes]
        if not np.isfinite([before, after]).all():
            continue
        row = known.get((main, genes))
        verdicts[str(genes)] = _verdict(after - before if row is None else row["value"], row)
        said.append(f"{genes}: r {number(before, '.3f')} → {number(after, '.3f')}{_gain(row, after - before)}")
    if not said:
        return "No correlation is known of both."
    text = f"{_overall(verdicts)} {main} against {FROZEN}, {'; '.join(said)}."
    probes = [f"{_gain(row, 0.0).removeprefix(', ')} ({genes})" for (m, genes), row in known.items() if m == ADAPTED]
    if main != ADAPTED and probes:
        text += f" With the same ridge probe on both encoders: {', '.join(probes)}."
    floor = [f"{number(v, '.3f')} ({g})" for g, v in means.loc[_COLOUR].items()] if _COLOUR in means.index else []
    return text + (f" The colour of the crop alone reaches {', '.join(floor)}." if floor else "")


def _verdict(gain: float, row: dict[str, float] | None) -> str:
    if row is None or not np.isfinite([row["low"], row["high"]]).all():
        return "higher" if gain > 0 else "lower"
    return "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "open"


#: what a verdict says of all gene sets, and of some
_VERDICTS = {
    "better": ("Yes.", "better"),
    "worse": ("No, it is worse.", "worse"),
    "open": ("No difference that these sections tell from noise.", "no difference that is told from noise"),
    "higher": ("Its mean is higher; whether by more than noise is not known.", "a higher mean, perhaps by noise"),
    "lower": ("Its mean is not higher.", "no higher mean"),
}


def _overall(verdicts: Mapping[str, str]) -> str:
    """One word on all gene sets, or what holds for which."""
    by_verdict: dict[str, list[str]] = {}
    for genes, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(genes)
    if len(by_verdict) == 1:
        return _VERDICTS[next(iter(by_verdict))][0]
    parts = [f"{', '.join(genes)}: {_VERDICTS[verdict][1]}" for verdict, genes in by_verdict.items()]
    return f"It depends on the genes ({'; '.join(parts)})."


def _gain(row: dict[str, float] | None, gain: float) -> str:
    if row is None:
        return f", {number(gain, '+.3f')}"
    ends = [row["low"], row["high"]]
    interval = f", 95 % {number(ends[0], '+.3f')} to {number(ends[1], '+.3f')}" * bool(np.isfinite(ends).all())
    return f", {number(row['value'], '+.3f')}{interval}"


def _on_whom(rows: pd.DataFrame, main: str) -> str:
    """Gain by patient, or by section where patients are not named."""
    unit = "patient" if "patient" in rows and (rows["patient"].fillna("") != "").all() else "section"
    wide = rows.pivot_table(index=unit, columns="method", values="value", sort=False, observed=True)
    gain = (wide[main] - wide[FROZEN]).dropna()
    shown = gain if len(gain) <= _MOST_NAMED else gain.sort_values().iloc[[0, len(gain) // 2, -1]]
    each = ", ".join(f"{name} {number(v, '+.3f')}" for name, v in shown.items())
    which = "" if len(gain) <= _MOST_NAMED else "lowest, median and highest: "
    return f"Better on {int((gain > 0).sum())} of {count(len(gain), unit)} ({rows['genes'].iloc[0]}; {which}{each})."


def _for_which(result: Evaluation, main: str) -> str:
    genes = result.genes
    if not {"section", "method", "gene", "pearson"} <= set(genes):
        return ""
    own = genes[(genes["section"] != "") & genes["method"].isin([main, FROZEN])]
    wide = own.pivot_table(index="gene", columns="method", values="pearson", observed=True)
    if not {main, FROZEN} <= set(wide):
        return ""
    wide = wide.dropna()
    gain = (wide[main] - wide[FROZEN]).sort_values(ascending=False, kind="stable")
    text = f"{int((gain > 0).sum())} of {count(len(gain), 'gene')} are predicted better than by {FROZEN}."

    def told(names: pd.Series) -> str:
        return ", ".join(
            f"{gene} {number(v, '+.2f')} (to r {number(wide.loc[gene, main], '.2f')})" for gene, v in names.items()
        )

    if len(gain) >= 2 * _MOST_GENES:
        text += f" Most gained: {told(gain[:_MOST_GENES])}. Least: {told(gain[: -_MOST_GENES - 1 : -1])}."
    if told_from_chance(genes):
        found, unit = held_out(genes[genes["method"] == main])
        text += f" Better than chance on held-out {unit}s: {int(found[BETTER].sum())} of {len(found)}."
    return text


def _recalled(table: pd.DataFrame) -> str:
    rows = table[(table["metric"] == "R@10") & (table["section"] != "")]
    means = rows.groupby("method", observed=True)["value"].mean()
    if not {"adapted", "frozen"} <= set(means.index):
        return ""
    guess = rows["chance"].mean() if "chance" in rows else np.nan
    text = (
        f"Among the 10 nearest in {number(means['adapted'], '.3f')} of the cases by embedding, with the frozen encoder "
        f"in {number(means['frozen'], '.3f')}"
    )
    if "seal prediction" in means.index:
        text = f"{text}, and by predicted expression in {number(means['seal prediction'], '.3f')}"
    return f"{text}; guessing reaches {number(guess, '.3f')}." if np.isfinite(guess) else f"{text}."


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


def told_from_chance(genes: pd.DataFrame) -> bool:
    """Whether genes can be told from chance: what is repeated are patients (or sections), and one is no repetition."""
    return knows_patients(genes) and repeated(genes)[1] > 1


def believed(result: Evaluation, method: str, genes: Sequence[str]) -> str:
    """Held-out r of some genes, as a sentence; empty where it is not known."""
    if not told_from_chance(result.genes) or (own := result.genes[result.genes["method"] == method]).empty:
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
