"""Lists of sections: where each one is, and what is known about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from spatialdata import SpatialData
from spatialdata.transformations import Scale, set_transformation

from sealst import _section
from sealst._core.space.geometry import agreed
from sealst._errors import DataError, SealstError
from sealst._files import absolute, expanded, is_store, stores_in
from sealst._keys import Keys
from sealst._logging import warn
from sealst._text_table import ENDINGS, read_text_table
from sealst._validate import check_positive, check_section, listed
from sealst.io._stores.formats import FORMATS, format_of
from sealst.io._stores.store import open_store

ZARR = "zarr"
#: columns that go to the reader; all others describe the section and go to `.obs`
_OPTIONS = ("mpp", "image")
_READER_FACTS = (Keys.SECTION, Keys.PATIENT, Keys.ORGAN)
_NAMES = ("path", "format", "image", "batch", Keys.TECHNOLOGY, *_READER_FACTS)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_RESERVED = ("region", "spot_id", Keys.ARRAY_ROW, Keys.ARRAY_COL, Keys.CROP_OK, Keys.CROP_REASON)


@dataclass(frozen=True)
class Entry:
    """One section of a collection."""

    #: file name without ending, or the name that the manifest gives
    name: str
    source: Path | SpatialData
    format: str = ""
    #: columns of `.obs` that hold one value for the whole section
    facts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> SpatialData:
        """Open the section and complete `.obs` with what is stated about it."""
        if isinstance(self.source, SpatialData):
            return self.source
        if self.format == ZARR:
            sdata = open_store(self.source)
            if "mpp" in self.options:
                mpp = self.options["mpp"]
                for region in _section.regions_of(_section.get_table(sdata)):
                    image = _section.find_image(sdata, region)
                    element = sdata.images[image]
                    own = _section.mpp_of(element)
                    if own is None:
                        set_transformation(element, Scale([mpp, mpp], axes=("x", "y")), Keys.UM)
                    else:
                        stated = {"the image's 'um' coordinate system": own, "the manifest": mpp}
                        agreed(stated, what=f"image {image!r}")
        else:
            facts = {k: v for k, v in self.facts.items() if k in _READER_FACTS}
            sdata = FORMATS[self.format].read(self.source, **facts, **self.options)
        for table in sdata.tables.values():
            self._write_facts(table)
        return sdata

    def _write_facts(self, table: Any) -> None:
        names = table.obs[Keys.SECTION].astype(str).unique() if Keys.SECTION in table.obs else []
        if Keys.SECTION in self.facts and len(names) > 1:
            raise DataError(
                f"{self.source} holds several sections ({listed(names)}); leave `section` empty in the manifest."
            )
        for name, value in self.facts.items():
            stored = name in (Keys.PATIENT, Keys.SECTION) and name in table.obs and self.format == ZARR
            if stored and (held := sorted(set(table.obs[name].astype(str)) - {str(value)})):
                warn(f"{self.source}: the manifest says {name} {value!r}, the store {listed(held, 3)}; it is replaced.")
            table.obs[name] = pd.Categorical([value] * table.n_obs) if isinstance(value, str) else value


def entry_of(source: SpatialData | str | PathLike[str], position: int) -> Entry:
    """Entry of a section that is given by itself."""
    if isinstance(source, SpatialData):
        names = [t.obs[Keys.SECTION].astype(str).unique() for t in source.tables.values() if Keys.SECTION in t.obs]
        known = len(names) == 1 and len(names[0]) == 1
        return Entry(str(names[0][0]) if known else f"section{position}", source)
    path = absolute(source)
    return Entry(_stem(path), path, format_of(path).name)


def read_entries(path: Path) -> list[Entry]:
    """Entries of a folder of zarr stores, or of a manifest."""
    if path.is_dir():
        stores = stores_in(path)
        if is_store(path) or not stores:
            what = "is itself one section; use [path]" if is_store(path) else "holds no SpatialData zarr store"
            raise DataError(f"{str(path)!r} {what}. Expected a folder of stores, or a manifest (csv, tsv).")
        return [Entry(_stem(store), store, ZARR) for store in stores]
    if not path.is_file():
        raise DataError(f"No manifest and no folder at {str(path)!r} (looked for {str(path.absolute())!r}).")
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path.name}: a manifest ends in {', '.join(ENDINGS)}, found {path.suffix!r}.")
    # Blank lines are kept here, so that the number of a line is the one an editor shows.
    frame = read_text_table(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    decimal = frame.attrs["decimal"]
    frame.columns = frame.columns.str.strip()
    frame = frame.apply(lambda column: column.str.strip())
    frame.index = frame.index + 2
    frame = frame[(frame != "").any(axis=1)]
    if "path" not in frame.columns:
        raise DataError(
            f"{path.name} has no column 'path'; found: {listed(frame.columns)}. Names are in lower case, and commas, "
            "semicolons or tabs separate the columns."
        )
    if taken := [name for name in _RESERVED if name in frame.columns]:
        raise DataError(f"{path.name} has column(s) {listed(taken)}, which sealst writes itself; rename them.")
    if frame.empty:
        raise DataError(f"{path.name} lists no section.")
    typed = {name: _parse_column(frame[name], decimal) for name in frame.columns}
    entries, problems = [], []
    for i, line in enumerate(frame.index):
        row = {name: column[i] for name, column in typed.items() if column[i] != ""}
        try:
            entries.append((line, _row_entry(row, path.parent)))
        except SealstError as error:
            problems.append(f"line {line}: {error}")
    first: dict[str, int] = {}
    for line, entry in entries:
        if first.setdefault(entry.name, line) != line:
            problems.append(
                f"line {line}: section {entry.name!r} is already on line {first[entry.name]}; tell them apart in a "
                "column `section`."
            )
    paths: dict[tuple[str, str], int] = {}
    for line, entry in entries:
        at = paths.setdefault((str(entry.source), str(entry.options)), line)
        if at != line:
            problems.append(f"line {line}: {str(entry.source)!r} is already on line {at}; a section counts once.")
    if problems:
        more = f"\n… and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{path.name} has {len(problems)} problem(s):\n" + "\n".join(problems[:10]) + more)
    return [entry for _, entry in entries]


def check_names(names: Sequence[str]) -> None:
    """Refuse names of sections that occur twice."""
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(f"Section name(s) {listed(double)} occur twice in the collection; tell them apart.")


def _parse_column(column: pd.Series, decimal: str) -> list[Any]:
    """Numbers where all of a column are numbers; names such as ``007`` stay names."""
    texts = column.tolist()
    numbers = [t.replace(decimal, ".") for t in texts]
    if column.name in _NAMES or not all(_NUMBER.fullmatch(t) for t in numbers if t):
        return texts
    return [float(t) if t else t for t in numbers]


def _row_entry(row: dict[str, Any], folder: Path) -> Entry:
    if "path" not in row:
        raise DataError("`path` is empty.")
    source = folder / expanded(row.pop("path"))
    kind = format_of(source, row.pop("format", None)).name
    if not source.exists():
        raise DataError(f"nothing at {str(source)!r}.")
    options = {name: row.pop(name) for name in _OPTIONS if name in row}
    if "mpp" in options:
        check_positive("mpp", options["mpp"])
    if Keys.SECTION in row:
        check_section(row[Keys.SECTION])
    if "image" in options:
        if kind == ZARR:
            raise DataError("a zarr store holds its image; leave `image` empty.")
        picture = folder / expanded(options["image"])
        if not picture.exists():
            raise DataError(f"no image at {str(picture)!r}.")
        options["image"] = picture
    return Entry(str(row.get(Keys.SECTION, _stem(source))), source, kind, row, options)


def _stem(path: Path) -> str:
    return path.stem if path.is_file() or path.suffix == ".zarr" else path.name
