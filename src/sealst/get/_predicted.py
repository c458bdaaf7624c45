"""Predicted values as an AnnData, where other packages look for values: in ``.X``."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel

from sealst import _section
from sealst._docs import documented
from sealst._keys import Keys
from sealst._section import Data


@documented
def expression(
    data: Data,
    *,
    key: str = Keys.EXPRESSION,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
) -> AnnData:
    """Predicted expression as an AnnData, for scanpy, squidpy, decoupler and cellxgene.

    Other packages colour by ``.X`` or a layer, and in the table of a section these hold measured counts:
    ``sc.pl.umap(table, color="ERBB2")`` draws what was measured. What this returns holds what was predicted.

    Parameters
    ----------
    data
        Section(s) with predictions, see `sealst.tl.predict`; or their table alone. It is left as it is.
    key
        Slot in ``.obsm`` that `sealst.tl.predict` wrote.
    %(region)s
    %(table_key)s

    Returns
    -------
    AnnData with the rows of the table, and

    - ``.X``: float32 (n_obs, genes), as in the slot, log1p-CP10k; NaN for spots without a crop
    - ``.var_names``: the genes of the slot, in its order, called as in the model
    - ``.obs``, ``.obsm`` (but for the slot itself) and ``.obsp``: those of the table
    - ``.uns``: that of the table, with what made the prediction in ``["sealst"]["predict"][key]`` and the name of the
      slot in ``["sealst"]["get"]``

    Raises
    ------
    OrderError
        When nothing was predicted into that slot.

    Examples
    --------
    >>> import scanpy as sc
    >>> predicted = sl.get.expression(sdata)  # doctest: +SKIP
    >>> sc.pl.embedding(predicted, basis="spatial", color="ERBB2")  # doctest: +SKIP
    """
    table = _section.get_table(data, table_key)
    frame = _section.stored_frame(table, key, "sl.tl.predict(sdata, model)")
    return _as_anndata(table, frame, key, region, var=pd.DataFrame(index=_section.predicted_genes(table, key)))


@documented
def pathways(
    data: Data,
    *,
    key: str = Keys.PATHWAYS,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
) -> AnnData:
    """Pathway scores as an AnnData, for scanpy and squidpy.

    Parameters
    ----------
    data
        Section(s) with scores, see `sealst.tl.pathways`; or their table alone. It is left as it is.
    key
        Slot in ``.obsm`` that `sealst.tl.pathways`, or `sealst.tl.predict` with ``net=``, wrote.
    %(region)s
    %(table_key)s

    Returns
    -------
    AnnData with the rows of the table, and

    - ``.X``: float64 (n_obs, sets), as in the slot, in the method's unit; NaN for spots without a score
    - ``.var_names``: the gene sets of the slot, in its order; ``.var["size"]`` and ``.var["found"]``: int, genes of the
      set and how many of them were at hand
    - ``.layers["padj"]``: float64 (n_obs, sets), adjusted p-values, for methods that test
    - ``.obs``, ``.obsm`` (but for the slot itself), ``.obsp`` and ``.uns``: those of the table, with the name of the
      slot in ``.uns["sealst"]["get"]``

    Raises
    ------
    OrderError
        When there are no scores in that slot.

    Examples
    --------
    >>> import scanpy as sc
    >>> scores = sl.get.pathways(sdata)  # doctest: +SKIP
    >>> sc.pl.embedding(scores, basis="spatial", color="HALLMARK_HYPOXIA")  # doctest: +SKIP
    """
    table = _section.get_table(data, table_key)
    frame = _section.stored_frame(table, key, "sl.tl.pathways(sdata, net)")
    entry = _section.recorded(table, "pathways").get(key, {})
    var = pd.DataFrame(index=frame.columns.astype(str))
    for name in ("size", "found"):
        if {"set", name} <= set(entry):
            known = pd.Series(entry[name], index=np.asarray(entry["set"], dtype=str))
            if set(var.index) <= set(known.index):
                var[name] = known.loc[var.index].to_numpy()
    made = _as_anndata(table, frame, key, region, var=var)
    padj = made.obsm.pop(Keys.related(key, "padj"), None)
    if padj is not None:
        made.layers["padj"] = np.asarray(padj, dtype=float)
    return made


def _as_anndata(
    table: AnnData, frame: pd.DataFrame, key: str, region: str | Sequence[str] | None, *, var: pd.DataFrame
) -> AnnData:
    """Values of a slot as ``.X`` beside what else the rows of the table have."""
    sections = _section.sections_of(table, region)
    rows = np.arange(table.n_obs) if region is None else np.sort(np.concatenate([one.rows for one in sections]))
    uns: dict[str, Any] = deepcopy(dict(table.uns))
    obs = table.obs.iloc[rows].copy()
    if region is not None:
        _narrow(uns, obs, [one.name for one in sections])
    made = AnnData(
        frame.iloc[rows].to_numpy(copy=True),
        obs=obs,
        var=var,
        # Rows that are picked are copies.
        obsm={name: _picked(values, rows) for name, values in table.obsm.items() if name != key},
        obsp={name: values[rows][:, rows] for name, values in table.obsp.items()},
        uns=uns,
    )
    _section.record(made, "get", {"slot": key})
    return made


def _picked(values: Any, rows: np.ndarray) -> Any:
    return values.iloc[rows].copy() if isinstance(values, pd.DataFrame) else values[rows]


def _narrow(uns: dict[str, Any], obs: pd.DataFrame, regions: Sequence[str]) -> None:
    """Leave out what belongs to other regions, so that tables of a part are valid by themselves."""
    attrs = uns.get(TableModel.ATTRS_KEY)
    if attrs is not None:
        names = list(dict.fromkeys(regions))
        attrs["region"] = names[0] if len(names) == 1 else names
        column = obs[attrs["region_key"]]
        obs[attrs["region_key"]] = pd.Categorical(column.astype(str))
    pictures = uns.get("spatial")
    if isinstance(pictures, dict) and Keys.SECTION in obs:
        own = set(obs[Keys.SECTION].astype(str))
        if own & set(pictures):
            uns["spatial"] = {name: held for name, held in pictures.items() if name in own}
