"""One ordered gene panel over several sections."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.utils.sparsefuncs import mean_variance_axis

from sealst import _section
from sealst._core.genes.names import is_control, near_names
from sealst._core.genes.panel import MIN_STD, GenePanel
from sealst._docs import documented
from sealst._errors import DataError, OrderError, PanelError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, Part, walk
from sealst._validate import check_choice, check_fraction, check_gene_names, listed, whole
from sealst.pp._normalize import normalization_of

#: columns of ``.var`` that hold Ensembl ids, in order of trust
_ID_COLUMNS = (Keys.ENSEMBL, "gene_ids")


@documented
def select_genes(
    sections: Data | Sequence[Data],
    n_genes: int = 2000,
    *,
    criterion: Literal["hvg", "heg"] | Sequence[str] = "hvg",
    include: Sequence[str] = (),
    layer: str = Keys.CONTEXT,
    min_spots: float = 0.05,
    min_sections: int | float | None = None,
    species: str = "human",
    table_key: str = Keys.TABLE,
) -> GenePanel:
    """Choose the genes a model works with: once, over all training sections, in a fixed order.

    Genes match across sections by upper-cased symbol (`sl.pp.harmonize_genes` brings names of different sources
    together). Candidates are genes that enough sections measure (`min_sections`), that are not control probes, and that
    have counts in at least `min_spots` of the spots of these sections together. Pass training sections only: genes
    chosen with test sections leak. Sections are read one after the other.

    Parameters
    ----------
    sections
        Training sections after `sl.pp.normalize`, as SpatialData or AnnData, or a `sealst.io.Collection`, of which
        one section at a time is open.
    n_genes
        Number of genes. Where fewer are available all are taken, with a warning. Not used with a list of genes.
    criterion
        - ``"hvg"``: highly variable genes, `scanpy.pp.highly_variable_genes` (``flavor="seurat"``) on layer
          ``"lognorm"`` with the section as batch, ranked by the share of sections a gene is highly variable in, then
          by its normalised dispersion, over the sections that measure it. A section that measures part of the
          candidates calls the same share of them highly variable as the others.
        - ``"heg"``: highest mean of ``"lognorm"``.
        - a list of gene symbols: these, in this order; `min_spots` does not apply.
    include
        Genes that are in the panel whatever their rank, such as ``["ERBB2", "ESR1"]``; they come first and count among
        the `n_genes`. By variability alone known markers can be left out, above all where counts are few.
    layer
        Layer whose mean and standard deviation the panel keeps: ``"context"`` or ``"lognorm"``.
    min_spots
        Lowest share of spots with counts, 0 to 1. It is counted over all sections together, so that one shallow
        section, or an organ that does not express a gene, does not take the gene from the others.
    min_sections
        In how many sections a gene must be measured: None in all of them, a whole number in at least so many, a share
        (a float above 0, up to 1.0) in at least that part of them. Below all, targeted panels join whole
        transcriptomes: a spot does not count for the genes its section lacks, neither here nor in training.
    species
        Recorded in the panel.
    %(table_key)s

    Returns
    -------
    `GenePanel` with upper-cased symbols in order of rank, and per gene the mean and standard deviation (biased, 1 for a
    gene that is constant) over all spots of the sections that measure it; `GenePanel.coverage` says how much of the
    panel each section measures. The order of the sections does not change the genes.

    Raises
    ------
    DataError
        When there is no section, a section has fewer than two spots, gene names are empty or occur twice, or sections
        were normalised differently.
    OrderError
        When a section is not normalised.
    PanelError
        When no gene is left, listed genes are unknown, occur twice or are control probes, or a section measures none
        of the genes.

    Examples
    --------
    >>> panel = sl.pp.select_genes([s1, s2], n_genes=50, include=["ERBB2", "CD3E"])
    >>> panel.genes[:2]
    ('ERBB2', 'CD3E')
    >>> panel.to_tsv("panel.tsv")
    >>> joined = sl.pp.select_genes([visium, xenium_bins], min_sections=1)  # doctest: +SKIP
    """
    _check_options(n_genes, criterion, layer)
    check_fraction("min_spots", min_spots)
    found = survey(sections, layer, table_key)
    least = _least_sections(min_sections, len(found))
    if isinstance(criterion, str):
        if isinstance(include, str):
            raise DataError(f"`include` must be a list of genes, found {include!r}; use [{include!r}].")
        if len(include) > n_genes:
            raise DataError(f"`include` names {len(include)} genes, more than `n_genes` = {n_genes}.")
        first = _listed_genes(found, include, least, argument="include") if len(include) else []
        ranked = _ranked(
            sections, found, n_genes, criterion=criterion, least=least, min_spots=min_spots, table_key=table_key
        )
        genes = [*first, *(gene for gene in ranked if gene not in set(first))][:n_genes]
    elif len(include):
        raise DataError("`include` adds to genes that are ranked; with a list as `criterion` put them into the list.")
    else:
        genes = _listed_genes(found, criterion, least)
    ids = dict.fromkeys(genes, "")
    for one in found:
        ids |= {g: one.ensembl[one.columns[g]] for g in genes if not ids[g] and g in one.columns}
    mean, std = moments(sections, found, genes, layer=layer, table_key=table_key)
    titled = [name for name in found[0].names if re.match(r"[A-Z][a-z]", name)]
    if species == "human" and len(titled) > len(found[0].names) / 2:
        warn(
            f"Most gene names are spelled like mouse symbols (e.g. {listed(titled, 3)}), but the panel says "
            "species='human'; pass `species='mouse'`."
        )
    panel = GenePanel(
        tuple(genes),
        mean,
        np.where(std < MIN_STD, 1.0, std),
        ensembl=tuple(ids.values()) if any(ids.values()) else (),
        target_sum=found[0].target_sum,
        layer=layer,
        species=species,
        sections=tuple(one.name for one in found),
        availability=availability(found, genes),
    )
    if panel.availability is not None:
        table = panel.coverage()
        if empty := list(table.index[table["genes"] == 0]):
            raise PanelError(
                f"Section(s) {listed(empty)} measure none of the {len(panel)} genes chosen. Leave them out, choose "
                "more genes, or list genes they measure with `criterion=`."
            )
        cases = ", ".join(f"{name!r} {n}" for name, n in table["genes"].iloc[:8].items())
        logger.info("Of %d genes measure: %s%s.", len(panel), cases, " …" if len(table) > 8 else "")
    return panel


def rank_genes(
    sections: Data | Sequence[Data],
    n_genes: int = 2000,
    *,
    criterion: Literal["hvg", "heg"] = "hvg",
    min_spots: float = 0.05,
    min_sections: int | float | None = None,
    table_key: str = Keys.TABLE,
) -> list[str]:
    """Genes in the order in which `select_genes` would choose them, without building a panel.

    Parameters
    ----------
    sections, n_genes, min_spots, min_sections, table_key
        As for `sealst.pp.select_genes`.
    criterion
        ``"hvg"`` (most variable) or ``"heg"`` (most expressed).

    Returns
    -------
    Upper-cased symbols, the first `n_genes` by the criterion.

    Raises
    ------
    OrderError
        When a section is not normalised.
    PanelError
        When no gene is left.

    Examples
    --------
    >>> sl.pp.rank_genes([s1, s2], n_genes=50, criterion="heg")  # doctest: +SKIP
    """
    check_choice("criterion", criterion, ("hvg", "heg"))
    _check_options(n_genes, criterion, Keys.LOGNORM)
    check_fraction("min_spots", min_spots)
    found = survey(sections, Keys.LOGNORM, table_key)
    least = _least_sections(min_sections, len(found))
    return _ranked(sections, found, n_genes, criterion=criterion, least=least, min_spots=min_spots, table_key=table_key)


def _ranked(
    sections: Data | Sequence[Data],
    found: Sequence[Survey],
    n: int,
    *,
    criterion: str,
    least: int,
    min_spots: float,
    table_key: str,
) -> list[str]:
    """The first n genes by a criterion."""
    # Sorted, so that the order of sections does not matter.
    times = Counter(gene for one in found for gene in one.columns)
    shared = sorted(gene for gene, k in times.items() if k >= least)
    if not shared:
        examples = "; ".join(f"{one.name!r}: {listed(list(one.columns)[:3])}" for one in found[:4])
        searched = f"all {len(found)}" if least == len(found) else f"{least} of {len(found)}"
        raise PanelError(
            f"No gene is found in {searched} sections ({examples}). Give all of them the same kind of names, "
            "e.g. gene symbols: `sl.pp.harmonize_genes(data)` before `sl.pp.normalize`; or lower `min_sections`."
        )
    where = f"all {len(found)}" if least == len(found) else f"at least {least} of {len(found)}"
    share, mean = pooled_means(found, shared)
    columns = np.flatnonzero((share >= min_spots) & (share > 0))
    if not columns.size:
        raise PanelError(
            f"None of the {len(share)} shared genes has counts in {min_spots:.0%} of the spots (highest share "
            f"{share.max():.1%}). Lower `min_spots`."
        )
    if n > len(columns):
        warn(
            f"{n} genes were asked for, {len(columns)} are available ({len(shared)} in {where} section(s), "
            f"{len(columns)} of them in {min_spots:.0%} of the spots); all {len(columns)} are taken."
        )
    candidates = [shared[i] for i in columns]
    score = [mean[columns]]
    if criterion == "hvg":
        score = variability(sections, found, candidates, min(n, len(columns)), table_key=table_key)
    # `shared` is sorted and the sort is stable, so that ties go by name.
    genes = [candidates[i] for i in np.lexsort([-column for column in score[::-1]])[:n]]
    logger.info("%d of %d genes in %s sections chosen by %r.", len(genes), len(shared), where, criterion)
    return genes


def _least_sections(min_sections: int | float | None, n_sections: int) -> int:
    """How many sections must measure a gene."""
    if min_sections is None:
        return n_sections
    is_whole = isinstance(min_sections, int | np.integer) and not isinstance(min_sections, bool)
    if is_whole and 1 <= min_sections <= n_sections:
        return int(min_sections)
    if isinstance(min_sections, float | np.floating) and 0 < min_sections <= 1:
        # A share such as 0.1 of 30 must not become 4 by rounding.
        return max(1, int(np.ceil(min_sections * n_sections - 1e-9)))
    raise DataError(
        f"`min_sections` must be None, a whole number from 1 to {n_sections} (the sections given), or a share above 0 "
        f"and up to 1.0, found {min_sections!r}."
    )


def _check_options(n: int, criterion: str | Sequence[str], layer: str) -> None:
    whole("n_genes", n, least=1)
    check_choice("layer", layer, (Keys.CONTEXT, Keys.LOGNORM))
    if isinstance(criterion, str) and criterion not in ("hvg", "heg"):
        raise DataError(f"`criterion` must be 'hvg', 'heg' or a list of genes, found {criterion!r}.")


def _listed_genes(
    found: Sequence[Survey], names: Sequence[str], least: int, *, argument: str = "criterion"
) -> list[str]:
    wanted = [str(name).upper() for name in names]
    if not wanted:
        raise PanelError("`criterion` is an empty list; name at least one gene.")
    if double := sorted({g for g in wanted if wanted.count(g) > 1}):
        raise PanelError(f"`{argument}` names {listed(double)} more than once (case does not matter).")
    if controls := [g for g in wanted if is_control(g)]:
        raise PanelError(f"`{argument}` names control probes: {listed(controls)}. Leave them out.")
    absent = {g: [one.name for one in found if g not in one.columns] for g in wanted}
    if unknown := {g: where for g, where in absent.items() if len(found) - len(where) < least}:
        cases = "; ".join(f"{g!r} (not in {listed(where, 3)})" for g, where in list(unknown.items())[:10])
        every = "every section" if least == len(found) else f"{least} of {len(found)} sections"
        near = near_names(list(unknown), (gene for one in found for gene in one.columns))
        raise PanelError(
            f"{len(unknown)} of {len(wanted)} listed genes are not in {every}: {cases}"
            f"{' …' if len(unknown) > 10 else ''}; near names: {listed(near)}. Leave them out, leave out these "
            "sections, or lower `min_sections`."
        )
    return wanted


# -- statistics of sections read one after the other, so that one matrix at a time is in memory ------------------------
@dataclass(frozen=True)
class Survey:
    """What is kept of a section after the first pass over it."""

    name: str
    #: column of every usable gene, by upper-cased symbol
    columns: dict[str, int]
    #: Ensembl id of every column, empty strings where unknown
    ensembl: np.ndarray
    #: names as they are spelled
    names: list[str]
    target_sum: float
    context_weight: float
    n_spots: int
    #: spots with counts, and sum of log-normalised expression, of every column
    detected: np.ndarray
    total: np.ndarray


def survey(sections: Data | Sequence[Data], layer: str, table_key: str) -> list[Survey]:
    """First pass: names, normalisation and detection of every section."""
    found: list[Survey] = []
    alike: dict[tuple[tuple[str, ...], ...], Survey] = {}
    for part in walk(sections, table_key):
        one = _survey(part, layer)
        # Names of a whole transcriptome are some MB, and most sections of a cohort have the same.
        first = alike.setdefault((tuple(one.names), tuple(one.ensembl)), one)
        found.append(replace(one, names=first.names, columns=first.columns, ensembl=first.ensembl))
    names = [one.name for one in found]
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(
            f"Section name(s) {listed(double)} occur twice in `sections`; tell them apart in `.obs['section']`."
        )
    for name in ("target_sum", "context_weight"):
        values = {getattr(one, name) for one in found}
        if len(values) > 1 and (name == "target_sum" or layer == Keys.CONTEXT):
            cases = ", ".join(f"{one.name!r}: {getattr(one, name):g}" for one in found[:8])
            raise DataError(
                f"The sections were normalised with different `{name}` ({cases}). Run `sl.pp.normalize` alike on all."
            )
    return found


def _survey(part: Part, layer: str) -> Survey:
    table = part.table
    stored = normalization_of(table)
    if stored is None or part.section not in set(map(str, stored["sections"])):
        raise OrderError(f"Section {part.section!r} is not normalised. Run `sl.pp.normalize(data)` first.")
    _section.lognorm(table, layer)
    names = list(table.var_names)
    check_gene_names(names, where=f"`var_names` of section {part.section!r}")
    upper = pd.Series([n.upper() for n in names])
    # Two columns that differ only in case cannot be told apart across sections.
    usable = ~upper.duplicated(keep=False) & ~upper.map(is_control)
    rows = _rows(part, Keys.LOGNORM)
    if not np.isfinite(rows.data).all():
        raise DataError(
            f"`.layers[{Keys.LOGNORM!r}]` of section {part.section!r} holds NaN or infinite values. Run "
            "`sl.pp.normalize` again."
        )
    ids = np.full(table.n_vars, "", dtype=object)
    for column in _ID_COLUMNS:
        if column in table.var:
            values = table.var[column].astype(object).where(table.var[column].notna(), "").astype(str).to_numpy()
            ids = np.where(ids == "", values, ids)
    return Survey(
        name=part.section,
        columns={name: i for i, name in enumerate(upper) if usable[i]},
        ensembl=ids,
        names=names,
        target_sum=float(stored["target_sum"]),
        context_weight=float(stored["context_weight"]),
        n_spots=rows.shape[0],
        detected=np.asarray((rows > 0).sum(axis=0)).ravel(),
        total=np.asarray(rows.sum(axis=0, dtype=np.float64)).ravel(),
    )


def _rows(part: Part, layer: str) -> sp.csr_matrix:
    return sp.csr_matrix(part.table.layers[layer][part.rows])


def availability(found: Sequence[Survey], genes: Sequence[str]) -> np.ndarray:
    """Which section measures which gene, bool (sections, genes)."""
    return np.array([[g in one.columns for g in genes] for one in found], dtype=bool).reshape(len(found), len(genes))


def pooled_means(found: Sequence[Survey], genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Per gene, over the spots of the sections that measure it: share of spots with counts, mean expression."""
    spots, detected, total = (np.zeros(len(genes)) for _ in range(3))
    for one in found:
        here = np.array([i for i, g in enumerate(genes) if g in one.columns], dtype=int)
        columns = [one.columns[genes[i]] for i in here]
        spots[here] += one.n_spots
        detected[here] += one.detected[columns]
        total[here] += one.total[columns]
    return detected / spots, total / spots


def variability(
    sections: Data | Sequence[Data], found: Sequence[Survey], genes: Sequence[str], n: int, *, table_key: str
) -> list[np.ndarray]:
    """Second pass: share of the measuring sections in which a gene is highly variable, and its mean dispersion.

    A section that measures part of the genes may call the same share of them highly variable as the others, so that
    everything a small panel measures does not win. The share counts one further section of the average gene: otherwise
    a gene that one section measures, and finds variable, would go before one that is variable in nine of ten.
    """
    frames = {}
    for part, one in zip(walk(sections, table_key), found, strict=True):
        own = [g for g in genes if g in one.columns]
        if own:
            values = _rows(part, Keys.LOGNORM)[:, [one.columns[g] for g in own]]
            frames[part.section] = _highly_variable(values, own, max(1, -(-n * len(own) // len(genes))))
    # Sorted, so that the order of the sections does not change a rounding.
    table = pd.concat([frames[name] for name in sorted(frames)])
    grouped = table.groupby(level=0)
    share = (grouped["variable"].sum() + n / len(genes)) / (grouped["variable"].size() + 1)
    return [values.loc[list(genes)].fillna(-np.inf).to_numpy(float) for values in (share, grouped["dispersion"].mean())]


def _highly_variable(lognorm: sp.csr_matrix, genes: Sequence[str], n: int) -> pd.DataFrame:
    import scanpy as sc

    if not lognorm.nnz:
        return pd.DataFrame({"variable": 0.0, "dispersion": 0.0}, index=pd.Index(genes))
    spots = [str(i) for i in range(lognorm.shape[0])]
    obs = pd.DataFrame({"batch": pd.Categorical(["all"] * len(spots))}, index=spots)
    light = AnnData(lognorm, obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    with warnings.catch_warnings():
        # A section where fewer than n genes vary contributes all of them, as it should.
        warnings.filterwarnings("ignore", message="`n_top_genes` > number of normalized dispersions")
        # With a batch of all spots scanpy leaves out genes without counts, as it does with sections as batches.
        table = sc.pp.highly_variable_genes(light, flavor="seurat", n_top_genes=n, batch_key="batch", inplace=False)
    table = table.loc[list(genes)]
    return pd.DataFrame(
        {"variable": table["highly_variable_nbatches"].astype(float), "dispersion": table["dispersions_norm"]}
    )


def moments(
    sections: Data | Sequence[Data], found: Sequence[Survey], genes: Sequence[str], *, layer: str, table_key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Last pass: mean and (biased) standard deviation per gene, over the spots of the sections that measure it."""
    n, mean, spread = (np.zeros(len(genes)) for _ in range(3))
    for part, one in zip(walk(sections, table_key), found, strict=True):
        here = np.array([i for i, g in enumerate(genes) if g in one.columns], dtype=int)
        if not here.size:
            continue
        values = _rows(part, layer)[:, [one.columns[genes[i]] for i in here]].astype(np.float64)
        own_mean, own_variance = mean_variance_axis(values, axis=0)
        # Chan, Golub and LeVeque: moments of two sets of spots joined without loss of digits.
        total = n[here] + one.n_spots
        step = own_mean - mean[here]
        spread[here] += own_variance * one.n_spots + step**2 * n[here] * one.n_spots / total
        mean[here] += step * one.n_spots / total
        n[here] = total
    return mean, np.sqrt(spread / n)
