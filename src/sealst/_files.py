"""Write files and folders that appear complete or not at all, and tell SpatialData stores from other folders."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sealst._errors import CheckpointError, DataError, InUseError, SealstError
from sealst._system.exchange import exchange
from sealst._system.refusals import refusal

#: groups of elements in a SpatialData store
ELEMENTS = ("images", "labels", "points", "shapes", "tables")


#: bytes of a file of facts, and of a table in text, beyond which it is something else
FACTS_BYTES, TABLE_BYTES = 1 << 24, 1 << 30


# -- read what anybody may have written -------------------------------------------------------------------------------
def as_path(path: Any, *, argument: str = "path") -> Path:
    """Path that a user gave; raises where it is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`{argument}` must be a path, found {type(path).__name__}.")
    # A path may be one of bytes.
    if "\0" in (text := os.fsdecode(path)):
        raise DataError(f"`{argument}` must be a path, found {text!r}, which holds a null character.")
    return Path(text)


def check_plain(path: Path, *, kind: type[SealstError] = DataError) -> None:
    """Raise where a path leads to a folder, or to a device or pipe, of which reading may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise kind(f"{str(path)!r} is no plain file, but a folder, a device or a pipe.")


def read_text(path: Path, *, kind: type[SealstError] = DataError, most: int = FACTS_BYTES) -> str:
    """Text of a plain file, packed (``.gz``) or not; never more than `most` bytes of it are read.

    Raises
    ------
    SealstError
        Of `kind`, when it is a device or a pipe, too large, damaged or no text.
    OSError
        When it cannot be opened.
    """
    check_plain(path, kind=kind)
    where = repr(str(path))
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
        raise kind(
            f"{where} is no UTF-8 text (byte {error.start} is {raw[error.start]:#04x}). Save it so, e.g. as "
            "'CSV UTF-8'."
        ) from error


def read_json(path: Path, *, kind: type[SealstError] = CheckpointError) -> Any:
    """Content of a JSON file, see `read_text`."""
    try:
        return json.loads(read_text(path, kind=kind))
    except RecursionError:
        raise kind(f"{str(path)!r} is damaged: its JSON is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, SealstError):
            raise
        raise kind(
            f"{str(path)!r} is damaged: it is no JSON ({str(error)[:200]}). Restore it from a copy, or download it "
            "again."
        ) from error


# -- complete or not at all -------------------------------------------------------------------------------------------
# What is being written lies in a hidden folder beside its place, `.<name>-<8 digits>`, with a lock that is held while
# its process lives. The next call that writes under the name removes those whose process is gone.
_ALIVE, _REPLACED = ".alive", ".replaced"
#: why a folder cannot be given a name that was free, or that of another folder, when another process was faster
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Inside a ``with`` block, a hidden folder for what will stand at `path`; gone afterwards.

    What killed processes left of writing `path` is removed first; folders of living ones, here or on other machines
    that share the locks of the file system, stay.
    """
    sweep(path)
    folder, lock = _new_scratch(path)
    try:
        yield folder
    except Exception as error:
        # Nobody has heard of the hidden folder.
        if (told := refusal(error, within=folder, path=path)) is None:
            raise
        raise told from error
    finally:
        # Its lock goes last, and after it nothing is left that would need one.
        _clear(folder, path)
        lock.release()
        _remove_empty(folder)


def sweep(path: Path) -> None:
    """Remove what killed processes left of writing `path`; what they had moved aside gets its name back."""
    for folder, lock in _abandoned(path):
        _clear(folder, path)
        lock.release()
        _remove_empty(folder)


def put_back(path: Path) -> None:
    """Give what a killed process had moved aside its name back, where nothing stands there.

    Only systems that cannot exchange names ever move anything aside, see `take_place`.
    """
    if os.path.lexists(path):
        return
    for folder, lock in _abandoned(path):
        if (folder / _REPLACED).exists() and not os.path.lexists(path):
            (folder / _REPLACED).rename(path)
        lock.release()


def take_place(work: Path, path: Path, aside: Path, *, replace: bool = True) -> None:
    """Give a finished folder the name `path`; `aside` is a hidden folder of `scratch`.

    What has the name is exchanged for it in one step and stands at `work` afterwards. Where the system cannot do that,
    it is moved aside first: a process that is killed in between leaves nothing under the name, and `put_back`, which
    everyone who opens a folder calls, mends that. Without `replace` nothing may have the name.
    """
    try:
        if not (replace and os.path.lexists(path)):
            # The system refuses this where a file, or a folder that holds something, has the name by now.
            work.rename(path)
        elif not exchange(work, path):
            path.rename(aside / _REPLACED)
            work.rename(path)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise InUseError(
            f"Another process wrote or removed {str(path)!r} meanwhile; what is there now stays as it is. Name another "
            "folder, or repeat the call with `overwrite=True`."
        ) from error


@contextmanager
def complete_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Inside a ``with`` block, the path of a file to write instead of `path`; afterwards the file stands at `path`.

    What raises leaves what was there. With `sync` the bytes are on the disk before the file has its name, so that a
    loss of power leaves the old or the new one. A link stays, and what it points to is replaced.
    """
    path = written_through(path)
    with scratch(path) as folder:
        partial = folder / path.name
        yield partial
        _give_rights(partial, folder)
        if sync:
            flush(partial)
        partial.replace(path)
        if sync:
            flush(path.parent)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file that appears complete or not at all."""
    with complete_file(path, sync=sync) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any, *, sync: bool = False) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", sync=sync)


@contextmanager
def new_folder(path: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Inside a ``with`` block, a hidden folder that stands at `path` afterwards; a link stays and is written through.

    An existing folder is replaced only with `overwrite`, and only if it holds the file `marker`; there is the old one
    or the new one under the name at any time, see `take_place`. Of two processes that write one new folder the second
    is refused.
    """
    given, path = path, written_through(path)

    def check_marker() -> None:
        if path.exists() and not (path / marker).is_file():
            raise CheckpointError(f"{str(given)!r} holds something else (it has no {marker}); it is not replaced.")

    put_back(path)
    if path.exists() and not overwrite:
        raise CheckpointError(f"{str(given)!r} exists; pass `overwrite=True` to replace it.")
    check_marker()
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch(path) as folder:
        work = folder / path.name
        work.mkdir()
        yield work
        _give_rights(work, folder)
        if overwrite:
            # Another process may have taken the name meanwhile.
            check_marker()
        take_place(work, path, folder, replace=overwrite)


def expanded(path: Any, *, argument: str = "path") -> Path:
    """A path as a user gives it, with ``~`` and ``~name`` for homes."""
    given = as_path(path, argument=argument)
    try:
        return given.expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{str(given)!r}: this machine knows no home of {given.parts[0]!r}. Write the path out, or './{given}' for "
            "a folder of that name."
        ) from error


def absolute(path: Any, *, argument: str = "path") -> Path:
    """A path as a user gives it, made absolute: it stays what it was when the working folder changes."""
    return expanded(path, argument=argument).absolute()


def written_through(path: Path) -> Path:
    """Where writing to a path leads: of a link its end, which may not exist yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _new_scratch(path: Path) -> tuple[Path, FileLock]:
    while True:
        folder = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            folder.mkdir()
        except OSError as error:
            raise refusal(error, path=path, within=folder) or OSError(error.errno, error.strerror, str(path)) from error
        lock = FileLock(folder / _ALIVE)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError, FileExistsError):
            # Someone who sweeps saw the folder before its lock was held, and removes it.
            continue
        if (folder / _ALIVE).exists():
            return folder, lock
        lock.release()


def _abandoned(path: Path) -> Iterator[tuple[Path, FileLock]]:
    """Hidden folders of `path` whose process is gone, with their locks, which are held."""
    if not path.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{8}}")
    with os.scandir(path.parent) as entries:
        found = [Path(one) for one in entries if ours.fullmatch(one.name) and one.is_dir(follow_symlinks=False)]
    for folder in found:
        alive = folder / _ALIVE
        # Without a plain file of that name it is not ours, or nothing was in it yet.
        if alive.is_symlink() or not alive.is_file():
            with suppress(OSError):
                folder.rmdir()
            continue
        lock = FileLock(alive)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            # Its process lives, or it is another user's.
            continue
        yield folder, lock


def _clear(folder: Path, path: Path) -> None:
    """Empty a hidden folder of `path` of all but its lock."""
    if (folder / _REPLACED).exists() and not os.path.lexists(path):
        with suppress(OSError):
            (folder / _REPLACED).rename(path)
        if (folder / _REPLACED).exists():
            # The only copy there is.
            return
    left: list[Path] = []
    with suppress(FileNotFoundError):
        # Whose folder it is removes it after its lock, once it is empty: between our lock and here.
        left = list(folder.iterdir())
    for entry in left:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _ALIVE:
            # Systems that lock open files keep it until the next call.
            with suppress(OSError):
                entry.unlink()


def _remove_empty(folder: Path) -> None:
    """Remove a hidden folder that holds nothing but its lock."""
    with suppress(OSError):
        if os.listdir(folder) == [_ALIVE]:
            (folder / _ALIVE).unlink()
        folder.rmdir()


def _give_rights(path: Path, like: Path) -> None:
    """Give a file, or all in a folder, the rights that the umask gave the folder `like` when it was made.

    Libraries that write weights leave theirs to the owner alone.
    """
    given = stat.S_IMODE(like.stat().st_mode) & 0o777
    for one in (path, *path.rglob("*")):
        mode = stat.S_IMODE(one.lstat().st_mode)
        wanted = given if one.is_dir() else given & (0o666 | mode & 0o111)
        if not one.is_symlink() and mode & 0o777 != wanted:
            one.chmod(mode & ~0o777 | wanted)


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
    """Files and folders in a folder by name, without hidden ones (``._x`` of macOS); none where there is no folder.

    Devices and pipes are not among them: reading one may never end.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return {p.name: p for p in entries if not p.name.startswith(".") and (p.is_file() or p.is_dir())}


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
