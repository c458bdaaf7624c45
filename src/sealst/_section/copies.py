"""What a call with ``copy=`` writes to and returns."""

from __future__ import annotations

from anndata import AnnData
from spatialdata import SpatialData

from sealst._section.tables import Data, get_table


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
