"""Names of genes: current symbols, Ensembl ids, earlier names, and what spreadsheets make of them."""

from __future__ import annotations

import difflib
import functools
import gzip
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sealst._errors import DataError
from sealst._text_table import separator_of
from sealst._validate import listed

if TYPE_CHECKING:
    import pandas as pd

#: what the columns of a gene table may be called; the second name is HGNC's
_COLUMNS = {
    "symbol": ("symbol",),
    "ensembl": ("ensembl", "ensembl_gene_id"),
    "previous": ("previous", "prev_symbol"),
    "aliases": ("aliases", "alias_symbol"),
}
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,})(?:\.\d+)?(?:_PAR_Y)?$")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
# Spreadsheets read MARCH1, MARC1, SEPT2, SEP15, DEC1 and OCT4 as dates.
_STEMS = {"MAR": ("MARCH", "MARC", "MAR"), "SEP": ("SEPT", "SEP")}
_DATES = (
    re.compile(r"(?P<day>\d{1,2})[-/ ](?P<month>[A-Za-z]{3,4})$"),
    re.compile(r"(?P<month>[A-Za-z]{3,4})[-/ ](?P<day>\d{1,2})$"),
    re.compile(r"\d{4}-(?P<month>\d{2})-(?P<day>\d{2})(?: 00:00:00)?$"),
)
_NUMBER = re.compile(r"\d+(\.\d+)?([eE]\+?\d+)?$")

#: ways in which a name can be understood as another spelling of a current symbol
OTHER_NAMES = ("case", "previous", "alias", "excel")


@dataclass(frozen=True)
class GeneTable:
    """Current symbols of a species and what else their genes are called."""

    #: where the names come from, for the record
    source: str
    #: current symbol by upper-cased symbol
    current: dict[str, str]
    #: Ensembl ids by current symbol; the first is the gene's main one
    ensembl: dict[str, tuple[str, ...]]
    #: current symbol by Ensembl id
    by_id: dict[str, str]
    #: current symbols by upper-cased earlier symbol, and by upper-cased alias
    previous: dict[str, tuple[str, ...]]
    aliases: dict[str, tuple[str, ...]]

    def lookup(self, name: str) -> tuple[str, ...]:
        """Current symbols that a name may stand for; earlier symbols go before aliases."""
        key = name.upper()
        if key in self.current:
            return (self.current[key],)
        return self.previous.get(key) or self.aliases.get(key) or ()


@dataclass(frozen=True)
class Resolved:
    """What a column's name was understood as."""

    #: current symbol, or the name itself
    symbol: str
    #: "control", "current", "ensembl", one of `OTHER_NAMES`, "ambiguous", "mangled" or "unknown"
    kind: str
    #: Ensembl id that the data give, or ""
    ensembl: str = ""


@functools.cache
def human_table() -> GeneTable:
    """The table of the package: HGNC's approved and previous symbols with Ensembl ids (CC0)."""
    lines = _human_lines()
    version = next(line for line in lines if line.startswith("# version")).partition(":")[2].strip()
    return parse_table(_columns(lines), source=f"HGNC {version}")


def human_symbols(name: str) -> tuple[str, ...]:
    """Current symbols of the human genes that a name may stand for, as `human_table` looks them up.

    Of the table the lines alone are read that hold the name: a message is not worth all of it.

    Examples
    --------
    >>> human_symbols("her2")
    ('ERBB2',)
    """
    key = name.upper()
    lines = _human_lines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    own = [line for line in lines[start + 1 :] if key in line.upper()]
    return tuple(parse_table(_columns([lines[start], *own]), source="HGNC").lookup(name))


def _human_lines() -> list[str]:
    packed = resources.files("sealst").joinpath("_core", "genes", "tables", "human_genes.tsv.gz").read_bytes()
    return gzip.decompress(packed).decode().rstrip("\n").split("\n")


def _columns(lines: Sequence[str]) -> dict[str, list[str]]:
    """Columns of the lines of our own table; lines that begin with ``#`` are none of it."""
    names, *rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def load_table(table: pd.DataFrame | str | os.PathLike[str]) -> GeneTable:
    """A gene table of the user's: a DataFrame, or the path of a TSV or CSV file."""
    if hasattr(table, "columns"):
        return parse_table(_texts(table), source="DataFrame")
    path = Path(table)
    if not path.is_file():
        raise DataError(f"`table` {str(path)!r} is not a file. Name a TSV or CSV, e.g. HGNC's complete set.")
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    return parse_table(_texts(_read(StringIO(text))), source=path.name)


def _texts(frame: pd.DataFrame) -> dict[str, list[str]]:
    return {str(name): frame[name].fillna("").astype(str).tolist() for name in frame}


def _read(text: StringIO) -> pd.DataFrame:
    import pandas as pd

    # Not pandas' `comment`, which would cut a line where a name holds the sign.
    lines = [line for line in text if not line.startswith("#")]
    return pd.read_csv(StringIO("".join(lines)), sep=separator_of(lines[:20]), dtype=str, keep_default_na=False)


def parse_table(frame: Mapping[str, Sequence[str]], *, source: str) -> GeneTable:
    """Check a table (columns of text, one row per gene), and index it by every name."""
    columns = {key: next((c for c in names if c in frame), None) for key, names in _COLUMNS.items()}
    if columns["symbol"] is None:
        raise DataError(
            f"The gene table ({source}) has no column 'symbol'; found {listed(frame)}. Expected 'symbol' and "
            "any of 'ensembl', 'previous', 'aliases' (several values joined by '|')."
        )
    if all(columns[key] is None for key in ("ensembl", "previous", "aliases")):
        raise DataError(f"The gene table ({source}) has symbols only; add 'ensembl', 'previous' or 'aliases'.")
    symbols = [cell.strip() for cell in frame[columns["symbol"]]]
    if empty := [i for i, symbol in enumerate(symbols) if not symbol]:
        raise DataError(f"The gene table ({source}) has {len(empty)} rows without symbol (first: row {empty[0] + 1}).")
    upper = [symbol.upper() for symbol in symbols]
    if len(set(upper)) < len(upper):
        twice = [symbol for symbol, times in Counter(upper).items() for _ in range(times - 1)]
        raise DataError(f"Symbols occur twice in the gene table ({source}): {listed(twice)}.")
    values: dict[str, list[tuple[str, ...]]] = {}
    for key in ("ensembl", "previous", "aliases"):
        column = columns[key]
        cells = [""] * len(symbols) if column is None else frame[column]
        values[key] = [tuple(part.strip() for part in cell.split("|") if part.strip()) for cell in cells]
    ensembl: dict[str, tuple[str, ...]] = {}
    first: dict[str, set[str]] = defaultdict(set)
    other: dict[str, set[str]] = defaultdict(set)
    for symbol, several in zip(symbols, values["ensembl"], strict=True):
        ids = tuple(ensembl_id(one) for one in several)
        if not all(ids):
            raise DataError(
                f"The gene table ({source}) gives {symbol!r} the Ensembl ids {listed(several)}; expected gene ids such "
                "as 'ENSG00000141736', joined by '|'."
            )
        if ids:
            ensembl[symbol] = ids
        for i, one in enumerate(ids):
            (other if i else first)[one].add(symbol)
    # A gene's first id counts more than its others; one that several genes claim is nobody's.
    claims = {**other, **first}
    return GeneTable(
        source=source,
        current=dict(zip(upper, symbols, strict=True)),
        ensembl=ensembl,
        by_id={one: next(iter(genes)) for one, genes in claims.items() if len(genes) == 1},
        previous=_by_name(symbols, values["previous"]),
        aliases=_by_name(symbols, values["aliases"]),
    )


def ensembl_id(name: str) -> str:
    """Ensembl gene id without its version; "" where the name is none.

    Examples
    --------
    >>> ensembl_id("ENSG00000141736.14"), ensembl_id("ERBB2")
    ('ENSG00000141736', '')
    """
    match = _ENSEMBL.match(name)
    return match.group(1) if match else ""


def _by_name(symbols: Sequence[str], names: Sequence[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = defaultdict(set)
    for symbol, several in zip(symbols, names, strict=True):
        for name in several:
            found[name.upper()].add(symbol)
    return {name: tuple(sorted(genes)) for name, genes in found.items()}


def resolve(
    names: Sequence[str], table: GeneTable | None, *, ids: Sequence[str] | None = None, fold_case: bool = True
) -> list[Resolved]:
    """Understand every name.

    Parameters
    ----------
    names
        Names of columns.
    table
        What genes are called; without, only controls, Ensembl versions and dates are recognised.
    ids
        Ensembl ids that the data give beside the names ("" where none). Where the table knows an id, it decides.
    fold_case
        Whether ``Epcam`` may stand for ``EPCAM``.
    """
    own = [ensembl_id(name) or given for name, given in zip(names, ids or [""] * len(names), strict=True)]
    found = [_resolve(name, own_id, table, fold_case) for name, own_id in zip(names, own, strict=True)]
    if table is None:
        return found
    # A date stands for one of several genes; where the others are measured under their names, it is the one left.
    taken = {one.symbol for one in found if one.kind in ("current", "ensembl", *OTHER_NAMES)}
    dates = Counter(name for name, one in zip(names, found, strict=True) if one.kind == "mangled")
    for i, one in enumerate(found):
        if one.kind == "mangled" and dates[names[i]] == 1:
            left = [gene for gene in genes_of_date(names[i], table) if gene not in taken]
            if len(left) == 1:
                found[i] = Resolved(left[0], "excel", one.ensembl)
    return found


def _resolve(name: str, own_id: str, table: GeneTable | None, fold_case: bool) -> Resolved:
    if is_control(name):
        return Resolved(name, "control")
    by_id = table.by_id.get(own_id, "") if table is not None else ""
    if ensembl_id(name):
        return Resolved(by_id or own_id, "ensembl" if by_id else "unknown", own_id)
    # The data's id decides, also against a symbol that is now another gene's.
    if table is not None and table.current.get(name.upper()) == name and by_id in ("", name):
        return Resolved(name, "current", own_id)
    if by_id:
        return Resolved(by_id, "ensembl", own_id)
    if is_mangled(name):
        return Resolved(name, "mangled", own_id)
    if table is None:
        return Resolved(name, "unknown", own_id)
    genes = table.lookup(name)
    key = name.upper()
    if key in table.current:
        return Resolved(genes[0], "case", own_id) if fold_case else Resolved(name, "unknown", own_id)
    if len(genes) != 1:
        return Resolved(name, "ambiguous" if genes else "unknown", own_id)
    return Resolved(genes[0], "previous" if key in table.previous else "alias", own_id)


def is_mangled(name: str) -> bool:
    """Whether a name is what a spreadsheet leaves of a symbol: a date or a number.

    Examples
    --------
    >>> is_mangled("2-Sep"), is_mangled("2.31E+13"), is_mangled("SEPT2")
    (True, True, False)
    """
    return _date(name) is not None or _NUMBER.match(name) is not None


def _date(name: str) -> tuple[str, int] | None:
    for pattern in _DATES:
        if match := pattern.match(name):
            month, day = match["month"].upper(), int(match["day"])
            if month.isdigit():
                month = _MONTHS[int(month) - 1] if 1 <= int(month) <= 12 else ""
            if month[:3] in _MONTHS and month in (*_MONTHS, "SEPT", "JUNE", "JULY") and day <= 31:
                return month[:3], day
    return None


def genes_of_date(name: str, table: GeneTable) -> list[str]:
    """Current symbols whose earlier names a spreadsheet turns into this date."""
    date = _date(name)
    if date is None:
        return []
    month, day = date
    found: Iterable[str] = (gene for stem in _STEMS.get(month, (month,)) for gene in table.lookup(f"{stem}{day}"))
    return list(dict.fromkeys(found))


def mouse_like(names: Iterable[str]) -> list[str]:
    """Names spelled like mouse genes: ``Epcam``, ``ENSMUSG…``; clones such as ``Rik`` genes included."""
    return [n for n in names if re.match(r"[A-Z][a-z]", n) or n.startswith("ENSMUSG") or n.endswith("Rik")]


def human_like(names: Iterable[str]) -> list[str]:
    """Names spelled like human genes: ``EPCAM``, ``ENSG…``."""
    return [n for n in names if re.match(r"[A-Z]{2}[A-Z0-9-]*$", n) and not n.startswith("ENSMUSG")]


def final_names(found: Sequence[Resolved], names: Sequence[str], *, sum_aliases: bool) -> tuple[np.ndarray, np.ndarray]:
    """New name of every column, and which columns kept their old one because the gene is measured beside them.

    Columns with an equal new name are one gene. Two columns are never joined on the word of an earlier name, an alias,
    a spelling or a date alone, unless `sum_aliases`; a date that several columns carry stands for different genes.
    """
    import pandas as pd

    new = np.array([one.symbol for one in found], dtype=object)
    other = np.array([one.kind in OTHER_NAMES for one in found], dtype=bool)
    kept = np.zeros(len(new), dtype=bool)
    if not sum_aliases:
        certain = set(new[~other])
        columns = pd.DataFrame({"new": new, "old": list(names)})
        # Equal old names are duplicates of one column, however they were understood.
        rivals = columns[other].groupby("new")["old"].transform("nunique").reindex(columns.index, fill_value=0) > 1
        kept = other & (rivals.to_numpy() | np.array([name in certain for name in new], dtype=bool))
        new[kept] = np.asarray(names, dtype=object)[kept]
    mangled = pd.Series([name if one.kind == "mangled" else None for one, name in zip(found, names, strict=True)])
    for positions in mangled.dropna().groupby(mangled).groups.values():
        for k, i in enumerate(list(positions)[1:], start=1):
            new[i] = f"{new[i]}-{k}"
    return new, kept


# Anchored where a real gene begins alike: ERCC1-8 repair DNA (spike-ins are ERCC-00002), NEGR1 is a receptor.
_CONTROL = re.compile(
    r"BLANK|CONTROL|AMBIGUOUS|ANTISENSE_|DEPRECATED|UNASSIGNED|INTERGENIC|CODEWORD|FALSECODE|NEGPRB|NEGPROBE"
    r"|^NEGATIVE[-_ ]?\d*$|^ERCC[-_]?\d{5}"
)


def is_control(name: str) -> bool:
    """Whether a feature is a control probe or a technical feature instead of a gene.

    Examples
    --------
    >>> is_control("NegControlProbe_00042"), is_control("ERCC-00002"), is_control("ERCC1")
    (True, True, False)
    """
    return _CONTROL.search(name.upper()) is not None


def placeholder_names(n: int) -> tuple[str, ...]:
    """Names of `n` outputs whose genes are not known.

    Examples
    --------
    >>> placeholder_names(2)
    ('unnamed_0001', 'unnamed_0002')
    """
    return tuple(f"unnamed_{i:04d}" for i in range(1, n + 1))


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
    meant: dict[str, None] = {}
    for name in asked:
        protein = _PROTEINS.get("".join(filter(str.isalnum, name)))
        symbols = [protein] if protein else [symbol.upper() for symbol in human_symbols(name)]
        meant |= dict.fromkeys(symbol for symbol in symbols if symbol in names)
    alike = {close for name in asked for close in difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)}
    return [names[name] for name in (*meant, *sorted(alike - set(meant)))]
