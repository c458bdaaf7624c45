"""Gene sets as edges (set, gene, weight): read from files, checked, and held against the genes at hand."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sealst._errors import DataError
from sealst._files import read_text
from sealst._text_table import read_text_table
from sealst._validate import listed

SOURCE, TARGET, WEIGHT = "source", "target", "weight"
#: all published gene sets together are a fifth of it
_MOST_BYTES = 1 << 28
_TABLES = (".csv", ".tsv")
_HOW = "Pass a DataFrame (source, target[, weight]), a dict of gene lists, or a .gmt, .csv or .tsv file."


def as_net(net: pd.DataFrame | Mapping[str, Sequence[str]] | str | Path) -> pd.DataFrame:
    """Gene sets in any accepted form, as checked edges.

    Parameters
    ----------
    net
        DataFrame with columns ``source`` (set), ``target`` (gene) and, where edges are weighted, ``weight``; a mapping
        of sets to genes; or a ``.gmt``, ``.csv`` or ``.tsv`` file, plain or with a further ``.gz``.

    Returns
    -------
    DataFrame (source, target, weight) in the order given. Genes are upper-cased, absent weights are 1. Edges that occur
    several times, also by case, are kept once when their weights agree.

    Raises
    ------
    DataError
        When the form is unknown, a file cannot be read, names are empty, weights are not finite numbers, a set has no
        weight other than 0, or an edge occurs twice with different weights.

    Examples
    --------
    >>> as_net({"luminal": ["Esr1", "ESR1", "GATA3"]})
        source target  weight
    0  luminal   ESR1     1.0
    1  luminal  GATA3     1.0
    """
    if isinstance(net, str | Path):
        frame = read_gene_sets(Path(net))
    elif isinstance(net, pd.DataFrame):
        frame = net
    elif isinstance(net, Mapping):
        if strings := [name for name, genes in net.items() if isinstance(genes, str)]:
            raise DataError(f"`net` must map each gene set to a list of genes; {strings[0]!r} maps to a string.")
        frame = pd.DataFrame([(s, g) for s, genes in net.items() for g in genes], columns=[SOURCE, TARGET])
    else:
        raise TypeError(f"`net` must hold gene sets, found {type(net).__name__}. {_HOW}")
    return _checked(frame)


def read_gene_sets(path: Path) -> pd.DataFrame:
    """Read the edges of a GMT, CSV or TSV file as they are; see `as_net` for the checks."""
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if path.suffix and not path.is_file():
        raise DataError(
            f"No file {str(path)!r} with gene sets (looked for {str(path.absolute())!r}). Check the path; a .gmt, .csv "
            "or .tsv file is needed."
        )
    if suffix != ".gmt" and suffix not in _TABLES:
        raise DataError(f"`net` is {str(path)!r}, neither a known resource nor a file of gene sets. {_HOW}")
    try:
        if suffix != ".gmt":
            # No cell means NaN: that text, or NA, may be a name.
            return read_text_table(path, dtype={SOURCE: str, TARGET: str}, keep_default_na=False)
        return _parse_gmt(path, list(io.StringIO(read_text(path, most=_MOST_BYTES), newline=None)))
    except OSError as error:
        raise DataError(f"{path} cannot be read as gene sets ({type(error).__name__}: {error}).") from error


def overlap(net: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """How much of every gene set is among the genes at hand.

    Parameters
    ----------
    net
        Edges from `as_net`.
    genes
        Names of the genes at hand, in any case.

    Returns
    -------
    DataFrame with one row per set, in the order of `net`: ``size`` (genes of the set) and ``found`` (of these, at
    hand), int64.
    """
    known = {str(g).upper() for g in genes}
    found = net[TARGET].isin(known).groupby(net[SOURCE], sort=False)
    return pd.DataFrame({"size": found.size(), "found": found.sum()}).astype(np.int64)


def restrict(net: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Edges whose gene is at hand, the gene spelled as there.

    Where names at hand differ only in case, the upper-case one is taken, else the first.
    """
    spelled: dict[str, str] = {}
    for gene in map(str, genes):
        if gene == gene.upper():
            spelled[gene] = gene
        else:
            spelled.setdefault(gene.upper(), gene)
    kept = net[net[TARGET].isin(spelled.keys())]
    return kept.assign(**{TARGET: kept[TARGET].map(spelled)}).reset_index(drop=True)


def _parse_gmt(path: Path, lines: Sequence[str]) -> pd.DataFrame:
    edges: list[tuple[str, str]] = []
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = (cell.strip() for cell in line.rstrip("\r\n").split("\t"))
        genes = [gene for gene in rest[1:] if gene]
        if not genes:
            raise DataError(
                f"{path}, line {number}: expected a name, a description and genes separated by tabs, found "
                f"{line.strip()[:60]!r}."
            )
        if name in first:
            raise DataError(f"{path}, line {number}: gene set {name!r} occurs twice, first in line {first[name]}.")
        first[name] = number
        edges += [(name, gene) for gene in genes]
    return pd.DataFrame(edges, columns=[SOURCE, TARGET])


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    """Edges without repetition, names in text and weights as numbers."""
    if missing := [name for name in (SOURCE, TARGET) if name not in frame.columns]:
        raise DataError(
            f"`net` has no column {listed(missing)}; found: {listed(frame.columns)}. Rename the columns of sets and "
            "genes, e.g. `net.rename(columns={'geneset': 'source', 'genesymbol': 'target'})`."
        )
    if frame.empty:
        raise DataError(f"`net` holds no gene sets. {_HOW}")
    out = {}
    for name in (SOURCE, TARGET):
        text = frame[name].astype(object)
        blank = text.isna() | (text.astype(str).str.strip() == "")
        if blank.any():
            raise DataError(
                f"`net` has {blank.sum()} empty value(s) in column {name!r} (first in row {int(np.argmax(blank))}). "
                f"Drop them: `net.dropna(subset=[{name!r}])`."
            )
        out[name] = text.astype(str).str.strip().to_numpy(dtype=object)
    out[TARGET] = np.array([gene.upper() for gene in out[TARGET]], dtype=object)
    out[WEIGHT] = np.ones(len(frame))
    if WEIGHT in frame.columns:
        out[WEIGHT] = pd.to_numeric(frame[WEIGHT], errors="coerce").to_numpy(dtype=float)
        if (bad := ~np.isfinite(out[WEIGHT])).any():
            first = int(np.argmax(bad))
            raise DataError(
                f"`net` has {bad.sum()} weight(s) that are not finite numbers, first "
                f"{str(frame[WEIGHT].iloc[first])!r} in row {first}. Correct them, or drop the column to weigh every "
                "gene alike."
            )
    unique = pd.DataFrame(out).drop_duplicates(ignore_index=True)
    if (twice := unique.duplicated([SOURCE, TARGET])).any():
        source, target = unique.loc[twice, [SOURCE, TARGET]].iloc[0]
        raise DataError(
            f"{twice.sum()} edge(s) of `net` occur with different weights, e.g. {target!r} in {source!r}. Keep one of "
            "each, e.g. `net.drop_duplicates(['source', 'target'])`; genes are matched in upper case."
        )
    zero = unique[WEIGHT].abs().groupby(unique[SOURCE], sort=False).max() == 0
    if zero.any():
        raise DataError(f"Every weight is 0 in gene set(s) {listed(zero.index[zero])}; drop them from `net`.")
    return unique
