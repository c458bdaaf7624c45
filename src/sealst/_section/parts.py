"""Sections one after the other, whether they are in memory or opened when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._section import tables as _section
from sealst._section.tables import Data, Region
from sealst._validate import check_key, listed


@dataclass(frozen=True)
class Part:
    """The spots of one section, wherever they are stored; its data is looked up anew at every use.

    A collection opens sections when they are asked for: what a part holds itself are names, row numbers and its unit.
    """

    open: Callable[[], Data]
    table_key: str
    region: Region
    #: names of the spots
    obs_names: np.ndarray
    #: counts per spot that `pp.normalize` scaled to; None where it has not run
    target_sum: float | None

    @property
    def name(self) -> str:
        """Name of the section."""
        return self.region.section

    @property
    def data(self) -> Data:
        """What holds the section."""
        return self.open()

    @property
    def table(self) -> AnnData:
        """Table that holds the spots."""
        return _section.get_table(self.open(), self.table_key)


def section_regions(table: AnnData, region: str | Sequence[str] | None = None) -> list[Region]:
    """Regions of a table, cut further where one region (or a bare AnnData) holds several sections."""
    found = []
    for whole in _section.regions_of(table, region):
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


def walk(sections: Data | Sequence[Data], table_key: str = Keys.TABLE, *, name: str = "sections") -> Iterator[Part]:
    """Parts of one section or several, in order; a section is opened when its first part is asked for."""
    if isinstance(sections, SpatialData | AnnData):
        sections = [sections]
    if not isinstance(sections, Sequence) or isinstance(sections, str):
        raise TypeError(f"`{name}` must be SpatialData or AnnData, or a list of them, found {type(sections).__name__}.")
    if not sections:
        raise DataError(f"`{name}` is empty; at least one section is needed.")
    for i in range(len(sections)):
        yield from parts_at(sections, i, table_key)


def parts_at(sections: Sequence[Data], position: int, table_key: str) -> list[Part]:
    """Parts of one of the sections."""
    table = _section.get_table(sections[position], table_key)
    names, opener = table.obs_names.to_numpy(), partial(sections.__getitem__, position)
    total = _section.target_sum(table)
    parts = [Part(opener, table_key, region, names[region.rows], total) for region in section_regions(table)]
    for part in parts:
        if len(part.obs_names) < 2:
            raise DataError(f"Section {part.name!r} has {len(part.obs_names)} spot(s); at least 2 are needed.")
        if len(set(part.obs_names)) < len(part.obs_names):
            raise DataError(f"Section {part.name!r} has duplicate `obs_names`; run `table.obs_names_make_unique()`.")
    return parts


def parts_of(sections: Data | Sequence[Data], table_key: str = Keys.TABLE, *, name: str = "sections") -> list[Part]:
    """Parts of one section or several, in order; refuses an empty list and names that occur twice."""
    parts = list(walk(sections, table_key, name=name))
    names = [part.name for part in parts]
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(
            f"Section name(s) {listed(double)} occur twice in `{name}`; tell them apart in `.obs['section']`."
        )
    return parts
