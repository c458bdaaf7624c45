"""Regions of a table: which rows belong to which spots element, and to which section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from anndata import AnnData
from spatialdata.models import TableModel

from sealst._errors import DataError, MissingKeyError
from sealst._keys import Keys
from sealst._validate import check_key, listed, near


@dataclass(frozen=True, kw_only=True)
class Region:
    """Rows of a table that belong together: a whole spots element, or the part of it that is one section."""

    #: name of the spots element
    name: str
    #: name of the section, for users and for file names
    section: str
    #: row positions in the table, in table order
    rows: np.ndarray
    #: instance ids of these rows
    ids: np.ndarray


def regions_of(table: AnnData, region: str | Sequence[str] | None = None) -> list[Region]:
    """Whole spots elements of a table, in the order of its own region list: what shapes are written for.

    An element that holds several sections goes by the name of its first; what asks for sections or patients asks
    `sections_of`.
    """
    attrs = table.uns.get(TableModel.ATTRS_KEY)
    if attrs is None:
        # A bare AnnData: its rows are one region.
        section = str(table.obs[Keys.SECTION].iloc[0]) if Keys.SECTION in table.obs else "section"
        ids = table.obs_names.to_numpy()
        return [Region(name=Keys.spots(section), section=section, rows=np.arange(table.n_obs), ids=ids)]
    # `anndata.concat` keeps what its tables share, which the name of the region is not; the rows say it as well.
    column = table.obs[attrs["region_key"]].astype(str)
    named = attrs.get("region", list(column.unique()))
    known = [named] if isinstance(named, str) else list(named)
    wanted = known if region is None else [region] if isinstance(region, str) else list(region)
    for name in wanted:
        check_key(known, name, where="the table's regions", hint="Name one of them with `region=`.")
    ids, found = table.obs[attrs["instance_key"]].to_numpy(), []
    for name in wanted:
        rows = np.flatnonzero(column.to_numpy() == name)
        if rows.size:
            section = str(table.obs[Keys.SECTION].iloc[rows[0]]) if Keys.SECTION in table.obs else name
            found.append(Region(name=name, section=section, rows=rows, ids=ids[rows]))
    if not found:
        raise DataError(f"No row of the table belongs to region(s) {listed(wanted)}.")
    return found


def sections_of(table: AnnData, region: str | Sequence[str] | None = None) -> list[Region]:
    """Sections of a table, in its order: its regions, cut where one (or a bare AnnData) holds several sections."""
    found = []
    for whole in regions_of(table, region):
        names = np.full(len(whole.rows), whole.section, dtype=object)
        if Keys.SECTION in table.obs:
            names = table.obs[Keys.SECTION].astype(str).to_numpy(dtype=object)[whole.rows]
        for name in dict.fromkeys(names):
            mask = names == name
            found.append(replace(whole, section=str(name), rows=whole.rows[mask], ids=whole.ids[mask]))
    if region is None or TableModel.ATTRS_KEY in table.uns:
        return found
    # A bare AnnData has no regions; its sections go by that name.
    wanted = [region] if isinstance(region, str) else list(region)
    for name in wanted:
        check_key([one.section for one in found], name, where="the table's sections", hint="Name one with `region=`.")
    return [one for one in found if one.section in wanted]


def row_of(table: AnnData, spot: str, sections: Sequence[Region]) -> int:
    """Row of a spot by its name: that of these sections where they have one, as barcodes recur from section to section.

    Raises
    ------
    MissingKeyError
        When no spot has the name.
    DataError
        When several spots have it, of these sections or, where they have none, of the others.
    """
    rows = np.flatnonzero(table.obs_names == spot)
    if not rows.size:
        raise MissingKeyError(
            f"{spot!r} not found in `.obs_names`; found: {listed(table.obs_names)}.{near([spot], table.obs_names)} "
            "Spots are named '<section>_<spot id>'."
        )
    inside = rows[np.isin(rows, np.concatenate([one.rows for one in sections]))]
    rows = inside if inside.size else rows
    if rows.size == 1:
        return int(rows[0])
    owners = [one for one in sections_of(table) if np.isin(rows, one.rows).any()]
    if len(owners) == 1:
        raise DataError(
            f"{rows.size} spots of section {owners[0].section!r} are called {spot!r}; run "
            "`table.obs_names_make_unique()`."
        )
    names = listed((one.name if TableModel.ATTRS_KEY in table.uns else one.section) for one in owners)
    raise DataError(f"{spot!r} is a spot of {len(owners)} sections; say which with `region=`: {names}.")
