"""Pathway activity on predicted or measured expression, by decoupler's methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sealst import _section
from sealst._core.genes.asked import check_named
from sealst._core.genes.sets import as_net, overlap, restrict
from sealst._core.scores.reliability import BETTER
from sealst._docs import documented
from sealst._errors import DataError, OrderError, PanelError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, for_writing
from sealst._validate import as_columns, check_choice, check_gene_names, check_positive, check_slot, listed

Net: TypeAlias = pd.DataFrame | Mapping[str, Sequence[str]] | str | Path

#: gene sets that decoupler downloads
RESOURCES = ("collectri", "dorothea", "hallmark", "progeny")
#: fewest genes of a set by which it can be told
TMIN = 5
_PREDICTED, _MEASURED = "predicted", "measured"
# Values per block of spots: 128 MB of float64, of which a method makes a few copies.
_BLOCK = 2**24
#: methods that look at all spots together, so that they cannot run block by block
_ACROSS_SPOTS = ("gsva",)


@dataclass(frozen=True)
class PathwayResult:
    """Scores of gene sets and how they came about."""

    #: one row per spot (NaN without expression), one column per scored set
    scores: pd.DataFrame
    #: p-values adjusted over the sets of a spot (Benjamini-Hochberg), shaped as `scores`; None for methods without
    padj: pd.DataFrame | None
    #: per set of the net: ``size`` (genes), ``found`` (of these, at hand), ``scored`` (bool)
    overlap: pd.DataFrame
    #: method, tmin, number of genes, name of the net
    facts: dict[str, Any]


@documented
def pathways(
    data: Data,
    net: Net,
    *,
    source: str = _PREDICTED,
    method: str = "ulm",
    expression_key: str = Keys.EXPRESSION,
    layer: str = Keys.LOGNORM,
    tmin: int = TMIN,
    key_added: str | None = None,
    table_key: str = Keys.TABLE,
    copy: bool = False,
    verbose: bool = False,
) -> Data | None:
    """Score pathway activity on predicted or measured expression.

    Runs a method of decoupler on every spot that has expression. Genes match by upper-cased symbol. How many genes of
    each set are at hand is measured, reported and stored, because a panel covers a pathway only in part. As in
    decoupler, genes that are 0 in every spot count as absent.

    Parameters
    ----------
    data
        Section(s), or a table alone.
    net
        Gene sets: a DataFrame with columns ``source`` (set), ``target`` (gene) and optionally ``weight``; a mapping of
        sets to genes; a ``.gmt``, ``.csv`` or ``.tsv`` file (also ``.gz``); or ``"hallmark"``, ``"progeny"``,
        ``"collectri"``, ``"dorothea"``, which decoupler downloads (human, academic licence). Edges listed twice count
        once.
    source
        ``"predicted"`` reads `expression_key`, ``"measured"`` reads `layer`.
    method
        decoupler method: ``"ulm"``, ``"mlm"``, ``"waggr"``, ``"zscore"``, ``"aucell"``, …; see `decoupler.mt.show`.
    expression_key
        ``.obsm`` slot of `sealst.tl.predict`.
    layer
        Layer of `sealst.pp.normalize`.
    tmin
        Smallest number of a set's genes that must be at hand; smaller sets are left out and named.
    key_added
        Slot in ``.obsm``; default ``"seal_pathways"`` for predicted, ``"measured_pathways"`` for measured expression,
        and ``<expression_key>_pathways`` for predictions in another slot than ``"seal_expression"``.
    %(table_key)s
    copy
        Whether to return a copy of `data` with the result, in place of writing to it.
    verbose
        Whether decoupler reports its steps.

    Returns
    -------
    None, or with ``copy=True`` a copy of `data`; in the table

    - ``.obsm["seal_pathways" | key_added]``: DataFrame (n_obs, sets), float64, in the method's unit (t-values for
      ``"ulm"``); NaN for spots without a prediction, without counts, or with the same value in every gene
    - ``.obsm[key_added + "_padj"]``: DataFrame of the same shape, only for methods that test; p-values adjusted over
      the sets of a spot, as decoupler does. They take genes as independent, which co-expressed genes are not, least of
      all predicted ones: compare them between spots, do not read them as error rates
    - ``.uns["sealst"]["pathways"][key]``: method, source, and for every gene set its name (``set``), ``size``, genes at
      hand (``found``) and whether it was ``scored``

    Raises
    ------
    OrderError
        When there is no expression yet.
    PanelError
        When no set has `tmin` genes at hand, or the genes of the expression have no names.
    DataError
        When `net` is not usable, a download fails, or the method is unknown.

    References
    ----------
    Badia-i-Mompel et al., *decoupleR*, Bioinformatics Advances 2, vbac016 (2022).

    Examples
    --------
    >>> sl.tl.predict(sdata, model)  # doctest: +SKIP
    >>> sl.tl.pathways(sdata, "h.all.v2024.1.Hs.symbols.gmt")  # doctest: +SKIP
    """
    check_choice("source", source, (_PREDICTED, _MEASURED))
    if key_added is not None:
        check_slot(key_added)
    _check_options(method, tmin)
    table = _section.get_table(data, table_key)
    predicted = source == _PREDICTED
    slot = expression_key if predicted else layer
    if not predicted:
        x, genes = _section.lognorm(table, slot), table.var_names
    elif slot not in table.obsm:
        raise OrderError(
            f"No predicted expression: {slot!r} not found in `.obsm`; found: {listed(table.obsm)}. Run "
            "`sl.tl.predict(sdata, model)` first, or score the measured expression with `source='measured'`."
        )
    elif not isinstance(frame := table.obsm[slot], pd.DataFrame):
        raise DataError(f"`.obsm[{slot!r}]` must be a DataFrame with named genes, found {type(frame).__name__}.")
    else:
        x, genes = frame.to_numpy(), _section.predicted_genes(table, slot)
    known = _section.reliability_of(table, slot) if predicted else None
    trusted = None if known is None else list(genes[known[BETTER].to_numpy()])
    options: dict[str, Any] = {"net": net, "method": method, "tmin": tmin, "verbose": verbose, "believed": trusted}
    result = _score(x, table.obs_names, genes, **options)
    given, target = for_writing(data, table_key, copy=copy)
    key = key_added or (Keys.pathways(slot) if predicted else Keys.related(_MEASURED, "pathways"))
    write_pathways(target, key, result, source=source, slot=slot)
    return given if copy else None


def score_sets(
    expression: pd.DataFrame,
    net: Net | ReadNet,
    *,
    method: str = "ulm",
    tmin: int = TMIN,
    verbose: bool = False,
    present: np.ndarray | None = None,
    believed: Sequence[str] | None = None,
) -> PathwayResult:
    """Score gene sets on an expression table (spots, genes); rows of NaN stay NaN. Arguments as in `pathways`.

    `present` (bool, one per gene) says which genes have any expression, where the table is a part of a larger one.
    `believed` are the genes that are predicted better than chance; sets with few of them are named.
    """
    _check_options(method, tmin)
    x, genes = expression.to_numpy(), expression.columns
    options: dict[str, Any] = {"net": net, "method": method, "tmin": tmin, "verbose": verbose, "believed": believed}
    return _score(x, expression.index, genes, **options, expressed=present)


def pathways_entry(result: PathwayResult, *, source: str, slot: str) -> dict[str, Any]:
    """Provenance of scores."""
    seen = result.overlap
    entry = result.facts | {"source": source, "slot": slot, "set": seen.index.to_numpy(dtype=str)}
    return entry | {name: seen[name].to_numpy() for name in seen}


def write_pathways(
    table: AnnData, key: str, result: PathwayResult, *, source: str, slot: str = Keys.EXPRESSION
) -> None:
    """Write scores, adjusted p-values where there are any, and provenance."""
    entry = pathways_entry(result, source=source, slot=slot)
    # What an earlier method tested does not belong to these scores.
    table.obsm.pop(Keys.related(key, "padj"), None)
    table.obsm[key] = result.scores
    if result.padj is not None:
        table.obsm[Keys.related(key, "padj")] = result.padj
    _section.record_slot(table, "pathways", key, entry)
    logger.info("Wrote .obsm[%r]: %d gene sets by %s", key, result.scores.shape[1], result.facts["method"])


def _check_options(method: str, tmin: int) -> None:
    import decoupler as dc

    check_choice("method", method, sorted(dc.mt.show()["name"]))
    check_positive("tmin", tmin)


def _score(
    x: Any,
    spots: pd.Index,
    genes: pd.Index,
    *,
    net: Net | ReadNet,
    method: str,
    tmin: int,
    verbose: bool,
    believed: Sequence[str] | None = None,
    expressed: np.ndarray | None = None,
) -> PathwayResult:
    check_gene_names(list(genes), where="the expression")
    check_named(genes)
    edges, label = read_net(net)
    rows = _informative(x)
    if not rows.size:
        raise DataError(f"No spot has expression to score: all {len(spots)} rows are NaN or hold one value only.")
    if expressed is None:
        expressed = np.asarray(abs(x[rows]).sum(axis=0)).ravel() > 0
    present = np.flatnonzero(expressed)
    names = genes[present].astype(str)
    found = overlap(edges, names)
    # A set of every gene, weighted alike, leaves nothing to compare with: its score is 0 / 0.
    whole = (found["found"] >= len(names)) & (edges.groupby("source", sort=False)["weight"].nunique() == 1)
    seen = found.assign(scored=(found["found"] >= tmin) & ~whole)
    counts = seen["found"].astype(str) + " of " + seen["size"].astype(str)
    if not seen["scored"].any():
        best = seen["found"].idxmax()
        raise PanelError(
            f"None of the {len(seen)} gene sets can be scored: at least {tmin} genes of a set (and not all genes) must "
            f"be among the {len(names)} at hand; the most are {counts[best]} in {best!r}. The names at hand begin "
            f"{listed(names[:3])}; sets need symbols too. Lower `tmin`, or predict more genes."
        )
    share = 100 * (seen["found"] / seen["size"])[seen["scored"]]
    logger.info(
        "%s: %d of %d gene sets scored on %d genes; of a set's genes at hand: median %.0f %%, least %.0f %% (%s, %s)",
        *(label, len(share), len(seen), len(names)),
        *(share.median(), share.min(), share.idxmin(), counts[share.idxmin()]),
    )
    if len(left := seen.index[~seen["scored"]]):
        warn(
            f"{len(left)} of {len(seen)} gene sets are left out, with fewer than {tmin} genes at hand (or with all): "
            f"{listed(f'{name} ({counts[name]})' for name in left)}."
        )
    if believed is not None:
        _warn_of_sets(edges, seen, names[names.isin(believed)], tmin)
    wanted = restrict(edges, names)
    wanted = wanted[wanted["source"].isin(seen.index[seen["scored"]])]
    scores, padj = _run(x, rows, present, spots=spots, names=names, net=wanted, method=method, verbose=verbose)
    facts = {"net": label, "method": method, "tmin": int(tmin), "n_genes": len(names)}
    facts |= {"decoupler": version("decoupler")}
    return PathwayResult(scores, padj, seen, facts)


def _warn_of_sets(edges: pd.DataFrame, seen: pd.DataFrame, believed: Sequence[str], tmin: int) -> None:
    """Name scored sets that stand on fewer genes than the least that a set needs, of those that are predictable."""
    counts = overlap(edges, believed)["found"]
    scored = seen.index[seen["scored"]]
    if weak := [f"{name} ({counts[name]} of {seen['found'][name]})" for name in scored if counts[name] < tmin]:
        warn(
            f"{len(weak)} of {len(scored)} gene sets have fewer than {tmin} genes that are predicted better than "
            f"chance where they were held out, so their scores may be anything: {listed(weak)}. See "
            "`model.reliability`."
        )


def gene_set_edges(net: Any) -> pd.DataFrame:
    """Gene sets in any form that `pathways` takes, as edges (source, target, weight)."""
    return read_net(net).edges


class ReadNet(NamedTuple):
    """Gene sets that were read already, and what they are called in provenance."""

    edges: pd.DataFrame
    label: str


def read_net(net: Net | ReadNet) -> ReadNet:
    """Read gene sets, for callers that find out before long work whether they can be had; what was read stays so."""
    if isinstance(net, ReadNet):
        return net
    if isinstance(net, str) and net in RESOURCES:
        import decoupler as dc

        try:
            edges = getattr(dc.op, net)()
        except (OSError, AssertionError, LookupError, ValueError) as error:
            what = (str(error).splitlines() or [""])[0][:200]
            raise DataError(
                f"decoupler could not download the gene sets {net!r} ({type(error).__name__}: {what}). Is this machine "
                "offline? Pass a GMT file (e.g. from gsea-msigdb.org) or a DataFrame (source, target[, weight]) "
                f"instead; `decoupler.op.{net}().to_csv(...)` on another machine makes one."
            ) from error
        return ReadNet(_storable(as_net(edges)), net)
    label = str(net) if isinstance(net, str | Path) else type(net).__name__
    try:
        return ReadNet(_storable(as_net(net)), label)
    except DataError as error:
        if isinstance(net, str) and not Path(net).suffix:
            raise DataError(f"{error} Resources known by name: {listed(RESOURCES)}.") from error
        raise


def _storable(edges: pd.DataFrame) -> pd.DataFrame:
    """Edges whose sets have names that may be columns on disk."""
    names = list(edges["source"].unique())
    return edges.assign(source=edges["source"].map(dict(zip(names, as_columns(names, what="Gene sets"), strict=True))))


def _informative(x: Any) -> np.ndarray:
    """Rows that can be scored: no NaN, more than one value."""
    if sp.issparse(x):
        x = x.tocsr()
        if not np.isfinite(x.data).all():
            raise DataError("The expression holds NaN or infinite values. Run `sl.pp.normalize(sdata)` again.")
        return np.flatnonzero(x.max(axis=1).toarray().ravel() > x.min(axis=1).toarray().ravel())
    finite = np.isfinite(x)
    partly = finite.any(axis=1) & ~finite.all(axis=1)
    if partly.any():
        raise DataError(
            f"{partly.sum()} row(s) of the expression are NaN in some genes only; rows must be complete, or NaN as a "
            "whole (spots without a crop)."
        )
    rows = np.flatnonzero(finite.all(axis=1))
    return rows[x[rows].max(axis=1) > x[rows].min(axis=1)]


def _run(
    x: Any,
    rows: np.ndarray,
    present: np.ndarray,
    *,
    spots: pd.Index,
    names: pd.Index,
    net: pd.DataFrame,
    method: str,
    verbose: bool,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    import decoupler as dc

    # Rows and genes without values are left out already; decoupler would do so block by block.
    run = partial(getattr(dc.mt, method), net=net, tmin=1, empty=False, verbose=verbose)
    step = len(rows) if method in _ACROSS_SPOTS else max(1, _BLOCK // len(present))
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    results = []
    for block in blocks:
        part = x[block].toarray() if sp.issparse(x) else x[block]
        try:
            results.append(run(pd.DataFrame(part[:, present], index=spots[block], columns=names)))
        except ImportError as error:
            raise DataError(
                f"decoupler's {method!r} needs a package that is not installed ({str(error).splitlines()[0]} "
                "`pip install 'decoupler[full]'`). Or choose another method, such as 'ulm'."
            ) from error
        except (AssertionError, ValueError, np.linalg.LinAlgError) as error:
            raise DataError(
                f"decoupler's {method!r} cannot score these {net['source'].nunique()} gene sets on {len(names)} genes "
                f"({type(error).__name__}: {error}). Drop redundant sets, or use `method='ulm'`, which takes each set "
                "by itself."
            ) from error
    padj = None if results[0][1] is None else _placed([p for _, p in results], rows, spots)
    return _placed([score for score, _ in results], rows, spots), padj


def _placed(blocks: list[pd.DataFrame], rows: np.ndarray, spots: pd.Index) -> pd.DataFrame:
    """Blocks of scored rows among all spots, by position: names of spots need not be unique."""
    values = np.full((len(spots), blocks[0].shape[1]), np.nan)
    values[rows] = np.concatenate([block.to_numpy() for block in blocks])
    return pd.DataFrame(values, index=spots, columns=pd.Index(blocks[0].columns.astype(str)))
