"""One name per gene, the same in every section."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from spatialdata import SpatialData

from sealst import _section
from sealst._core.genes.names import (
    GeneTable,
    Resolved,
    ensembl_id,
    final_names,
    human_like,
    human_table,
    load_table,
    mouse_like,
    resolve,
)
from sealst._docs import documented
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, with_table
from sealst._validate import check_choice, listed

_STEP = "harmonize_genes"
# A few odd spellings are odd spellings; from this share on they are genes of another species.
_OTHER_SPECIES = 0.1


@dataclass(frozen=True)
class _Plan:
    """What becomes of the columns of a table."""

    found: list[Resolved]
    #: columns to keep: the first of every gene, in the order of the table
    first: np.ndarray
    #: names, earlier names and Ensembl ids of the kept columns
    names: list[str]
    originals: list[str]
    ensembl: list[str]
    #: (columns, genes), 1 where a column belongs to a gene; None where no columns are summed
    sums: sp.csr_matrix | None
    #: columns under an earlier name or alias of a gene that is measured beside them
    kept: list[str]
    dropped: list[str]


@documented
def harmonize_genes(
    data: Data,
    *,
    gene_table: pd.DataFrame | str | os.PathLike[str] | None = None,
    species: str = "human",
    to: Literal["symbol", "ensembl"] = "symbol",
    drop_controls: bool = True,
    sum_aliases: bool = False,
    table_key: str = Keys.TABLE,
    copy: bool = False,
) -> Data | None:
    """Give every gene its current name, so that sections of different sources match; run before `sl.pp.normalize`.

    Ensembl ids lose their version and become symbols; earlier symbols (``MARCH1``) and aliases become the current
    symbol (``MARCHF1``); other spellings (``Epcam``) become that of the table; symbols that a spreadsheet turned into
    dates (``2-Sep``) are restored where one gene is left that they can stand for. Ensembl ids in ``.var["gene_ids"]``
    or ``.var["ensembl"]`` decide for names that are not current symbols.

    Nothing is guessed: a name that stands for several genes stays as it is. Columns that are surely one gene (an equal
    name, Ensembl ids of one symbol) are summed. Two columns that are one gene only by an earlier name, an alias or a
    spelling stay apart, under their old names, unless `sum_aliases`.

    Parameters
    ----------
    data
        SpatialData, or the AnnData of its table, with raw counts.
    gene_table
        What genes are called: a DataFrame, or the path of a TSV or CSV file, with the columns ``symbol``, ``ensembl``,
        ``previous`` and ``aliases`` (several values joined by ``|``); HGNC's complete set works as it is. Default for
        human: approved and previous symbols of HGNC (CC0) in the package, without aliases. Other species have none;
        without a table control probes are dropped, Ensembl versions cut and duplicates summed.
    species
        ``"human"``, ``"mouse"`` or another; for these two the spelling of the names is checked.
    to
        ``"symbol"``, or ``"ensembl"`` to name genes by Ensembl id where one is known.
    drop_controls
        Whether to drop control probes and other features that are not genes.
    sum_aliases
        Whether to sum columns that are one gene by an earlier name, an alias or a spelling.
    %(table_key)s
    copy
        Whether to return a copy of `data` with the new names, and leave it as it is.

    Returns
    -------
    None, or with `copy` a copy of `data`. Changes ``.var_names``, ``.X`` and all layers, and writes

    - ``.var["gene_original"]``: str, the names before; those of summed columns joined by ``;``
    - ``.var["ensembl"]``: str, Ensembl id without version, ``""`` where unknown
    - ``.uns["sealst"]["harmonize_genes"]``: parameters and how many names were understood how

    In a SpatialData the table is replaced by a new one.

    Raises
    ------
    OrderError
        When `sl.pp.normalize` already ran: log-normalised layers cannot be summed.
    DataError
        When names are empty or spelled as those of another species, the table cannot be used, columns of a layer that
        does not hold counts would be summed, or no gene is left.

    References
    ----------
    Default table: HUGO Gene Nomenclature Committee, genenames.org, CC0 1.0.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600, n_genes=144)
    >>> sl.pp.harmonize_genes(sdata)
    >>> sl.pp.harmonize_genes(sdata, gene_table="hgnc_complete_set.txt", to="ensembl")  # doctest: +SKIP
    """
    check_choice("to", to, ("symbol", "ensembl"))
    counts = _section.get_table(data, table_key)
    layers = [key for key in (Keys.LOGNORM, Keys.CONTEXT) if key in counts.layers]
    if layers:
        deleted = ", ".join(f"table.layers[{key!r}]" for key in layers)
        raise OrderError(
            f"`sl.pp.normalize` already ran on this table: its layers {listed(layers)} cannot be summed. Delete them "
            f"(`del {deleted}`), harmonise, and normalise again."
        )
    names = [str(name).strip() for name in counts.var_names]
    if empty := [i for i, name in enumerate(names) if not name or name.lower() == "nan"]:
        raise DataError(
            f"{len(empty)} empty gene names in `table.var_names` (first at column {empty[0]}). Name or drop these "
            "columns, e.g. `adata = adata[:, adata.var_names != '']`."
        )
    known = load_table(gene_table) if gene_table is not None else human_table() if species == "human" else None
    fold_case = _check_species(names, species)
    _check_table(names, known, species, to)
    # Ensembl ids that the table gives beside the names.
    ids = [""] * counts.n_vars
    for column in (Keys.ENSEMBL, "gene_ids"):
        if column in counts.var:
            values = counts.var[column].astype(object).where(counts.var[column].notna(), "")
            ids = [one or ensembl_id(str(value)) for one, value in zip(ids, values, strict=True)]
    plan = _plan(names, ids, known, to=to, drop=drop_controls, sum_aliases=sum_aliases, fold=fold_case)
    # X (under None) and every layer, with the columns of a gene summed.
    sources: dict[str | None, Any] = {key: counts.layers[key] for key in _section.layer_names(counts)}
    if counts.X is not None:
        sources[None] = counts.X
    matrices = {
        key: _sum_columns(values, plan, "`.X`" if key is None else f"layer {key!r}") for key, values in sources.items()
    }
    entry = _entry(plan, len(names), {"species": species, "to": to, "table": "none" if known is None else known.source})
    _report(plan, entry)
    target = counts
    with warnings.catch_warnings():
        # Names that occur twice are what this call mends.
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        if copy or isinstance(data, SpatialData):
            target = counts[:, plan.first].copy()
        else:
            target._inplace_subset_var(plan.first)
    for key, values in matrices.items():
        if key is None:
            target.X = values
        else:
            target.layers[key] = values
    target.var_names = pd.Index(plan.names, dtype=object, name=counts.var_names.name)
    target.var[Keys.GENE_ORIGINAL] = plan.originals
    target.var[Keys.ENSEMBL] = plan.ensembl
    _section.record(target, _STEP, entry)
    if copy:
        return with_table(data, table_key, target)
    if isinstance(data, SpatialData):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The key .* already exists")
            data.tables[table_key] = target
    return None


def _check_species(names: Sequence[str], species: str) -> bool:
    """Refuse names of another species; whether other spellings may be taken for the table's."""
    others = {"human": ("mouse", mouse_like), "mouse": ("human", human_like)}
    if species not in others:
        return True
    other, like = others[species]
    if not len(names):
        raise DataError("The table has no genes (tiles of a slide have none), so there are no names to bring together.")
    examples = like(names)
    share = len(examples) / len(names)
    if share > 0.5:
        raise DataError(
            f"{share:.0%} of the gene names are spelled like those of {other} (e.g. {listed(examples, 3)}), but "
            f"`species={species!r}`. Pass `species={other!r}`; if they are {species}, respell them first, e.g. "
            f"`table.var_names = table.var_names.str.{'upper' if species == 'human' else 'capitalize'}()`."
        )
    if share > _OTHER_SPECIES:
        warn(
            f"{share:.0%} of the gene names are spelled like those of {other} (e.g. {listed(examples, 3)}): two "
            "species in one table? Their spelling is left as it is."
        )
        return False
    return True


def _check_table(names: Sequence[str], known: GeneTable | None, species: str, to: str) -> None:
    if known is not None:
        return
    n_ids = sum(bool(ensembl_id(name)) for name in names)
    if to == "ensembl" and n_ids < len(names) / 2:
        raise DataError(
            f"Symbols of {species!r} become Ensembl ids only with a table: pass `table=` (a DataFrame, or a TSV or CSV "
            "file, with the columns 'symbol' and 'ensembl')."
        )
    if to == "symbol" and n_ids > len(names) / 2:
        raise DataError(
            f"The names are Ensembl ids; those of {species!r} become symbols only with a table: pass `table=` (a "
            "DataFrame, or a TSV or CSV file, with the columns 'symbol' and 'ensembl'), or set `to='ensembl'`."
        )


def _plan(
    names: list[str],
    ids: list[str],
    known: GeneTable | None,
    *,
    to: str,
    drop: bool,
    sum_aliases: bool,
    fold: bool,
) -> _Plan:
    found = resolve(names, known, ids=ids, fold_case=fold)
    used = np.array([not (drop and one.kind == "control") for one in found], dtype=bool)
    if not used.any():
        raise DataError(f"All {len(names)} columns are control probes (e.g. {listed(names, 3)}); no gene is left.")
    new, kept = final_names(found, names, sum_aliases=sum_aliases)
    codes, symbols = pd.factorize(new[used])
    columns = np.flatnonzero(used)
    first = columns[np.unique(codes, return_index=True)[1]]
    members: list[list[int]] = [[] for _ in symbols]
    for column, code in zip(columns, codes, strict=True):
        members[code].append(int(column))
    ensembl = [_ensembl_of(found, group, known) if not kept[group[0]] else found[group[0]].ensembl for group in members]
    final = list(symbols)
    if to == "ensembl":
        # A symbol stays where its id is unknown or another gene's too.
        times = Counter(ensembl)
        final = [i if i and times[i] == 1 else symbol for symbol, i in zip(symbols, ensembl, strict=True)]
    sums = None
    if len(columns) > len(symbols):
        sums = sp.csr_matrix((np.ones(len(columns)), (columns, codes)), shape=(len(names), len(symbols)))
    return _Plan(
        found=found,
        first=first,
        names=final,
        originals=[";".join(dict.fromkeys(names[i] for i in group)) for group in members],
        ensembl=ensembl,
        sums=sums,
        kept=[names[i] for i in np.flatnonzero(kept & used)],
        dropped=[names[i] for i in np.flatnonzero(~used)],
    )


def _ensembl_of(found: Sequence[Resolved], group: Sequence[int], known: GeneTable | None) -> str:
    """Ensembl id of a gene: the table's main one where the data give none or several."""
    given = {found[i].ensembl for i in group} - {""}
    if len(given) == 1:
        return given.pop()
    ids = () if known is None else known.ensembl.get(found[group[0]].symbol, ())
    return ids[0] if ids else min(given, default="")


def _sum_columns(values: Any, plan: _Plan, where: str) -> Any:
    if plan.sums is None:
        return values[:, plan.first]
    stored = values.data if sp.issparse(values) else np.asarray(values)
    if stored.size and not (np.isfinite(stored).all() and (stored == np.round(stored)).all()):
        double = [name for name in plan.originals if ";" in name] or plan.names
        raise DataError(
            f"Columns of {where} would be summed (e.g. {listed(double, 3)}), but it does not hold counts: values are "
            "not whole numbers. Delete the layer, or harmonise the raw counts."
        )
    summed = values @ plan.sums
    # Sums outgrow small integers.
    dtype = np.result_type(values.dtype, np.float32 if np.issubdtype(values.dtype, np.floating) else np.int64)
    return sp.csr_matrix(summed).astype(dtype) if sp.issparse(values) else np.asarray(summed, dtype=dtype)


def _entry(plan: _Plan, n_before: int, facts: dict[str, str]) -> dict[str, Any]:
    kinds = Counter(one.kind for one in plan.found)
    unclear = {
        kind: [one.symbol for one in plan.found if one.kind == kind] for kind in ("ambiguous", "mangled", "unknown")
    }
    return {
        **facts,
        "n_before": n_before,
        "n_after": len(plan.names),
        "n_summed": n_before - len(plan.dropped) - len(plan.names),
        "n_dropped": len(plan.dropped),
        "n_without_ensembl": sum(not one for one in plan.ensembl),
        **{f"n_{kind}": kinds[kind] for kind in ("current", "ensembl", "case", "previous", "alias", "excel")},
        **{f"n_{kind}": kinds[kind] for kind in ("ambiguous", "mangled", "unknown")},
        **{kind: np.array(names[:100], dtype=object) for kind, names in unclear.items() if names},
        "n_kept_apart": len(plan.kept),
        **({"kept_apart": np.array(plan.kept[:100], dtype=object)} if plan.kept else {}),
    }


def _report(plan: _Plan, entry: dict[str, Any]) -> None:
    if plan.kept:
        warn(
            f"{len(plan.kept)} column(s) keep their old name, because their gene is measured beside them (e.g. "
            f"{listed(plan.kept, 5)}). `sum_aliases=True` sums them."
        )
    if entry["n_mangled"]:
        warn(
            f"{entry['n_mangled']} name(s) are dates or numbers, as a spreadsheet leaves them, and stay so (e.g. "
            f"{listed(entry['mangled'], 5)}). Read the names from the original file."
        )
    logger.info(
        "%d columns, now %d genes named by %s: %d current, %d by Ensembl id, %d earlier symbols, %d aliases, %d other "
        "spellings, %d dates restored; %d summed, %d control probes dropped; %d ambiguous and %d unknown names kept.",
        entry["n_before"], entry["n_after"], entry["to"], entry["n_current"], entry["n_ensembl"], entry["n_previous"],
        entry["n_alias"], entry["n_case"], entry["n_excel"], entry["n_summed"], entry["n_dropped"],
        entry["n_ambiguous"], entry["n_unknown"],
    )  # fmt: skip
