"""What `sealst.io.check` looks for in the table: genes, counts, patients, what normalisation will say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from sealst import _section
from sealst._core.genes.names import human_table, is_control, resolve
from sealst._errors import DataError, SealstError
from sealst._keys import Keys
from sealst._validate import check_counts, check_gene_names, listed, patient_names
from sealst.io._check.subject import Fact, Problem, Subject, collected_warnings, warnings_as_problems

_KINDS = {
    "empty": r"\s*|nan|NaN",
    "numbers": r"\d+(\.\d+)?",
    "Ensembl ids (human)": r"ENSG\d{11}(\.\d+)?",
    "Ensembl ids (other species)": r"ENS[A-Z]{3,}G\d{11}(\.\d+)?",
    "symbols like human": r"[A-Z][A-Z0-9.\-_/]*|[A-Z0-9]+orf\d+[A-Z0-9\-]*",
    "symbols like mouse": r"[A-Z][A-Za-z0-9.\-]*|\d+[A-Z]\d{2}Rik",
}
#: columns of `.var` that hold symbols where the index holds ids
_SYMBOLS = ("gene_symbols", "gene_names", "feature_name", "symbol")
_CONTROLS, _OTHER = "control probes", "other"
_SHALLOW = 100


def kinds_of(names: list[str]) -> dict[str, int]:
    """How many of the gene names look like what, most frequent first."""
    counts: Counter[str] = Counter()
    for name in names:
        if is_control(name.upper()):
            counts[_CONTROLS] += 1
        else:
            counts[next((kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, name)), _OTHER)] += 1
    return dict(counts.most_common())


def genes(subject: Subject) -> Iterator[Fact | Problem]:
    """What the names of the genes look like."""
    names = [str(n) for n in subject.table.var_names]
    if not names:
        # Tiles of a slide.
        yield Fact("genes", "number", 0)
        return
    kinds = kinds_of(names)
    yield Fact("genes", "number", len(names))
    for kind, n in kinds.items():
        yield Fact("genes", kind, f"{n} ({n / len(names):.1%})")
    table = human_table()
    known = Counter(one.kind for one in resolve(names, table, fold_case=False))
    current = known["current"] + known["ensembl"]
    yield Fact("genes", f"known to {table.source}", f"{current} ({current / len(names):.1%})")
    if old := known["previous"] + known["alias"]:
        yield Fact("genes", "earlier symbols and aliases", f"{old} ({old / len(names):.1%})")
    if known["excel"] + known["mangled"]:
        yield Problem(
            "warning",
            f"{known['excel'] + known['mangled']} gene names look like dates or numbers, as spreadsheets write them. "
            "`sl.pp.harmonize_genes(sdata)` restores what can be restored.",
        )
    try:
        check_gene_names(list(subject.table.var_names), where="`table.var_names`")
    except DataError as error:
        yield Problem("error", f"`sl.pp.select_genes` will refuse: {error}")
    upper = Counter(n.upper() for n in names)
    if cased := sorted(n for n, count in Counter(names).items() if upper[n.upper()] > count):
        yield Problem(
            "warning", f"{len(cased)} gene names differ only in case ({listed(cased, 4)}); they are left out."
        )
    real = len(names) - kinds.get(_CONTROLS, 0)
    ensembl = kinds.get("Ensembl ids (human)", 0) + kinds.get("Ensembl ids (other species)", 0)
    if ensembl > real / 2:
        column = next((c for c in _SYMBOLS if c in subject.table.var), None)
        fix = f"`table.var_names = table.var[{column!r}]`" if column else "`sl.pp.harmonize_genes(sdata)`"
        yield Problem(
            "warning", f"Genes are named by Ensembl id; models and gene sets go by symbol. Rename them, with {fix}."
        )
    elif kinds.get("symbols like mouse", 0) > real / 2:
        yield Problem(
            "warning", "Genes are spelled like mouse symbols: pass `species='mouse'` to `sl.pp.select_genes`."
        )
    elif kinds.get("symbols like human", 0) < real / 2:
        found = listed([n for n in names if not is_control(n.upper())], 4)
        yield Problem(
            "warning",
            f"Few gene names look like symbols (found {found}). Gene sets and other sections will not match; set "
            "`table.var_names` to symbols.",
        )


def counts(subject: Subject) -> Iterator[Fact | Problem]:
    """Whether raw counts are there, and how deep they are."""
    table, rows = subject.table, subject.region.rows
    refusal = _refusal(table.X[rows] if table.X is not None else np.zeros(0), where="`table.X`")
    where = "X"
    if refusal is not None:
        fitting = [n for n in _section.layer_names(table) if _refusal(table.layers[n][rows], where=n) is None]
        if not fitting:
            yield Fact("counts", "raw counts", "none found")
            yield Problem("error", f"`sl.pp.normalize` will refuse: {refusal}")
            return
        where = fitting[0]
        if where != Keys.COUNTS or Keys.LOGNORM not in table.layers:
            yield Problem(
                "warning", f"{refusal.split(' Raw counts')[0]} Call `sl.pp.normalize(sdata, layer={where!r})`."
            )
    yield Fact("counts", "raw counts", where if where == "X" else f"layer {where!r}")
    values = (table.X if where == "X" else table.layers[where])[rows]
    totals = np.asarray(values.sum(axis=1)).ravel()
    detected = np.asarray((values > 0).sum(axis=1)).ravel()
    yield Fact("counts", "median per spot", float(np.median(totals)))
    yield Fact("counts", "median genes per spot", float(np.median(detected)))
    if empty := int((totals == 0).sum()):
        yield Problem("warning", f"{empty} of {len(totals)} spots have no counts; drop them before training.")
    if np.median(totals) < _SHALLOW:
        yield Problem(
            "warning",
            f"The median spot has {np.median(totals):.0f} counts; below {_SHALLOW} expression of single spots is "
            "mostly noise. Pool neighbouring bins, or choose fewer genes.",
        )


def _refusal(values: object, *, where: str) -> str | None:
    try:
        check_counts(values, where=where)
    except DataError as error:
        return str(error)
    return None


def people(subject: Subject) -> Iterator[Fact | Problem]:
    """Patient, section, organ and technology of the rows."""
    for key in (Keys.PATIENT, Keys.SECTION, Keys.ORGAN, Keys.TECHNOLOGY, "batch"):
        if key in subject.table.obs:
            values = subject.table.obs[key].iloc[subject.region.rows]
            values = patient_names(values) if key == Keys.PATIENT else values
            yield Fact("section", key, listed(sorted(values.dropna().astype(str).unique())).replace("'", ""))
            if key == Keys.PATIENT and values.isna().any():
                yield Problem("error", f"`.obs['patient']` is empty for {int(values.isna().sum())} spots; fill it in.")
        elif key == Keys.PATIENT:
            yield Problem(
                "warning",
                "`.obs['patient']` is absent: `sl.pp.split` refuses, and leaks between sections of one patient cannot "
                "be seen. Add it: `table.obs['patient'] = 'A'`.",
            )


def normalisation(subject: Subject) -> Iterator[Fact | Problem]:
    """What `pp.normalize` would say about positions and grid, by calling it on a stand-in."""
    from sealst.pp import normalize

    if done := [n for n in (Keys.LOGNORM, Keys.CONTEXT) if n in subject.table.layers]:
        yield Fact("counts", "normalised layers", listed(done).replace("'", ""))
        return
    with collected_warnings() as caught:
        try:
            normalize(subject.alone())
        except SealstError as error:
            yield Problem("error", f"`sl.pp.normalize` will refuse: {error}")
    yield from warnings_as_problems(caught)


RULES = (genes, counts, people, normalisation)
