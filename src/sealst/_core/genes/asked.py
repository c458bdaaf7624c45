"""Genes that somebody asks of a model, told from those it knows before it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from sealst._core.genes.names import near_names
from sealst._errors import PanelError
from sealst._files import TABLE_BYTES, read_text
from sealst._validate import listed

#: names in place of those that are not known; no gene is called so
_UNNAMED = re.compile(r"unnamed_\d{4,}", re.IGNORECASE)


def check_named(genes: Sequence[str]) -> None:
    """Raise `PanelError` when names are `placeholder_names`, which no gene can be found among."""
    if unnamed := [gene for gene in map(str, genes) if _UNNAMED.fullmatch(gene)]:
        raise PanelError(
            f"Which genes {len(unnamed)} of the panel's {len(genes)} values stand for is not known, {unnamed[0]!r} …; "
            "they cannot be matched with genes by name. Load the model with `genes=`, the names in the order of its "
            "outputs: `sl.models.load_official(..., genes=names)`."
        )


def check_asked(asked: Iterable[object], genes: Sequence[str], *, query: bool = False) -> None:
    """Raise `PanelError`, with near names, where the genes of a panel are not all that are asked for.

    Parameters
    ----------
    asked
        Names, whatever their case.
    genes
        Genes of the panel.
    query
        Whether they are those of a retrieval, which the message says.
    """
    known = {gene.upper() for gene in genes}
    if unknown := [str(name) for name in asked if str(name).strip().upper() not in known]:
        where = "of `query` are not in the model's panel" if query else "are not in the panel"
        more = ""
        if query:
            more = " `model.panel.genes` lists the panel; a cell type is asked for by its markers, as ['MS4A1']."
        raise PanelError(
            f"{len(unknown)} gene(s) {where} of {len(genes)}: {listed(unknown)}; near names: "
            f"{listed(near_names(unknown, genes))}.{more} A gene of the sections gets into a model by "
            "`sl.pp.select_genes(sections, include=[...])` and training."
        )


def genes_in(path: Path) -> tuple[str, ...]:
    """Names in the file of a panel, which is not checked otherwise; none where there is no such file."""
    if not path.is_file():
        return ()
    lines = read_text(path, kind=PanelError, most=TABLE_BYTES).splitlines()
    _, *rows = [line for line in lines if not line.startswith("#")] or [""]
    return tuple(row.partition("\t")[0] for row in rows)
