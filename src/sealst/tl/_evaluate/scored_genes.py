"""Which genes an evaluation scores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sealst._core.genes.names import is_control
from sealst._core.genes.panel import GenePanel
from sealst._core.scores.probes import Protocol
from sealst._errors import PanelError, SealstWarning
from sealst._keys import Keys
from sealst._section import Data, Part
from sealst._validate import listed
from sealst.pp import rank_genes

#: more genes than any section has
_ALL = 10**6
#: share of the spots of every section in which a gene of HEST-bench's set must be detected
_HEST_DETECTED = 0.1
Kind = Literal["hvg", "heg"]
Sets = dict[str, list[str]]


def given_sets(genes: Mapping[str, Sequence[str]], panel: GenePanel | None) -> Sets:
    """Named sets as the user gave them; all within the model's panel where there is one."""
    known = None if panel is None else {g.upper() for g in panel.genes}
    for name, members in genes.items():
        if not len(members):
            raise PanelError(f"Gene set {name!r} is empty.")
        if known is not None and (absent := [g for g in members if g.upper() not in known]):
            raise PanelError(f"Gene set {name!r} has genes outside the model's panel: {listed(absent)}.")
    return {name: [str(g) for g in members] for name, members in genes.items()}


def ranked_sets(train: Sequence[Data], n: int, panel: GenePanel | None, table_key: str) -> Sets:
    """The n most variable and the n most expressed genes of the training sections, of the panel where there is one."""
    sets = {}
    for kind in get_args(Kind):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SealstWarning)
            if panel is None:
                kept = rank_genes(train, n, criterion=kind, table_key=table_key)
            else:
                kept = _ranked_within(panel, train, kind, n, table_key)
        sets[f"{kind}{len(kept)}"] = kept
    return sets


def _ranked_within(panel: GenePanel, train: Sequence[Data], kind: Kind, n: int, table_key: str) -> list[str]:
    known = {g.upper() for g in panel.genes}
    kept: list[str] = []
    # As many as the panel has: for the default panel its own order. A panel chosen otherwise may need them all, and one
    # joined from sections that measure different genes has some that not all of them measure.
    for top, least in ((len(known), None), (_ALL, None), (_ALL, 1)):
        if least is None and panel.availability is not None:
            continue
        with suppress(PanelError):
            ranked = rank_genes(train, top, criterion=kind, min_sections=least, table_key=table_key)
            kept = [g for g in ranked if g in known][:n]
        if len(kept) == n:
            break
    return kept


def hest_genes(parts: Sequence[Part], n: int, panel: GenePanel | None = None) -> list[str]:
    """Genes of a HEST-bench task: the n most variable of those detected in a tenth of the spots of every section.

    Raw counts of all sections, test sections included, are stacked and taken to log1p; the choice is scanpy's (flavour
    "seurat"). Control probes are left out, and genes outside `panel` where one is given.

    References
    ----------
    Jaume et al., HEST-1k, NeurIPS 2024.
    """
    import scanpy as sc

    shared: list[str] | None = None
    for part in parts:
        counts, names = _raw(part)
        detected = np.asarray((counts > 0).sum(axis=0)).ravel() >= np.ceil(_HEST_DETECTED * counts.shape[0])
        here = [g for g, d in zip(names, detected, strict=True) if d and not is_control(g)]
        known_here = set(here)
        shared = here if shared is None else [g for g in shared if g in known_here]
    if shared and panel is not None:
        known = {g.upper() for g in panel.genes}
        shared = [g for g in shared if g in known]
    if not shared:
        raise PanelError(
            f"No gene is detected in {_HEST_DETECTED:.0%} of the spots of every section, as HEST-bench asks. Pass "
            "`genes=`, or use `preset='cv'`."
        )
    stacked = []
    for part in parts:
        counts, names = _raw(part)
        stacked.append(counts[:, pd.Index(names).get_indexer(shared)])
    joined = AnnData(sp.csr_matrix(sp.vstack(stacked), dtype=np.float32), var=pd.DataFrame(index=pd.Index(shared)))
    sc.pp.log1p(joined)
    sc.pp.highly_variable_genes(joined, n_top_genes=min(n, len(shared)))
    return list(joined.var_names[joined.var["highly_variable"]])


def _raw(part: Part) -> tuple[sp.csr_matrix, list[str]]:
    """Counts of a section and upper-cased names; a name that occurs twice is left out."""
    table = part.table
    counts = table.layers.get(Keys.COUNTS, table.X)
    names = pd.Index([str(v).upper() for v in table.var_names])
    once = ~names.duplicated(keep=False)
    return sp.csr_matrix(counts[part.rows][:, once]), list(names[once])


def universe(sets: Sequence[Sets], panel: GenePanel | None, protocol: Protocol, extra: Sequence[str] = ()) -> GenePanel:
    """All genes that are predicted: the model's panel, or those that some set names.

    A panel's mean only stands in for genes that a section does not measure, which are not scored.
    """
    if panel is not None and protocol.target == "lognorm":
        return panel
    names = {g.upper(): g.upper() for part in sets for members in part.values() for g in members}
    genes = tuple(names | {g.upper(): g.upper() for g in extra})
    return GenePanel(genes, mean=np.zeros(len(genes)), std=np.ones(len(genes)), layer=Keys.LOGNORM)


def columns_of(sets: Sets, genes: GenePanel) -> dict[str, np.ndarray]:
    """Columns of every set's genes."""
    position = {g.upper(): i for i, g in enumerate(genes.genes)}
    return {name: np.array([position[g.upper()] for g in members], dtype=int) for name, members in sets.items()}
