"""What calls say of themselves in ``.uns["sealst"]``: read and written here alone, and never taken on trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pandas as pd
from anndata import AnnData
from pydantic import Field, Json
from spatialdata import SpatialData

from sealst._errors import DataError
from sealst._given.schema import Count, Name, Positive, Share, Stored, Width, check_type, plain
from sealst._keys import Keys
from sealst._validate import shown
from sealst._version import __version__


class _Crops(Stored):
    """Of a region, by `pp.pair_crops`."""

    image_key: Name
    shapes_key: Name
    coordinate_system: Name
    crop_um: Positive
    crop_px: Width
    min_inside: Share
    um_per_unit: float = float("nan")
    #: missing in tables from before several sizes could be paired
    sizes: dict[Name, Name] = {}


class _MadeFrom(Stored):
    """The crops of a region that a result was made from."""

    crop_um: Positive
    crop_px: Width | None = None
    #: digests of some of their pixels, by spot
    pixels: Json[dict[str, str]] = {}


class _Novelty(Stored):
    """Of the sections of a slot, by `tl.embed`: how unlike what the model has seen they are."""

    section: Annotated[tuple[str, ...], Field(strict=False)]
    median: Annotated[tuple[Share, ...], Field(strict=False)]
    beyond: Annotated[tuple[Share, ...], Field(strict=False)]
    percentile: Annotated[tuple[Share, ...], Field(strict=False)]


class _Embed(Stored):
    """Of a slot, by `tl.embed`."""

    model: Name | None = None
    fingerprint: Name | None = None
    pool: Name | None = None
    modality: Name | None = None
    crop_um: Positive | None = None
    views: Count | None = None
    crops: dict[Name, _MadeFrom] = {}
    novelty: _Novelty | None = None


class _Reliability(Stored):
    """Of the columns of a slot, by `tl.predict`: how they came out on patients that the model had not seen."""

    held_out: Name
    pearson: Annotated[tuple[float, ...], Field(strict=False)]
    better_than_chance: Annotated[tuple[bool, ...], Field(strict=False)]


class _Normalize(Stored):
    target_sum: Positive | None = None


#: calls that keep an entry for each slot or element
_BY_NAME = ("predict", "maps", "retrieve", "annotate", "tissue", "quality", "stain")
#: what entries of calls must be, where more than a mapping is read
_ENTRIES: dict[str, Any] = {
    "crops": dict[Name, _Crops],
    "embed": dict[Name, _Embed],
    "crop_caches": dict[Name, dict[Name, str]],
    "normalize": _Normalize,
    **dict.fromkeys(_BY_NAME, dict[Name, dict[str, Any]]),
}


def _stored(table: AnnData) -> Mapping[str, Any]:
    found = table.uns.get(Keys.UNS, {})
    if not isinstance(found, Mapping):
        raise DataError(
            f"`.uns[{Keys.UNS!r}]` must be a mapping, found {shown(found)}. Remove it (`del table.uns[{Keys.UNS!r}]`), "
            "and run again the calls whose results are needed."
        )
    return found


def recorded(table: AnnData, call: str) -> dict[str, Any]:
    """Copy of what a call recorded; empty where it has not run."""
    found = _stored(table).get(call, {})
    if call == "embed" and isinstance(found, Mapping):
        found = {slot: _without_parts(entry) for slot, entry in found.items()}
    where = f"`.uns[{Keys.UNS!r}][{call!r}]`"
    check_type(_ENTRIES.get(call, dict[str, Any]), found, where=where)
    return dict(found)


def _without_parts(entry: Any) -> Any:
    """Entry of a slot; its novelty, of which `anndata.concat` keeps what joined tables have in common, whole or not."""
    novelty = entry.get("novelty") if isinstance(entry, Mapping) else None
    if isinstance(novelty, Mapping) and not set(_Novelty.model_fields) <= set(novelty):
        return {name: value for name, value in entry.items() if name != "novelty"}
    return entry


def reliability_of(table: AnnData, slot: str) -> pd.DataFrame | None:
    """What is known of the columns of a slot that `tl.predict` wrote: `pearson` and `better_than_chance` by column.

    None where nothing is known of how they come out on patients that the model has not seen.
    """
    found = recorded(table, "predict").get(slot, {}).get("reliability")
    if slot not in table.obsm or not isinstance(found, Mapping):
        return None
    where = f"`.uns[{Keys.UNS!r}]['predict'][{slot!r}]['reliability']`"
    stated = _Reliability.of(plain(found), where=where, kind=DataError)
    columns = list(table.obsm[slot].columns) if isinstance(table.obsm[slot], pd.DataFrame) else []
    values = {"pearson": stated.pearson, "better_than_chance": stated.better_than_chance}
    if any(len(one) != len(columns) for one in values.values()):
        # Columns were dropped since.
        return None
    return pd.DataFrame({name: list(one) for name, one in values.items()}, index=columns)


def novelty_of(table: AnnData, slot: str) -> pd.DataFrame | None:
    """How unlike what the model has seen the sections of an embedding are, by name; None where nothing is known of it.

    `median` percentile of their spots, share of these `beyond` the 95th, and `percentile` of the section as a whole.
    """
    found = recorded(table, "embed").get(slot, {}).get("novelty")
    if found is None:
        return None
    where = f"`.uns[{Keys.UNS!r}]['embed'][{slot!r}]['novelty']`"
    stated = _Novelty.of(plain(found), where=where, kind=DataError)
    columns = {"median": stated.median, "beyond": stated.beyond, "percentile": stated.percentile}
    if any(len(one) != len(set(stated.section)) for one in (stated.section, *columns.values())):
        raise DataError(f"{where} is damaged: it must have one value of each kind for every section. Remove it.")
    return pd.DataFrame({name: list(one) for name, one in columns.items()}, index=list(stated.section))


def record(table: AnnData, call: str, entry: dict[str, Any]) -> None:
    """Write what a call did, keeping what other calls wrote."""
    table.uns[Keys.UNS] = dict(_stored(table)) | {call: entry, "version": __version__}


def record_slot(table: AnnData, call: str, key: str, entry: dict[str, Any]) -> None:
    """Write what a call did for one slot, keeping what it recorded of others."""
    record(table, call, recorded(table, call) | {key: entry})


def record_map(sdata: SpatialData, key: str, entry: dict[str, Any], table_key: str) -> None:
    """Write what `tl.predict` did for an image element into the table of the spots, as a store keeps none of elements.

    Without a table it goes to ``sdata.attrs[key]``.
    """
    sdata.attrs.pop(key, None)
    if table_key in sdata.tables:
        record_slot(sdata.tables[table_key], "maps", key, entry)
    else:
        sdata.attrs[key] = {"maps": plain(entry)}
