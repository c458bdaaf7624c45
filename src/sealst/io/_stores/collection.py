"""Many sections, of which few are open at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, overload
from weakref import WeakKeyDictionary

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._errors import DataError, MissingKeyError
from sealst._files import absolute
from sealst._html import SHOWN, as_html
from sealst._keys import Keys
from sealst._logging import warn
from sealst._validate import listed, whole
from sealst.io._stores.manifest import ZARR, Entry, check_names, entry_of, read_entries
from sealst.io._stores.store import refresh, remember, write_back, write_whole


class Collection(Sequence[SpatialData]):
    """Sections that are opened when they are needed and dropped again.

    Parameters
    ----------
    sections
        Paths (SpatialData zarr stores, or anything that `sealst.io.read` reads) or SpatialData. Objects in memory stay
        there, they are the caller's.
    keep
        Number of sections that are kept open.

    Examples
    --------
    Preparation is written back to the stores, section by section:

    >>> sections = sl.io.read_collection("sections")  # doctest: +SKIP
    >>> for s in sections:  # doctest: +SKIP
    ...     sl.pp.pair_crops(s)
    ...     sl.pp.normalize(s)
    ...     sections.save(s)
    >>> model = sl.tl.finetune(sections, encoder="vit_small_patch16_224")  # doctest: +SKIP

    Notes
    -----
    A section that is dropped forgets what was not saved; a warning says so. Pixels are read from disk in either case.
    ``sections[i]``, ``sections["name"]`` and slices work; a slice is a collection of its own.
    """

    def __init__(self, sections: Sequence[SpatialData | str | PathLike[str] | Entry], *, keep: int = 1) -> None:
        if isinstance(sections, str | PathLike | SpatialData) or not isinstance(sections, Sequence):
            raise TypeError(
                f"`sections` must be a list of paths or SpatialData, found {type(sections).__name__}: use [section], "
                "or `sl.io.read_collection(path)` for a folder or a manifest."
            )
        whole("keep", keep, least=1)
        if not len(sections):
            raise DataError("`sections` is empty; at least one section is needed.")
        self._entries = [one if isinstance(one, Entry) else entry_of(one, i) for i, one in enumerate(sections)]
        check_names(self.names)
        self._keep = keep
        #: open sections by position, with what they held when they were opened or saved
        self._open: OrderedDict[int, tuple[SpatialData, Any]] = OrderedDict()
        #: elements of sections as they were opened or saved, also of those that only the caller still holds
        self._seen: WeakKeyDictionary[SpatialData, dict[str, tuple[Any, str]]] = WeakKeyDictionary()
        for entry in self._entries:
            if isinstance(entry.source, SpatialData):
                self._seen[entry.source] = _elements(entry.source)
                remember(entry.source)

    @property
    def names(self) -> list[str]:
        """Names of the sections: as the manifest states, else of their files."""
        return [entry.name for entry in self._entries]

    @property
    def manifest(self) -> pd.DataFrame:
        """What is known without opening a section: one row each, with path, format and the manifest's columns."""
        rows = []
        for entry in self._entries:
            path = "" if isinstance(entry.source, SpatialData) else str(entry.source)
            rows.append({Keys.SECTION: entry.name, "path": path, "format": entry.format} | entry.facts | entry.options)
        return pd.DataFrame(rows)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Collection of {len(self)} section(s): {listed(self.names)}"

    def _repr_html_(self) -> str:
        # No section is opened for it.
        return as_html(f"Collection of {len(self)} section(s)", {}, rows=self[:SHOWN].manifest.to_dict("records"))

    @overload
    def __getitem__(self, index: int | str) -> SpatialData: ...
    @overload
    def __getitem__(self, index: slice) -> Collection: ...
    def __getitem__(self, index: int | str | slice) -> SpatialData | Collection:
        if isinstance(index, slice):
            return Collection(self._entries[index], keep=self._keep)
        if isinstance(index, str):
            return self._opened(self._position(index))
        # Raises the IndexError that a sequence owes for a position beyond its end.
        return self._opened(range(len(self))[index])

    def __iter__(self) -> Iterator[SpatialData]:
        # Without a variable of its own, which would keep a section open while the next is read.
        for i in range(len(self)):
            yield self._opened(i)

    def subset(self, names: Sequence[str]) -> Collection:
        """Collection of the sections with these names, in this order."""
        return Collection([self._entries[self._position(name)] for name in names], keep=self._keep)

    def replaced(self, sections: Mapping[str, SpatialData]) -> Collection:
        """Collection with these objects, by name, in the place of sections; they stay in memory, the others do not."""
        held = {self._position(name): sdata for name, sdata in sections.items()}
        entries = [replace(e, source=held[i], format="") if i in held else e for i, e in enumerate(self._entries)]
        return Collection(entries, keep=self._keep)

    def save(self, sdata: SpatialData) -> None:
        """Write what was changed in an open section back to its zarr store.

        Tables and shapes are written, and images and labels that are new, were replaced or placed differently; the
        pixels of others are not touched. New elements take the place of old ones only when all are written; elements
        that were removed are removed from the store. Points and ``sdata.attrs`` are not written. Sections that were
        given as objects in memory and have no store keep their changes anyway, for them nothing is written.

        Raises
        ------
        DataError
            When the section is not of this collection, or was read from raw files, which sealst never changes.
        InUseError
            When somebody else saved to the store since this section was read from it; nothing is written then.
        """
        position = self._position_of(sdata)
        entry = self._entries[position]
        path = sdata.path if isinstance(entry.source, SpatialData) else entry.source
        if path is None:
            return
        if entry.format not in (ZARR, ""):
            raise DataError(
                f"Section {entry.name!r} was read from {entry.format} files, which are left as they are. Convert the "
                "collection first: `sections = sections.write('folder')`."
            )
        # What is not known as it was is written: better twice than never.
        now, before = _elements(sdata), self._seen.get(sdata, {})
        changed = {key for key, (one, _) in now.items() if before.get(key, (None, ""))[0] is not one}
        moved = {key for key, (_, placed) in now.items() if key in before and before[key][1] != placed}
        write_back(sdata, Path(path), changed | moved, set(before) - set(now))
        refresh(sdata, Path(path), changed)
        self._seen[sdata] = _elements(sdata)
        if position in self._open:
            self._open[position] = (sdata, _content(sdata))

    def apply(self, function: Callable[[SpatialData], Any]) -> None:
        """Call a function on every section in turn and save what it changed."""
        if raw := [e.name for e in self._entries if e.format not in (ZARR, "")]:
            raise DataError(
                f"Sections {listed(raw)} are raw files, to which nothing can be saved. Convert the collection first: "
                "`sections = sections.write('folder')`."
            )
        for i in range(len(self)):
            self._apply(i, function)

    def write(self, path: str | PathLike[str]) -> Collection:
        """Write every section as ``<path>/<section>.zarr`` and return the collection of these stores."""
        target = absolute(path)
        paths = [target / f"{name}.zarr" for name in self.names]
        if there := [p.name for p in paths if p.exists()]:
            raise DataError(f"{str(target)!r} already holds {listed(there)}; name another folder.")
        target.mkdir(parents=True, exist_ok=True)
        for i, store in enumerate(paths):
            write_whole(self._opened(i), store)
        return Collection(paths, keep=self._keep)

    def _apply(self, position: int, function: Callable[[SpatialData], Any]) -> None:
        sdata = self._opened(position)
        function(sdata)
        self.save(sdata)

    def _opened(self, position: int) -> SpatialData:
        entry = self._entries[position]
        if isinstance(entry.source, SpatialData):
            return entry.source
        if position in self._open:
            self._open.move_to_end(position)
            return self._open[position][0]
        # Room is made before the next section is read, so that there are never more than `keep`.
        while len(self._open) >= self._keep:
            self._drop()
        sdata = entry.open()
        self._seen[sdata] = _elements(sdata)
        self._open[position] = (sdata, _content(sdata))
        return sdata

    def _drop(self) -> None:
        position, (sdata, before) = self._open.popitem(last=False)
        if _content(sdata) != before:
            warn(
                f"Section {self.names[position]!r} was changed and not saved, and is dropped now. Call "
                "`sections.save(s)` after changing a section, or use `sections.apply(function)`."
            )

    def _position(self, name: str) -> int:
        if name not in self.names:
            raise MissingKeyError(f"{name!r} not found in the collection; found: {listed(self.names)}.")
        return self.names.index(name)

    def _position_of(self, sdata: SpatialData) -> int:
        for position, (one, _) in self._open.items():
            if one is sdata:
                return position
        for position, entry in enumerate(self._entries):
            stored = sdata.path is not None and isinstance(entry.source, Path)
            if entry.source is sdata or (stored and Path(sdata.path).resolve() == entry.source.resolve()):
                return position
        raise DataError("This section is not one of the collection; save the object that the collection gave.")


def read_collection(path: str | PathLike[str], *, keep: int = 1) -> Collection:
    """Read a folder of SpatialData zarr stores, or a manifest, as a collection.

    Sections are opened when they are needed and dropped again, so that a cohort of hundreds fits into memory.

    Parameters
    ----------
    path
        Folder that holds SpatialData zarr stores; or a table (csv, or tab-separated tsv) with one section per line.
        Its column `path` is required, relative paths start at the table. `section`, `patient`, `organ`, `technology`,
        `batch` and every further column are written to ``.obs`` of the section and replace what is there. `format`
        (see `sealst.io.read`), `image` (a path) and `mpp` (µm per pixel) say how to read it.
    keep
        Number of sections that are kept open.

    Returns
    -------
    `Collection`, in the order of the table, or of the names of the stores.

    Raises
    ------
    DataError
        When there is no section, or lines of the table are wrong (missing files, names that occur twice, …); the text
        names the lines.

    Examples
    --------
    >>> sections = sl.io.read_collection("cohort.csv")  # doctest: +SKIP
    >>> sections.manifest[["section", "patient"]]  # doctest: +SKIP
    """
    return Collection(read_entries(absolute(path)), keep=keep)


def _content(sdata: SpatialData) -> Any:
    """Names of what calls add to a section: cheap to compare, and enough to notice an unsaved call."""

    def parts(table: AnnData) -> list[list[Any]]:
        frames, layers = (table.obs.columns, table.var.columns), _section.layer_names(table)
        return [list(part) for part in (*frames, layers, table.obsm, table.uns.get(Keys.UNS, {}))]

    tables = {key: parts(table) for key, table in sdata.tables.items()}
    return sorted([*sdata.images, *sdata.labels, *sdata.shapes]), tables


def _elements(sdata: SpatialData) -> dict[str, tuple[Any, str]]:
    """Elements by ``kind/name``; images and labels with where they are placed (pixels stay where they are)."""
    rasters = {
        f"{kind}/{name}": (one, str(get_transformation(one, get_all=True)))
        for kind in ("images", "labels")
        for name, one in getattr(sdata, kind).items()
    }
    return rasters | {f"{kind}/{name}": (None, "") for kind in ("shapes", "tables") for name in getattr(sdata, kind)}
