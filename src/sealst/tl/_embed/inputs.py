"""What several tools ask of their arguments: sections, opened or not, and a model in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from anndata import AnnData
from spatialdata import SpatialData

from sealst._core.device import resolve_device
from sealst._core.space.views import N_SYMMETRIES, check_views
from sealst._errors import DataError
from sealst.io import Collection
from sealst.models import Encoder, SealModel, build_encoder


def as_sections(sections: SpatialData | Sequence[SpatialData], name: str) -> Sequence[SpatialData]:
    """One section or several, as a list that is not empty; a collection stays one, unopened.

    Callers go through it by `map`: a variable of a loop would keep a section while the next one is opened.
    """
    if isinstance(sections, Collection):
        return sections
    if isinstance(sections, str | Path):
        call = "read" if Path(sections).suffix == ".zarr" else "read_collection"
        how = f"Open it: `sl.io.{call}({str(sections)!r})`."
        raise TypeError(f"`{name}` must be SpatialData, found the path {str(sections)!r}. {how}")
    if not isinstance(sections, SpatialData | Iterable):
        hint = "Data comes first, then the model."
        raise TypeError(f"`{name}` must be SpatialData or a list of them, found {type(sections).__name__}. {hint}")
    items = [sections] if isinstance(sections, SpatialData) else list(sections)
    if not items:
        raise DataError(f"`{name}` is empty; pass at least one SpatialData.")
    for i, item in enumerate(items):
        if not isinstance(item, SpatialData):
            hint = f" Open it: `sl.io.read({str(item)!r})`." if isinstance(item, str | Path) else ""
            raise TypeError(f"`{name}[{i}]` must be a SpatialData, found {type(item).__name__}.{hint}")
    return items


def in_order_of(sections: Sequence[SpatialData], keys: Sequence[Any]) -> Sequence[SpatialData]:
    """Sections sorted by their keys; a collection stays one, unopened."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    if order == list(range(len(keys))):
        return sections
    if isinstance(sections, Collection):
        return sections.subset([sections.names[i] for i in order])
    return [sections[i] for i in order]


def views_of(views: int | str, table: AnnData) -> int:
    """How many views of each crop to average: as asked; with ``"auto"`` all for spots, one for tiles without genes."""
    if views == "auto":
        return N_SYMMETRIES if table.n_vars else 1
    if isinstance(views, str):
        raise DataError(f"`views` must be 'auto' or a number from 1 to {N_SYMMETRIES}, found {views!r}.")
    return check_views(views)


def check_model(model: Any) -> None:
    """Raise unless the argument is a model in memory."""
    if isinstance(model, SealModel):
        return
    hint = "See `sl.models.load`."
    if isinstance(model, str | Path):
        hint = f"Load the folder of a model first: `sl.models.load({str(model)!r})`."
    raise TypeError(f"`model` must be a SealModel, found {type(model).__name__}. {hint}")


def resolved(
    model: SealModel | Encoder | str, *, pool: str | None = None, pretrained: bool = True, device: str | None = None
) -> SealModel | Encoder:
    """The model or encoder that is meant, on its device; an encoder may be given by name, with how it pools."""
    if not isinstance(model, SealModel | Encoder | str):
        raise TypeError(f"`model` must be a SealModel, an encoder or its name, found {type(model).__name__}.")
    if isinstance(model, Encoder) and pool is not None:
        raise DataError("`pool` is for an encoder given by name; this one has its own. Leave it out.")
    found = build_encoder(model, pool=pool, pretrained=pretrained) if isinstance(model, str) else model
    if device is not None or isinstance(model, str):
        found.to(resolve_device(device))
    return found
