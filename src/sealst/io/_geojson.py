"""What was predicted and found, as GeoJSON that QuPath opens on the slide."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import absolute, write_text
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import as_names, check_key, listed
from sealst.get import hits

#: names of squares are the same wherever they are written
_NAMESPACE = uuid.UUID("9f2c7c1e-6a0b-5f0e-9a53-2f0f6a7f7d10")


@documented
def write_geojson(
    sdata: SpatialData,
    path: str | Path,
    *,
    genes: str | Sequence[str] | None = None,
    obs_keys: str | Sequence[str] | None = None,
    class_key: str | None = None,
    hits_key: str | None = None,
    key: str = Keys.EXPRESSION,
    region: str | None = None,
    table_key: str = Keys.TABLE,
    overwrite: bool = False,
) -> Path:
    """Write the crops of a section with values on them as GeoJSON, for QuPath.

    Open the slide in QuPath and drop the file on it: every crop is a tile in pixels of the full-resolution image, its
    values are measurements (*Measure > Show measurement maps*). Anything that reads GeoJSON (geopandas, napari plugins)
    reads it as well.

    Parameters
    ----------
    sdata
        Section with crops, see `sealst.pp.pair_crops`.
    path
        File to write, ending in ``.geojson`` or ``.json``.
    genes
        Genes of `key` to write, as predicted.
    obs_keys
        Columns of ``.obs`` with numbers to write, such as ``"seal_similarity"`` or ``"seal_novelty"``.
    class_key
        Column of ``.obs`` with categories, which become QuPath's classes.
    hits_key
        Slot of `sealst.tl.retrieve` (``"seal_similarity"``): its hits alone are written, with their ``rank`` (1 is the
        best) as a measurement.
    key
        Slot in ``.obsm`` that `sealst.tl.predict` wrote.
    region
        Region of the table; needed where it has several, as a file belongs to one picture.
    %(table_key)s
    overwrite
        Whether to replace an existing file.

    Returns
    -------
    The file: a FeatureCollection with, per usable crop, its square, and as ``properties`` its ``name`` (that in
    ``.obs_names``), ``measurements`` by name (float; left out where they are NaN) and ``classification``.

    Raises
    ------
    DataError
        When nothing to write is named, a column is of another kind, the table has several regions and none is named, or
        the file exists and `overwrite` is False.
    MissingKeyError
        When a gene or a column is not there.
    OrderError
        When crops have not been paired, nothing was predicted for `genes`, or nothing was retrieved into `hits_key`.

    Examples
    --------
    >>> sl.io.write_geojson(sdata, "s1.geojson", genes=["ERBB2", "CD3E"])  # doctest: +SKIP
    >>> sl.io.write_geojson(sdata, "hits.geojson", hits_key="seal_similarity")  # doctest: +SKIP
    """
    target = absolute(path)
    if target.suffix not in (".geojson", ".json"):
        raise DataError(f"`path` must end in .geojson or .json, found {target.name!r}.")
    if target.exists() and not overwrite:
        raise DataError(f"{str(target)!r} exists; replace it with `overwrite=True`.")
    paired = _section.paired_table(sdata, table_key, region=region)
    if len(paired.sections) > 1:
        raise DataError(
            f"The table has the regions {listed(one.region.name for one in paired.sections)}; a file belongs to the "
            "picture of one: name it with `region=`."
        )
    crops, table = paired.sections[0], paired.table
    columns = _columns(table, genes, obs_keys, key)
    if hits_key is not None:
        found = hits(sdata, key=hits_key, region=crops.region.name, table_key=table_key)
        _add(columns, "rank", found.set_index("obs_name")["rank"].reindex(table.obs_names).to_numpy(dtype=float))
    if not columns and class_key is None:
        raise DataError("Nothing to write is named: pass `genes=`, `obs_keys=`, `class_key=` or `hits_key=`.")
    classes = None if class_key is None else _classes(table, class_key)
    kept = np.ones(table.n_obs, bool) if hits_key is None else np.isfinite(columns["rank"])
    features = [
        _feature(crops.region.name, str(table.obs_names[row]), box, {n: v[row] for n, v in columns.items()},
                 None if classes is None else classes[row])
        for row, box in zip(crops.rows, crops.boxes, strict=True)
        if kept[row]
    ]  # fmt: skip
    write_text(target, json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False) + "\n")
    logger.info("Wrote %d crops of %r with %s to %s", len(features), crops.region.name, listed(columns), target)
    return target


def _columns(table: AnnData, genes: Any, obs_keys: Any, key: str) -> dict[str, np.ndarray]:
    """Numbers to write, by name, for every row of the table."""
    found: dict[str, np.ndarray] = {}
    for name in _names("obs_keys", obs_keys):
        check_key(table.obs, name, where="`.obs`", hint="")
        column = table.obs[name]
        if not pd.api.types.is_numeric_dtype(column):
            raise DataError(f"`.obs[{name!r}]` holds no numbers ({column.dtype}); categories go into `class_key=`.")
        _add(found, name, column.to_numpy(dtype=float))
    if wanted := _names("genes", genes):
        frame = _section.stored_frame(table, key, "sl.tl.predict(sdata, model)")
        names = pd.Index(_section.predicted_genes(table, key))
        for gene in wanted:
            check_key(
                names, gene, where=f"`.obsm[{key!r}]`", hint="`sl.tl.predict` writes the genes of the model's panel."
            )
            _add(found, gene, frame.iloc[:, names.get_loc(gene)].to_numpy(dtype=float))
    return found


def _add(columns: dict[str, np.ndarray], name: str, values: np.ndarray) -> None:
    if name in columns:
        raise DataError(f"Two measurements would be called {name!r}; a column of `.obs` can be renamed.")
    columns[name] = values


def _names(argument: str, given: Any) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else as_names(argument, given)


def _classes(table: AnnData, name: str) -> np.ndarray:
    check_key(table.obs, name, where="`.obs`", hint="")
    column = table.obs[name]
    if pd.api.types.is_float_dtype(column):
        raise DataError(f"`.obs[{name!r}]` holds numbers, no categories; they go into `obs_keys=`.")
    return np.asarray(np.where(column.isna(), None, column.astype(str).to_numpy(dtype=object)))


def _feature(section: str, name: str, box: np.ndarray, values: dict[str, float], label: str | None) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(float(v), 3) for v in box)
    properties: dict[str, Any] = {
        "objectType": "tile",
        "name": name,
        # JSON knows no NaN; a measurement that is not there is shown as none.
        "measurements": {key: float(value) for key, value in values.items() if np.isfinite(value)},
    }
    if label is not None:
        properties["classification"] = {"name": label}
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, f"{section}/{name}")),
        "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
        "properties": properties,
    }
