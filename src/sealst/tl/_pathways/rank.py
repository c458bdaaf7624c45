"""Pathways that differ between regions, in the format of scanpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control

from sealst import _section
from sealst._core.scores.genes import replicate_test
from sealst._docs import documented
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data
from sealst._validate import check_choice, check_key, check_slot, listed

_REST, _ALL = "rest", "all"
#: columns of the result, in their order
_COLUMNS = ["group", "pathway", "score", "difference", "mean", "mean_reference", "pval", "pval_adj"]
_COLUMNS += ["n", "n_reference", "design"]
#: fields of scanpy's result, and the columns they hold
_FIELDS = {"names": "pathway", "scores": "score", "pvals": "pval", "pvals_adj": "pval_adj", "differences": "difference"}


@documented
def rank_pathways(
    data: Data,
    groupby: str,
    *,
    groups: str | Sequence[str] = _ALL,
    reference: str = _REST,
    method: str = "wilcoxon",
    replicate_key: str | None = None,
    key: str = Keys.PATHWAYS,
    key_added: str = Keys.PATHWAY_RANKS,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
) -> pd.DataFrame:
    """Rank pathways by how much their activity differs between groups of spots.

    Spots of one section are not independent: neighbours share tissue and counts, and a p-value over spots tests whether
    *these* spots differ, not whether the next patient's will. It falls with the number of spots, however few patients
    there are. Use it to rank. With sections of two or more patients, name their column with `replicate_key`: then the
    mean of every group and patient is one value, and the test counts patients.

    Parameters
    ----------
    data
        Section(s) with pathway scores, see `sealst.tl.pathways`; or their table alone. Tables of several sections are
        joined with `anndata.concat`.
    groupby
        Column of ``.obs`` with the groups, such as a pathologist's regions or clusters.
    groups
        Groups to rank pathways for; by default all with two or more spots.
    reference
        What a group is compared with: ``"rest"``, the spots of all other groups; or one of the groups.
    method
        Test over spots: ``"wilcoxon"`` (ties corrected), ``"t-test"`` or ``"t-test_overestim_var"``, as in
        `scanpy.tl.rank_genes_groups`. Not used with `replicate_key`.
    replicate_key
        Column of ``.obs`` whose values are independent, such as ``"patient"``. Where two or more replicates hold spots
        of both sides, the paired t-test of their differences (others are left out); where none holds both, Welch's
        t-test of the replicates' means.
    key
        DataFrame in ``.obsm``. Rows of NaN (spots without a crop) and spots without a group are left out.
    key_added
        Slot in ``.uns``.
    %(region)s
    %(table_key)s

    Returns
    -------
    DataFrame, one row per group and pathway, highest score of a group first: ``group``, ``pathway``, ``score`` (z- or
    t-value), ``difference`` (of the means, in the unit of the scores), ``mean``, ``mean_reference``, ``pval``,
    ``pval_adj`` (Benjamini-Hochberg over the pathways of a group), ``n`` and ``n_reference`` (spots, or replicates),
    ``design`` (``"spots"``, ``"paired"``, ``"unpaired"``). It also writes

    - ``.uns["seal_rank_pathways" | key_added]``: the same as `scanpy.tl.rank_genes_groups` writes it, so that
      `scanpy.get.rank_genes_groups_df` and `scanpy.pl.rank_genes_groups` read it with ``key=``. Their option
      `gene_symbols` and plots that draw expression look pathways up in ``.var_names``, where they are not.
      ``logfoldchanges`` are NaN: scores may be negative and have no fold; ``differences`` stands beside them

    Raises
    ------
    OrderError
        When there are no scores.
    MissingKeyError
        When a column is absent.
    DataError
        When `groupby` holds numbers, a group is unknown or too small, or there are too few replicates.

    Examples
    --------
    >>> sl.tl.pathways(sdata, "h.all.v2024.1.Hs.symbols.gmt")  # doctest: +SKIP
    >>> sl.tl.rank_pathways(sdata, "label", groups=["invasive cancer"])  # doctest: +SKIP
    >>> sc.get.rank_genes_groups_df(  # doctest: +SKIP
    ...     sdata.tables["table"], "invasive cancer", key="seal_rank_pathways"
    ... )
    """
    check_choice("method", method, ("wilcoxon", "t-test", "t-test_overestim_var"))
    check_slot(key_added)
    table = _section.get_table(data, table_key)
    rows = np.concatenate([one.rows for one in _section.regions_of(table, region)])
    if key not in table.obsm:
        raise OrderError(f"{key!r} not found in `.obsm`; found: {listed(table.obsm)}. Run `sl.tl.pathways` first.")
    frame = table.obsm[key]
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"`.obsm[{key!r}]` must be a DataFrame with named pathways, found {type(frame).__name__}.")
    for name in filter(None, (groupby, replicate_key)):
        check_key(table.obs.columns, name, where="`.obs`", hint="Name a column of `.obs`.")
    given = table.obs[groupby]
    # Single values of a measurement, such as a position, are no groups.
    if pd.api.types.is_numeric_dtype(given) and not pd.api.types.is_bool_dtype(given):
        name = f".obs[{groupby!r}]"
        raise DataError(
            f"`groupby` must name a column of groups; `{name}` holds numbers ({given.dtype}). If they are labels, "
            f'make them categories: `adata{name} = adata{name}.astype("category")`.'
        )
    used = np.isfinite(frame.to_numpy(dtype=float)).all(axis=1) & given.notna().to_numpy()
    if replicate_key is not None:
        used &= table.obs[replicate_key].notna().to_numpy()
    kept = rows[used[rows]]
    if len(kept) < len(rows):
        logger.info("%d of %d spots have a score and a group", len(kept), len(rows))
    obs = table.obs.iloc[kept]
    column = obs[groupby].astype("category").cat.remove_unused_categories().cat.rename_categories(str)
    replicates = None if replicate_key is None else obs[replicate_key].astype(str).to_numpy()
    scores = frame.iloc[kept].astype(float)
    wanted = _groups(column, groups, reference, groupby)
    if replicates is None:
        result = _over_spots(scores, column, wanted, reference=reference, method=method)
    else:
        result = _over_replicates(scores, column, wanted, reference=reference, replicates=replicates)
    params = {"groupby": groupby, "reference": reference, "use_raw": False, "layer": None, "key": key}
    params |= {"method": method if replicate_key is None else "t-test", "corr_method": "benjamini-hochberg"}
    # As `scanpy.tl.rank_genes_groups` stores it: records with one column per group.
    by_group = {name: result[result["group"] == name] for name in pd.unique(result["group"])}
    out: dict[str, Any] = {"params": params | {"replicate": replicate_key or ""}}
    for slot, name in _FIELDS.items():
        records = pd.DataFrame({group: ranked[name].to_numpy() for group, ranked in by_group.items()})
        out[slot] = records.to_records(index=False)
    empty = np.full(scores.shape[1], np.nan)
    out["logfoldchanges"] = pd.DataFrame(dict.fromkeys(by_group, empty)).to_records(index=False)
    table.uns[key_added] = out
    logger.info("Wrote .uns[%r]: %d pathways for %d group(s) of %r", key_added, scores.shape[1], len(wanted), groupby)
    return result


def _groups(column: pd.Series, groups: str | Sequence[str], reference: str, groupby: str) -> list[str]:
    sizes = column.value_counts()
    known = [str(name) for name in column.cat.categories]
    if len(known) < 2:
        raise DataError(f"`.obs[{groupby!r}]` has the group(s) {listed(known)} among scored spots; 2 are needed.")
    if reference != _REST and reference not in known:
        raise DataError(f"`reference` must be 'rest' or one of {listed(known, 20)}, found {reference!r}.")
    everything = isinstance(groups, str) and groups == _ALL
    wanted = known if everything else [groups] if isinstance(groups, str) else [str(g) for g in groups]
    wanted = [name for name in wanted if name != reference]
    if unknown := [name for name in wanted if name not in known]:
        raise DataError(f"`groups` names {listed(unknown)}; `.obs[{groupby!r}]` has {listed(known, 20)}.")
    small = [name for name in wanted if sizes[name] < 2]
    if small and everything:
        warn(f"Group(s) {listed(small)} of {groupby!r} have a single spot; they are not ranked.")
        wanted = [name for name in wanted if name not in small]
    elif small:
        raise DataError(f"Group(s) {listed(small)} of {groupby!r} have a single scored spot; at least 2 are needed.")
    if not wanted:
        raise DataError(f"`groups` names nothing to compare with {reference!r}.")
    if reference != _REST and sizes[reference] < 2:
        raise DataError(f"The reference {reference!r} has a single scored spot; at least 2 are needed.")
    return wanted


def _sides(column: pd.Series, group: str, reference: str) -> tuple[np.ndarray, np.ndarray]:
    inside = (column == group).to_numpy()
    return inside, ~inside if reference == _REST else (column == reference).to_numpy()


def _over_spots(
    scores: pd.DataFrame, column: pd.Series, wanted: list[str], *, reference: str, method: str
) -> pd.DataFrame:
    import scanpy as sc

    # Names of spots need not be unique, and scanpy needs none.
    names = pd.RangeIndex(len(scores)).astype(str)
    view = AnnData(
        scores.to_numpy(),
        obs=pd.DataFrame({"group": column.to_numpy()}, index=names),
        var=pd.DataFrame(index=scores.columns.astype(str)),
    )
    options: dict[str, Any] = {"tie_correct": True} if method == "wilcoxon" else {}
    # Its fold changes take scores for log counts; they are not used.
    with np.errstate(all="ignore"):
        sc.tl.rank_genes_groups(
            view, "group", groups=wanted, reference=reference, method=method, use_raw=False, **options
        )
    parts = []
    for name in wanted:
        found = sc.get.rank_genes_groups_df(view, name).set_index("names")
        inside, other = _sides(column, name, reference)
        frame = pd.DataFrame({"mean": scores[inside].mean(), "mean_reference": scores[other].mean()})
        frame.index = frame.index.astype(str)
        frame = frame.loc[found.index].assign(score=found["scores"], pval=found["pvals"], pval_adj=found["pvals_adj"])
        parts.append(frame.assign(group=name, n=int(inside.sum()), n_reference=int(other.sum()), design="spots"))
    return _tidy(parts)


def _over_replicates(
    scores: pd.DataFrame, column: pd.Series, wanted: list[str], *, reference: str, replicates: np.ndarray
) -> pd.DataFrame:
    parts = []
    for name in wanted:
        a, b = _sides(column, name, reference)
        test = replicate_test(scores[a], scores[b], of_group=replicates[a], of_reference=replicates[b], name=name)
        frame = pd.DataFrame({"score": test.score, "pval": test.pval}, index=scores.columns.astype(str))
        frame = frame.assign(pval_adj=false_discovery_control(test.pval), mean=test.means[0])
        frame = frame.assign(mean_reference=test.means[1], group=name, n=test.n[0], n_reference=test.n[1])
        parts.append(frame.assign(design=test.design).sort_values("score", ascending=False, kind="stable"))
        logger.info("%s: %s t-test over %d and %d replicates", name, test.design, *test.n)
    return _tidy(parts)


def _tidy(parts: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(parts).rename_axis("pathway").reset_index()
    return frame.assign(difference=frame["mean"] - frame["mean_reference"])[_COLUMNS]
