"""What several tools need from a section: crops to read, checks that a model fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst._data.crops.chunks import prefetch
from sealst._data.crops.source import iter_source
from sealst._errors import DataError
from sealst._logging import progress, warn
from sealst._section import tables as _section
from sealst._section.tables import Region
from sealst._settings import settings
from sealst.io import Collection
from sealst.models import CropSpec, SealModel

#: share of crops without any picture above which something is wrong; a masked picture may have a few
_MAX_PLAIN = 0.05


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
    items = [sections] if isinstance(sections, SpatialData) else list(sections)
    if not items:
        raise DataError(f"`{name}` is empty; pass at least one SpatialData.")
    for i, item in enumerate(items):
        if not isinstance(item, SpatialData):
            hint = f" Open it: `sl.io.read({str(item)!r})`." if isinstance(item, str | Path) else ""
            raise TypeError(f"`{name}[{i}]` must be a SpatialData, found {type(item).__name__}.{hint}")
    return items


def check_model(model: Any) -> None:
    """Raise unless the argument is a model in memory."""
    if isinstance(model, SealModel):
        return
    hint = "See `sl.models.load`."
    if isinstance(model, str | Path):
        hint = f"Load the folder of a model first: `sl.models.load({str(model)!r})`."
    raise TypeError(f"`model` must be a SealModel, found {type(model).__name__}. {hint}")


def crop_spec(table: AnnData, regions: Sequence[Region], crop_um: float | None = None) -> CropSpec:
    """Crop size that all regions share: the first that was paired, or the one named."""
    sizes = {(d["crop_um"], d["crop_px"]) for d in (_section.crop_definition(table, r, crop_um) for r in regions)}
    if len(sizes) > 1:
        raise DataError(
            f"Regions have crops of different size (µm, px): {sorted(sizes)}. Pair them alike with "
            "`sl.pp.pair_crops(sdata, crop_um=..., crop_px=...)`."
        )
    um, px = sizes.pop()
    return CropSpec(float(um), int(px))


def check_crops_fit(table: AnnData, regions: Sequence[Region], model: CropSpec) -> None:
    """Raise unless the sections have crops of the size that the model was trained on."""
    for region in regions:
        stored = _section.crop_definition(table, region)
        if f"{model.crop_um:g}" not in stored["sizes"] or stored["crop_px"] != model.crop_px:
            raise DataError(
                f"Crops of {region.name!r} are {', '.join(stored['sizes'])} µm at {stored['crop_px']} px, but the "
                f"model was trained on {model.crop_um:g} µm at {model.crop_px} px. Run `sl.pp.pair_crops(sdata, "
                f"crop_um={model.crop_um:g}, crop_px={model.crop_px})`."
            )


def map_crops(
    sdata: SpatialData,
    table: AnnData,
    regions: Sequence[Region],
    function: Callable[[np.ndarray], np.ndarray],
    *,
    spec: CropSpec,
    show: bool | None,
    desc: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Apply a function to the crops of regions, in batches; yields table rows and results."""
    sources = [_section.crop_source(sdata, table, region, spec.crop_um) for region in regions]
    n, plain = sum(len(rows) for rows, _ in sources), 0
    with progress(None, desc=desc, total=n, show=show) as bar:
        for rows, source in sources:
            batches = iter_source(source, spec.crop_px, batch_size=settings.batch_size)
            for positions, crops in prefetch(batches):
                plain += _n_plain(crops)
                yield rows[positions], function(crops)
                bar.update(len(positions))
    if plain > _MAX_PLAIN * n:
        warn(
            f"{plain} of {n} crops are of a single colour. Are parts of the picture missing from its store? Zarr reads "
            "them as black, without an error; `sl.pl.crops` shows crops."
        )


def _n_plain(crops: np.ndarray) -> int:
    """How many crops are of a single colour throughout."""
    # Few pixels rule out nearly all.
    for step in (8, 1):
        thin = crops[:, ::step, ::step]
        crops = crops[(thin == thin[:, :1, :1]).all(axis=(1, 2, 3))]
    return len(crops)


def crops_record(table: AnnData, regions: Sequence[Region], crop_um: float) -> dict[str, Any]:
    """Crop definitions, as provenance of what was computed from them."""
    return {region.name: _section.crop_definition(table, region, crop_um) for region in regions}
