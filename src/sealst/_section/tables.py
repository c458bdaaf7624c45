"""The table of a section: expression by layer, patients, and checks of what a call was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst._core.genes.panel import GenePanel
from sealst._core.sparse import check_table
from sealst._errors import DataError, OrderError, PanelError
from sealst._files import check_plain
from sealst._keys import Keys
from sealst._section.records import recorded
from sealst._validate import check_key, listed, patient_text

#: what calls that need no pixels accept
Data: TypeAlias = SpatialData | AnnData


#: what to do with an AnnData where pixels are asked for
ADD_PICTURE = "An AnnData of your own gets its picture by `sdata = sl.io.from_anndata(adata, 'slide.tif', mpp=...)`."


def get_table(data: Data, table_key: str = Keys.TABLE) -> AnnData:
    """Return the table of a SpatialData, or the AnnData itself."""
    if isinstance(data, AnnData):
        return data
    if not isinstance(data, SpatialData):
        raise TypeError(f"Expected a SpatialData (or AnnData), found {type(data).__name__}.")
    check_key(
        data.tables,
        table_key,
        where="`sdata.tables`",
        hint="Name the table with `table_key=`, or build a section with `sl.io.from_arrays(...)`.",
    )
    table = data.tables[table_key]
    if table.n_obs < 2:
        raise DataError(f"The table {table_key!r} has {table.n_obs} spot(s); at least 2 are needed.")
    return table


def read_h5ad(path: Path) -> AnnData:
    """Table of an h5ad file; one whose sparse matrices have indices outside is refused."""
    check_plain(path)
    table = anndata.read_h5ad(path)
    check_table(table, where=path.name)
    return table


def needs_pixels(sdata: Any) -> None:
    """Raise unless the first argument is one section with its images."""
    if isinstance(sdata, SpatialData):
        return
    hint = f"The picture is needed: pass the SpatialData, not its table. {ADD_PICTURE}"
    if not isinstance(sdata, AnnData):
        hint = "Several sections go one by one: `for sdata in sections: ...`, or `sections.apply(function)`."
    raise TypeError(f"Expected a SpatialData, found {type(sdata).__name__}. {hint}")


def layer_names(table: AnnData) -> list[str]:
    """Names of the layers; from 0.13 on, anndata lists ``.X`` among them, as None."""
    return [name for name in table.layers if name is not None]


def lognorm(table: AnnData, layer: str = Keys.LOGNORM) -> Any:
    """Return an expression layer that `pp.normalize` wrote."""
    if layer not in table.layers:
        raise OrderError(
            f"Layer {layer!r} not found in `.layers`; found: {listed(layer_names(table))}. "
            "Run `sl.pp.normalize(sdata)` first (with `context=True` if it ran without context)."
        )
    return table.layers[layer]


def stored_frame(table: AnnData, key: str, call: str) -> pd.DataFrame:
    """Return a DataFrame from ``.obsm`` that an earlier call wrote."""
    if key not in table.obsm:
        raise OrderError(f"{key!r} not found in `.obsm`; found: {listed(table.obsm)}. Run `{call}` first.")
    frame = table.obsm[key]
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"`.obsm[{key!r}]` must be a DataFrame with named columns, found {type(frame).__name__}. "
            f"Run `{call}` again."
        )
    return frame


def predicted_genes(table: AnnData, key: str) -> pd.Index:
    """Genes of a slot of predictions, in its order: its columns are called as they can be stored, genes as they are."""
    columns = table.obsm[key].columns
    named = recorded(table, "predict").get(key, {}).get("genes", columns)
    return pd.Index(np.asarray(named if len(named) == len(columns) else columns, dtype=object))


def target_sum(table: AnnData) -> float | None:
    """Counts per spot that `pp.normalize` scaled to; None where it has not run."""
    used = recorded(table, "normalize").get("target_sum")
    return None if used is None else float(used)


def expression(
    table: AnnData, panel: GenePanel, rows: np.ndarray, layer: str | None = None, *, masked: bool = False
) -> np.ndarray:
    """Expression of some rows in panel order, (rows, genes), from the panel's layer or the one named.

    Genes that the table lacks hold the panel's mean. With `masked` the caller leaves these out by `panel.measured`:
    there is no warning, and of a panel joined from sections that measure different genes a single one suffices.
    """
    values = lognorm(table, layer or panel.layer)
    used = target_sum(table)
    if used is not None and not np.isclose(used, panel.target_sum):
        raise PanelError(
            f"Expression was normalised to {used:g} counts per spot, the panel's is {panel.target_sum:g}. Run "
            f"`sl.pp.normalize(sdata, target_sum={panel.target_sum:g})`."
        )
    joined = masked and panel.availability is not None
    min_shared = 0.0 if joined else 0.5
    found = panel.extract(values[rows], table.var_names, min_shared=min_shared, warn_missing=not masked)
    if masked:
        # Also a gene in two spellings, of which neither is known to be the one.
        absent = ~panel.measured(table.var_names)
        found[:, absent] = panel.mean[absent]
    return found


def patients(table: AnnData, rows: np.ndarray | None = None) -> np.ndarray:
    """Patient of each of a table's rows, as `patient_text` names it; without the column, the section stands for it."""
    column = Keys.PATIENT if Keys.PATIENT in table.obs else Keys.SECTION
    check_key(table.obs.columns, column, where="`table.obs`", hint="Splits are by patient: add `table.obs['patient']`.")
    values = table.obs[column] if rows is None else table.obs[column].iloc[rows]
    codes, found = pd.factorize(values, use_na_sentinel=False)
    names = [patient_text(value) for value in found]
    if unknown := np.isin(codes, [i for i, name in enumerate(names) if name in (None, "nan", "None")]).sum():
        first = 0 if rows is None else rows[0]
        where = f"section {table.obs[Keys.SECTION].iloc[first]!r}" if Keys.SECTION in table.obs else "the table"
        raise DataError(f"`.obs[{column!r}]` is empty for {unknown} spots of {where}; fill it in.")
    return np.array(names, dtype=str)[codes]


def patients_of(table: AnnData, rows: np.ndarray | None = None) -> list[str]:
    """Names of the patients of a table's rows."""
    return sorted(set(patients(table, rows).tolist()))


def for_writing(data: Data, table_key: str, *, copy: bool) -> tuple[Data, AnnData]:
    """What a call writes to, and its table: what it was given, or with `copy` a copy of that."""
    table = get_table(data, table_key)
    if not copy:
        return data, table
    table = table.copy()
    return with_table(data, table_key, table), table


def with_table(data: Data, table_key: str, table: AnnData) -> Data:
    """What was given, with another table; pictures, shapes and the other tables are shared, not copied."""
    if isinstance(data, AnnData):
        return table
    shared = {kind: dict(getattr(data, kind)) for kind in ("images", "labels", "points", "shapes")}
    return SpatialData(**shared, tables={**data.tables, table_key: table}, attrs=dict(data.attrs))
