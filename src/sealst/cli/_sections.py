"""Open the sections that a command is given, and put results where they belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealst._errors import DataError
from sealst._files import complete_file, is_store, stores_in, visible, write_text
from sealst._keys import Keys
from sealst._logging import logger
from sealst._text_table import ENDINGS
from sealst._validate import listed
from sealst.cli._common import as_json

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sealst.io import Collection


_WRITERS = {
    ".csv": lambda frame: frame.to_csv(index=False),
    ".tsv": lambda frame: frame.to_csv(index=False, sep="\t"),
    ".json": lambda frame: as_json(frame.to_dict(orient="records")) + "\n",
}


def check_ending(path: Path, option: str) -> None:
    """Refuse an ending that names no format."""
    if path.suffix.lower() not in _WRITERS:
        raise click.UsageError(f"{option} must end in {', '.join(_WRITERS)}, found {path.name!r}.")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _WRITERS[path.suffix.lower()](frame))


H5AD = ".h5ad"


def is_several(path: Path) -> bool:
    """Whether a path stands for several sections: a manifest, or a folder of stores."""
    return (path.is_file() and path.suffix.lower() in ENDINGS) or (not is_store(path) and bool(stores_in(path)))


def open_sections(paths: Sequence[Path]) -> Collection:
    """Sections of a store or several, a folder of stores or a manifest; few are open at a time."""
    from sealst.io import Collection, read_collection

    if several := [p for p in paths if is_several(p)]:
        if len(paths) > 1:
            raise DataError(f"{str(several[0])!r} lists several sections by itself; give it alone, or give stores.")
        return read_collection(paths[0])
    if tables := [p.name for p in paths if p.suffix == H5AD]:
        raise DataError(
            f"{listed(tables)}: a table has no pictures, which this command needs; give zarr stores. `sealst prepare "
            f"{tables[0]} --image PICTURE --mpp UM --out STORE` makes one of a table and its picture."
        )
    return Collection(list(paths))


@dataclass(frozen=True)
class Tables(Sequence[Any]):
    """Tables in h5ad files, each read when it is asked for."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        found = self.paths[index]
        return Tables(found) if isinstance(index, slice) else _read_table(self.paths[index])


def open_sections_or_tables(paths: Sequence[Path]) -> Collection | Tables:
    """Sections as `open_sections`, or h5ad tables, for commands that need no pictures."""
    tables = _tables_of(paths)
    return Tables(tables) if tables else open_sections(paths)


def check_new(path: Path, overwrite: bool, *, option: str = "--out") -> None:
    """Refuse to write where something is; an empty folder, as workflow managers make, counts as nothing."""
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
    if path.exists() and not overwrite:
        raise DataError(f"{str(path)!r} exists; name another {option}, or pass --overwrite to replace it.")


def write_table(table: AnnData, path: Path) -> None:
    """Write an h5ad file that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(path) as partial:
        table.write_h5ad(partial)


@dataclass(frozen=True)
class Work:
    """Sections, what is done to each of them, and where the tables go."""

    paths: Sequence[Path]
    out: Path | None
    overwrite: bool
    table_key: str
    #: whether results are written at all
    save: bool = True
    #: whether h5ad tables will do
    tables: bool = False

    def table(self, data: Any) -> AnnData:
        """Table of a section, or the table itself."""
        table: AnnData = data.tables[self.table_key] if hasattr(data, "tables") else data
        return table

    def check(self) -> None:
        """Refuse what `run` would refuse of `out`, as far as names of sections are known without opening any."""
        if self.out is None:
            return
        names = _names_of(self.paths)
        if names is not None:
            self._targets(names)

    def run(self, function: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
        """Call a function on every section and save what it wrote; one record per section.

        A record may name the ``table`` that it is of.
        """
        if self.tables and (paths := _tables_of(self.paths)):
            return self._run_tables(paths, function)
        sections = open_sections(self.paths)
        if self.out is None and self.save:
            formats = sections.manifest["format"]
            if raw := [name for name, kind in zip(sections.names, formats, strict=True) if kind != "zarr"]:
                raise DataError(
                    f"Section(s) {listed(raw)} are raw files, which are left as they are. Run `sealst prepare` first "
                    "and give its zarr stores, or name a file for the tables with --out."
                )
        targets = self._targets(sections.names)
        records = []
        for i, (name, target) in enumerate(zip(sections.names, targets, strict=True)):
            logger.debug("Section %s (%d of %d)", name, i + 1, len(sections))
            # A collection of its own: what is not saved is not missed.
            part = sections[i : i + 1]
            sdata = part[0]
            records.append({"section": name} | function(sdata))
            where = target
            if target is not None:
                write_table(sdata.tables[records[-1].get("table", self.table_key)], target)
            elif self.save:
                part.save(sdata)
                where = Path(sections.manifest["path"].iloc[i])
            records[-1]["path"] = None if where is None else str(where)
        return records

    def _run_tables(self, paths: Sequence[Path], function: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
        targets = self._targets([p.stem for p in paths])
        records = []
        for path, target in zip(paths, targets, strict=True):
            table = _read_table(path)
            records.append({"section": _section_of(table, path)} | function(table))
            where = target or path
            if self.save:
                write_table(table, where)
            records[-1]["path"] = str(where) if self.save else None
        return records

    def _targets(self, names: Sequence[str]) -> list[Path | None]:
        """Files to write, checked before anything is computed."""
        if self.out is None:
            return [None] * len(names)
        if self.out.suffix == H5AD and len(names) > 1:
            raise DataError(f"--out {str(self.out)!r} is one file, but there are {len(names)} sections; name a folder.")
        if self.out.is_file() and self.out.suffix != H5AD:
            raise DataError(f"--out {str(self.out)!r} is a file; name a folder, or a file that ends in {H5AD}.")
        if len(set(names)) < len(names):
            raise DataError(f"Several tables have the same name: {listed(names)}; rename them.")
        targets = [self.out if self.out.suffix == H5AD else self.out / f"{name}{H5AD}" for name in names]
        for target in targets:
            check_new(target, self.overwrite)
        return list(targets)


def _names_of(paths: Sequence[Path]) -> list[str] | None:
    """Names that sections or tables have by their paths; None where a manifest says them, or nothing does."""
    if len(paths) == 1 and paths[0].is_dir() and not is_store(paths[0]):
        paths = stores_in(paths[0]) or _tables_of(paths)
    known = paths and all(is_store(path) or path.suffix == H5AD for path in paths)
    return [path.stem if path.suffix in (".zarr", H5AD) else path.name for path in paths] if known else None


def _tables_of(paths: Sequence[Path]) -> list[Path]:
    """The h5ad files that are given, by themselves or as one folder of them; none where anything else is."""
    if len(paths) == 1 and paths[0].is_dir() and not (is_store(paths[0]) or stores_in(paths[0])):
        return [p for p in visible(paths[0]).values() if p.suffix == H5AD]
    return list(paths) if all(p.suffix == H5AD for p in paths) else []


def _read_table(path: Path) -> AnnData:
    from sealst._section import read_h5ad

    try:
        return read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{str(path)!r} could not be read as an h5ad table: {error}") from error


def _section_of(table: AnnData, path: Path) -> str:
    with suppress(KeyError):
        names = table.obs[Keys.SECTION].astype(str).unique()
        if len(names) == 1:
            return str(names[0])
    return path.stem


def saved_text(records: Sequence[dict[str, Any]], *columns: str) -> str:
    """Table for people: one line per section."""
    import pandas as pd

    frame = pd.DataFrame(list(records))
    return str(frame[[c for c in ("section", *columns, "path") if c in frame]].to_string(index=False))
