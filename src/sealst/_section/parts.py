"""Sections one after the other, whether they are in memory or opened when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._section.regions import Region, sections_of
from sealst._section.tables import Data, get_table, target_sum
from sealst._validate import listed


@dataclass(frozen=True, kw_only=True)
class Part(Region):
    """One section, wherever it is stored; its data is looked up anew at every use.

    A collection opens sections when they are asked for: what a part holds itself are names, row numbers and its unit.
    """

    open: Callable[[], Data]
    table_key: str
    #: names of the spots
    obs_names: np.ndarray
    #: counts per spot that `pp.normalize` scaled to; None where it has not run
    target_sum: float | None

    @property
    def data(self) -> Data:
        """What holds the section."""
        return self.open()

    @property
    def table(self) -> AnnData:
        """Table that holds the spots."""
        return get_table(self.open(), self.table_key)


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
    table = get_table(sections[position], table_key)
    names, opener = table.obs_names.to_numpy(), partial(sections.__getitem__, position)
    parts = [
        Part(
            name=one.name,
            section=one.section,
            rows=one.rows,
            ids=one.ids,
            open=opener,
            table_key=table_key,
            obs_names=names[one.rows],
            target_sum=target_sum(table),
        )
        for one in sections_of(table)
    ]
    for part in parts:
        if len(part.obs_names) < 2:
            raise DataError(f"Section {part.section!r} has {len(part.obs_names)} spot(s); at least 2 are needed.")
        if len(set(part.obs_names)) < len(part.obs_names):
            raise DataError(f"Section {part.section!r} has duplicate `obs_names`; run `table.obs_names_make_unique()`.")
    return parts


def parts_of(sections: Data | Sequence[Data], table_key: str = Keys.TABLE, *, name: str = "sections") -> list[Part]:
    """Parts of one section or several, in order; refuses an empty list and names that occur twice."""
    parts = list(walk(sections, table_key, name=name))
    names = [part.section for part in parts]
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(
            f"Section name(s) {listed(double)} occur twice in `{name}`; tell them apart in `.obs['section']`."
        )
    return parts
