"""Write files and folders that appear complete or not at all, and tell SpatialData stores from other folders."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealst._errors import CheckpointError, DataError, SealstError

#: groups of elements in a SpatialData store
ELEMENTS = ("images", "labels", "points", "shapes", "tables")


#: bytes of a file of facts, and of a table in text, beyond which it is something else
FACTS_BYTES, TABLE_BYTES = 1 << 24, 1 << 30


# -- read what anybody may have written -------------------------------------------------------------------------------
def as_path(path: Any, *, argument: str = "path") -> Path:
    """Path that a user gave; raises where it is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`{argument}` must be a path, found {type(path).__name__}.")
    if "\0" in (text := os.fspath(path)):
        raise DataError(f"`{argument}` must be a path, found {text!r}, which holds a null character.")
    return Path(text)


def read_text(path: Path, *, kind: type[SealstError] = DataError, most: int = FACTS_BYTES) -> str:
    """Text of a plain file, packed (``.gz``) or not; never more than `most` bytes of it are read.

    Raises
    ------
    SealstError
        Of `kind`, when it is a device or a pipe, too large, damaged or no text.
    OSError
        When it cannot be opened.
    """
    where = repr(str(path))
    if not stat.S_ISREG(path.stat().st_mode):
        raise kind(f"{where} is no plain file, but a folder, a device or a pipe.")
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            raw = stream.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise kind(f"{where} is not a gzip file, or damaged: {error}.") from error
    if len(raw) > most:
        raise kind(f"{where} holds more than {most:,} bytes, which nothing of this kind needs; is it another file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{where} is no UTF-8 text (byte {error.start} is {raw[error.start]:#04x}).") from error


def read_json(path: Path, *, kind: type[SealstError] = CheckpointError) -> Any:
    """Content of a JSON file, see `read_text`."""
    try:
        return json.loads(read_text(path, kind=kind))
    except RecursionError:
        raise kind(f"{str(path)!r} is damaged: its JSON is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, SealstError):
            raise
        raise kind(f"{str(path)!r} is damaged: it is no JSON ({str(error)[:200]}).") from error


# -- complete or not at all -------------------------------------------------------------------------------------------
@contextmanager
def complete_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Inside a ``with`` block, the path of a file to write beside `path`; afterwards the file stands at `path`.

    What raises leaves what was there. With `sync` the bytes are on the disk before the file has its name, so that a
    loss of power leaves the old or the new one.
    """
    partial = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield partial
        if sync:
            flush(partial)
        partial.replace(path)
        if sync:
            flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file that appears complete or not at all."""
    with complete_file(path, sync=sync) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any, *, sync: bool = False) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", sync=sync)


@contextmanager
def new_folder(path: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Inside a ``with`` block, a temporary folder beside `path`; afterwards it stands at `path`.

    An existing folder is replaced only with `overwrite`, and only if it holds the file `marker`.
    """
    if path.exists() and not overwrite:
        raise CheckpointError(f"{str(path)!r} exists; pass `overwrite=True` to replace it.")
    if path.exists() and not (path / marker).is_file():
        raise CheckpointError(f"{str(path)!r} holds something else (it has no {marker}); it is not replaced.")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield work
        work.chmod(0o755)
        replace_folder(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def replace_folder(work: Path, path: Path) -> None:
    """Give a finished folder the name `path`; what has it is moved aside first and removed last."""
    if not path.exists():
        work.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    path.rename(old / path.name)
    try:
        work.rename(path)
    except BaseException:
        # What stands in the way is another process's; the old one then stays under its hidden name.
        if not path.exists():
            (old / path.name).rename(path)
            old.rmdir()
        raise
    shutil.rmtree(old)


def flush(path: Path) -> None:
    """Have a file or folder on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        # Folders cannot be opened on every system.
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def visible(folder: Path) -> dict[str, Path]:
    """Entries of a folder by name, without hidden ones (``._x`` of macOS); none where there is no such folder."""
    return {p.name: p for p in sorted(folder.iterdir()) if not p.name.startswith(".")} if folder.is_dir() else {}


# -- SpatialData stores -----------------------------------------------------------------------------------------------
def is_store(path: Path) -> bool:
    """Whether a folder is what `spatialdata.read_zarr` opens as a section; a zarr group of another kind is not.

    A store says so in its attributes. One by spatialdata before 0.3 may have none: it is known by its elements.
    """
    said = "".join(
        (path / name).read_text(encoding="utf-8", errors="replace")
        for name in ("zarr.json", ".zattrs")
        if (path / name).is_file()
    )
    if said.split() not in ([], ["{}"]):
        return "spatialdata_attrs" in said
    return (path / ".zgroup").is_file() and any((path / kind / ".zgroup").is_file() for kind in ELEMENTS)


def stores_in(path: Path) -> list[Path]:
    """SpatialData stores that lie in a folder, by name; hidden ones are being written."""
    return [p for p in visible(path).values() if p.is_dir() and is_store(p)]
