"""Statistics of genes over sections that are read one after the other, so that one matrix at a time is in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.utils.sparsefuncs import mean_variance_axis

from sealst import _section
from sealst._core.genes.names import is_control
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._section import Data, Part, walk
from sealst._validate import check_gene_names, listed
from sealst.pp._normalize import normalization_of

#: columns of ``.var`` that hold Ensembl ids, in order of trust
_ID_COLUMNS = (Keys.ENSEMBL, "gene_ids")


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
    found = [_survey(part, layer) for part in walk(sections, table_key)]
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
