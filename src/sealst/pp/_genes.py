"""One ordered gene panel over several sections."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.utils.sparsefuncs import mean_variance_axis

from sealst import _section
from sealst._core.panel import MIN_STD, GenePanel, is_control
from sealst._errors import DataError, OrderError, PanelError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data
from sealst._validate import check_choice, check_fraction, check_gene_names, listed
from sealst.pp._normalize import recorded
from sealst.pp._split import Part, parts_of


def select_genes(
    sections: Sequence[Data],
    n: int = 2000,
    *,
    criterion: Literal["hvg", "heg"] | Sequence[str] = "hvg",
    layer: str = Keys.CONTEXT,
    min_spots: float = 0.05,
    species: str = "human",
    table_key: str = Keys.TABLE,
) -> GenePanel:
    """Choose the genes a model works with: once, over all training sections, in a fixed order.

    Genes match across sections by upper-cased symbol. Candidates are genes that every section measures, that are not
    control probes, and that have counts in at least `min_spots` of the spots of all sections together. Pass training
    sections only: genes chosen with test sections leak.

    Parameters
    ----------
    sections
        Training sections after `sl.pp.normalize`, as SpatialData or AnnData.
    n
        Number of genes. Where fewer are available all are taken, with a warning. Not used with a list of genes.
    criterion
        - ``"hvg"``: highly variable genes, `scanpy.pp.highly_variable_genes` (``flavor="seurat"``) on layer
          ``"lognorm"`` with the section as batch, ranked by the number of sections a gene is highly variable in, then
          by its normalised dispersion.
        - ``"heg"``: highest mean of ``"lognorm"``.
        - a list of gene symbols: these, in this order; `min_spots` does not apply.
    layer
        Layer whose mean and standard deviation the panel keeps: ``"context"`` or ``"lognorm"``.
    min_spots
        Lowest share of spots with counts, 0 to 1. It is counted over all sections together, so that one shallow
        section, or an organ that does not express a gene, does not take the gene from the others.
    species
        Recorded in the panel.
    table_key
        Name of the table in every SpatialData.

    Returns
    -------
    `GenePanel` with upper-cased symbols in order of rank, and per gene the mean and standard deviation (biased, 1 for a
    gene that is constant) over all spots given. The order of the sections does not change the genes.

    Raises
    ------
    DataError
        When there is no section, a section has fewer than two spots, gene names are empty or occur twice, or sections
        were normalised differently.
    OrderError
        When a section is not normalised.
    PanelError
        When no gene is left, or listed genes are unknown, occur twice or are control probes.

    Examples
    --------
    >>> panel = sl.pp.select_genes([s1, s2], n=2000)
    >>> panel.to_tsv("panel.tsv")
    """
    _check_options(n, criterion, layer)
    check_fraction("min_spots", min_spots)
    parts = parts_of(sections, table_key)
    target_sum = _common_target_sum(parts, layer)
    indices = [_symbols(part) for part in parts]
    if isinstance(criterion, str):
        shared = _shared(parts, indices)
        lognorm = _stack(parts, indices, shared, layer=Keys.LOGNORM)
        columns = _detected(lognorm, min_spots)
        if n > len(columns):
            warn(
                f"{n} genes were asked for, {len(columns)} are available ({len(shared)} in all {len(parts)} "
                f"section(s), {len(columns)} of them in {min_spots:.0%} of the spots); all {len(columns)} are taken."
            )
        score = _SCORES[criterion](lognorm[:, columns], parts, min(n, len(columns)))
        # `shared` is sorted and the sort is stable, so that ties go by name.
        genes = [shared[i] for i in columns[np.lexsort([-column for column in score[::-1]])[:n]]]
        logger.info("%d of %d genes in all sections chosen by %r.", len(genes), len(shared), criterion)
    else:
        genes = _listed_genes(parts, indices, criterion)
    mean, variance = mean_variance_axis(_stack(parts, indices, genes, layer=layer).astype(np.float64), axis=0)
    std = np.sqrt(variance)
    if species == "human" and (examples := _mouse_symbols(parts[0])):
        warn(
            f"Most gene names are spelled like mouse symbols (e.g. {listed(examples, 3)}), but the panel says "
            "species='human'; pass `species='mouse'`."
        )
    return GenePanel(
        tuple(genes),
        mean,
        np.where(std < MIN_STD, 1.0, std),
        ensembl=_ensembl(parts, indices, genes),
        target_sum=target_sum,
        layer=layer,
        species=species,
        sections=tuple(part.name for part in parts),
    )


def _check_options(n: int, criterion: str | Sequence[str], layer: str) -> None:
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n <= 0:
        raise DataError(f"`n` must be a whole number above 0, found {n!r}.")
    check_choice("layer", layer, (Keys.CONTEXT, Keys.LOGNORM))
    if isinstance(criterion, str) and criterion not in ("hvg", "heg"):
        raise DataError(f"`criterion` must be 'hvg', 'heg' or a list of genes, found {criterion!r}.")


def _common_target_sum(parts: Sequence[Part], layer: str) -> float:
    settings = []
    for part in parts:
        stored = recorded(part.table)
        if stored is None or part.name not in set(map(str, stored["sections"])):
            raise OrderError(f"Section {part.name!r} is not normalised. Run `sl.pp.normalize(data)` first.")
        _section.lognorm(part.table, layer)
        settings.append((float(stored["target_sum"]), float(stored["context_weight"])))
    for name, position in (("target_sum", 0), ("context_weight", 1)):
        values = {s[position] for s in settings}
        if len(values) > 1 and (name == "target_sum" or layer == Keys.CONTEXT):
            found = ", ".join(f"{p.name!r}: {s[position]:g}" for p, s in zip(parts[:8], settings, strict=False))
            raise DataError(
                f"The sections were normalised with different `{name}` ({found}). Run `sl.pp.normalize` alike on all, "
                "with `overwrite=True`."
            )
    return settings[0][0]


def _symbols(part: Part) -> dict[str, int]:
    """Column of every usable gene of a section, by upper-cased symbol."""
    names = list(part.table.var_names)
    check_gene_names(names, where=f"`var_names` of section {part.name!r}")
    upper = pd.Series([n.upper() for n in names])
    # Two columns that differ only in case cannot be told apart across sections.
    usable = ~upper.duplicated(keep=False) & ~upper.map(is_control)
    return {name: i for i, name in upper[usable].items()}


def _shared(parts: Sequence[Part], indices: Sequence[dict[str, int]]) -> list[str]:
    """Genes of all sections, sorted, so that the order of sections does not matter."""
    shared = sorted(set(indices[0]).intersection(*indices[1:]))
    if not shared:
        examples = "; ".join(f"{p.name!r}: {listed(list(i)[:3])}" for p, i in zip(parts[:4], indices, strict=False))
        raise PanelError(
            f"No gene is found in all {len(parts)} sections ({examples}). Give all of them the same kind of names, "
            "e.g. gene symbols: `table.var_names = table.var['gene_symbols']`."
        )
    return shared


def _stack(
    parts: Sequence[Part], indices: Sequence[dict[str, int]], genes: Sequence[str], *, layer: str
) -> sp.csr_matrix:
    blocks = []
    for part, index in zip(parts, indices, strict=True):
        rows = sp.csr_matrix(part.table.layers[layer][part.region.rows])
        blocks.append(rows[:, [index[g] for g in genes]])
    return sp.vstack(blocks, format="csr")


def _detected(lognorm: sp.csr_matrix, min_spots: float) -> np.ndarray:
    """Columns of the genes with counts in enough spots."""
    share = np.asarray((lognorm > 0).mean(axis=0)).ravel()
    columns = np.flatnonzero((share >= min_spots) & (share > 0))
    if not columns.size:
        raise PanelError(
            f"None of the {len(share)} shared genes has counts in {min_spots:.0%} of the spots (highest share "
            f"{share.max():.1%}). Lower `min_spots`."
        )
    return columns


def _score_heg(lognorm: sp.csr_matrix, parts: Sequence[Part], n: int) -> list[np.ndarray]:
    return [mean_variance_axis(lognorm.astype(np.float64), axis=0)[0]]


def _score_hvg(lognorm: sp.csr_matrix, parts: Sequence[Part], n: int) -> list[np.ndarray]:
    import scanpy as sc

    names = pd.Index([f"gene{i}" for i in range(lognorm.shape[1])])
    sections = np.repeat([part.name for part in parts], [len(part.region.rows) for part in parts])
    obs = pd.DataFrame({Keys.SECTION: pd.Categorical(sections)}, index=[str(i) for i in range(len(sections))])
    light = AnnData(lognorm, obs=obs, var=pd.DataFrame(index=names))
    with warnings.catch_warnings():
        # A section where fewer than n genes vary contributes all of them, as it should.
        warnings.filterwarnings("ignore", message="`n_top_genes` > number of normalized dispersions")
        table = sc.pp.highly_variable_genes(
            light, flavor="seurat", n_top_genes=n, batch_key=Keys.SECTION, inplace=False
        ).loc[names]
    columns = (table["highly_variable_nbatches"], table["dispersions_norm"])
    return [column.fillna(-np.inf).to_numpy(dtype=float) for column in columns]


_SCORES = {"hvg": _score_hvg, "heg": _score_heg}


def _listed_genes(parts: Sequence[Part], indices: Sequence[dict[str, int]], names: Sequence[str]) -> list[str]:
    wanted = [str(name).upper() for name in names]
    if not wanted:
        raise PanelError("`criterion` is an empty list; name at least one gene.")
    if double := sorted({g for g in wanted if wanted.count(g) > 1}):
        raise PanelError(f"`criterion` names {listed(double)} more than once (case does not matter).")
    if controls := [g for g in wanted if is_control(g)]:
        raise PanelError(f"`criterion` names control probes: {listed(controls)}. Leave them out.")
    absent = {g: [p.name for p, index in zip(parts, indices, strict=True) if g not in index] for g in wanted}
    if unknown := {g: where for g, where in absent.items() if where}:
        cases = "; ".join(f"{g!r} (not in {listed(where, 3)})" for g, where in list(unknown.items())[:10])
        raise PanelError(
            f"{len(unknown)} of {len(wanted)} listed genes are not in every section: {cases}"
            f"{' …' if len(unknown) > 10 else ''}. Leave them out, or leave out these sections."
        )
    return wanted


def _ensembl(parts: Sequence[Part], indices: Sequence[dict[str, int]], genes: Sequence[str]) -> tuple[str, ...]:
    for part, index in zip(parts, indices, strict=True):
        if "gene_ids" in part.table.var:
            ids = part.table.var["gene_ids"].fillna("").astype(str).to_numpy()
            return tuple(ids[index[g]] for g in genes)
    return ()


def _mouse_symbols(part: Part) -> list[str]:
    """Names like ``Epcam``, where most of a section's genes are spelled so."""
    names = list(part.table.var_names)
    titled = [name for name in names if re.match(r"[A-Z][a-z]", name)]
    return titled if len(titled) > len(names) / 2 else []
