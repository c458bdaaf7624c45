"""Genes that somebody may have meant: by the protein's name, by an earlier symbol, by spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

#: names of proteins and stains that a pathology report uses, and the symbol of the gene; letters and digits alone
_PROTEINS = {
    "ASMA": "ACTA2",
    "CD8": "CD8A",
    "CD20": "MS4A1",
    "CD31": "PECAM1",
    "CD45": "PTPRC",
    "CD56": "NCAM1",
    "CD79": "CD79A",
    "CD117": "KIT",
    "CD138": "SDC1",
    "CK5": "KRT5",
    "CK56": "KRT5",
    "CK7": "KRT7",
    "CK8": "KRT8",
    "CK14": "KRT14",
    "CK18": "KRT18",
    "CK19": "KRT19",
    "CK20": "KRT20",
    "CYCLIND1": "CCND1",
    "ECADHERIN": "CDH1",
    "ER": "ESR1",
    "ERALPHA": "ESR1",
    "HER2": "ERBB2",
    "HER2NEU": "ERBB2",
    "HER3": "ERBB3",
    "KI67": "MKI67",
    "NEU": "ERBB2",
    "P16": "CDKN2A",
    "P21": "CDKN1A",
    "P40": "TP63",
    "P53": "TP53",
    "P63": "TP63",
    "PD1": "PDCD1",
    "PDL1": "CD274",
    "PDL2": "PDCD1LG2",
    "PR": "PGR",
    "PSA": "KLK3",
    "SMA": "ACTA2",
    "TIM3": "HAVCR2",
    "TTF1": "NKX2-1",
    "VIMENTIN": "VIM",
}


def near_names(unknown: Sequence[str], known: Iterable[str]) -> list[str]:
    """Known names, spelled as they are, that the first unknown ones may stand for: the sure first, then by spelling.

    Parameters
    ----------
    unknown
        Names that were not found; the first five are looked at.
    known
        Names that exist; case does not matter, and of names that differ only in case the first one counts.

    Examples
    --------
    >>> near_names(["HER2", "Ki-67", "EPCAN"], ["ERBB2", "MKI67", "EPCAM", "VIM"])
    ['ERBB2', 'MKI67', 'EPCAM']
    """
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(str(name).upper(), str(name))
    asked = [str(name).strip().upper() for name in unknown[:5]]
    meant = dict.fromkeys(symbol for name in asked for symbol in _symbols(name) if symbol in names)
    alike = {close for name in asked for close in difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)}
    return [names[name] for name in (*meant, *sorted(alike - set(meant)))]


def _symbols(name: str) -> tuple[str, ...]:
    """Current symbols that a name stands for, upper-cased; none where it is itself current or nobody's."""
    # Here, since the table's module needs the panel's, which needs this one.
    from sealst._core.genes.names import human_table

    if symbol := _PROTEINS.get("".join(filter(str.isalnum, name))):
        return (symbol,)
    return tuple(symbol.upper() for symbol in human_table().lookup(name))
