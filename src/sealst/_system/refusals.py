"""What the operating system refuses, in one line that names the path and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from sealst._errors import DataError, SealstError, StorageError

_ROOM = "Make room, or name a place on another disk; what was there before is as it was."
#: what a number means, and what to do
_MEANINGS = {
    errno.EACCES: ("permission denied", "Name a place that is yours, or have its owner allow it."),
    errno.EPERM: ("operation not permitted", "Name a place that is yours, or have its owner allow it."),
    errno.EROFS: ("the file system is read-only", "Name a place on another one."),
    errno.ENOSPC: ("the disk is full", _ROOM),
    getattr(errno, "EDQUOT", errno.ENOSPC): ("the disk is full", _ROOM),
    errno.EFBIG: (
        "the file would be larger than is allowed here",
        "Name a place on another disk, or raise `ulimit -f`.",
    ),
    errno.ENAMETOOLONG: ("the name is too long", "Most file systems allow 255 bytes in a name; choose a shorter one."),
    errno.ENOENT: ("no such file or folder", "Correct the path; what stood there may have been moved or removed."),
    errno.ENOTDIR: ("a file stands where a folder should", "Name a place below a folder."),
    errno.ELOOP: ("the link leads to itself", "Correct the link, or name what it should lead to."),
    errno.EMFILE: ("too many files are open", "Raise the limit with `ulimit -n`, or read fewer sections at once."),
    errno.EIO: ("the disk does not answer (input/output error)", "Look at the disk, or read from a copy."),
    errno.ESTALE: ("the network disk has lost the file", "Run the call again."),
}
#: how libraries that are not written in Python say the number, and the file
_NUMBER = re.compile(r"(?:errno\s*=?\s*|os error )(\d+)", re.IGNORECASE)
_NAME = re.compile(r"name = '([^']+)'|^(/.+) does not exist")


class _AbsentError(StorageError, FileNotFoundError):
    """Said of what is not there, to those who expect Python's own error as well."""


def refusal(error: BaseException, *, within: Path | None = None, path: Path | None = None) -> SealstError | None:
    """What an error means, where it is the system's; None for others.

    Of files in the hidden folder `within`, and of those that the error does not name, `path` is told instead.
    """
    if isinstance(error, MemoryError):
        said = f" ({error})" if str(error) else ""
        return DataError(
            f"There is not enough memory{said}. A file may state a size that it does not have: check where it comes "
            "from; else do less at once, or run it on a larger machine."
        )
    if not isinstance(error, OSError | RuntimeError | ValueError) and type(error).__name__ != "SafetensorError":
        return None
    if isinstance(error, SealstError) and not isinstance(error, StorageError):
        return None
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    if number is None and (digits := _NUMBER.search(str(error))):
        number = int(digits.group(1))
    if number is None and isinstance(error, FileNotFoundError):
        number = errno.ENOENT
    if number not in _MEANINGS:
        return None
    if name is None and (quoted := _NAME.search(str(error))):
        name = quoted.group(quoted.lastindex or 0)
    if path is not None and (name is None or (within is not None and Path(os.fsdecode(name)).is_relative_to(within))):
        name = str(path)
    what, mend = _MEANINGS[number]
    if name is not None and number == errno.ENOSPC and (free := _free(Path(os.fsdecode(name)))) is not None:
        what = f"{what} ({free / 2**20:.0f} MiB are free)"
    said = "A file" if name is None else repr(os.fsdecode(name))
    # Of a name that is too long by far, its ends.
    kind = _AbsentError if number == errno.ENOENT else StorageError
    told = kind(f"{said if len(said) <= 1000 else f'{said[:200]}...{said[-50:]}'}: {what}. {mend}")
    told.errno, told.filename = number, name
    return told


def _free(path: Path) -> int | None:
    there = next((p for p in path.absolute().parents if p.is_dir()), None)
    return None if there is None else shutil.disk_usage(there).free
