"""Locks that keep processes apart, here or on other machines, and say who holds them.

The system keeps them (``flock``; on NFS it asks the server) and drops them with the process that holds them, however it
ended. Beside a lock file `x` lies `x.json` while it is held: for messages, never for the decision.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sealst._errors import InUseError, SealstError
from sealst._given.schema import Name, NotNegative, Number, Stored
from sealst._logging import logger, warn

#: how the locks of a training's folder begin
RUN_LOCK = ".lock"
#: how the locks of those begin who read a folder that nobody may remove meanwhile
_READER = ".reader-"
#: answers of file systems that keep no locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold(file: Path, thing: str, *, wait: bool = True, advice: str = "") -> Iterator[None]:
    """Hold a lock file inside a ``with`` block.

    Parameters
    ----------
    file
        The lock file; its folder is there.
    thing
        What it guards, the beginning of a sentence.
    wait
        Whether to wait while another process (or another call of this one) holds it.
    advice
        What to do instead of waiting.

    Raises
    ------
    InUseError
        Without `wait`, when it is held.
    """
    lock: Any = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise InUseError(f"{thing} is in use by {_holder(file)}. {advice}".rstrip()) from error
        logger.info("%s is in use by %s; waiting.", thing, _holder(file))
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        # What filelock raises for a file system without `flock` depends on its version.
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warn(f"{str(file.parent)!r} is on a file system without locks: see to it that one process at a time writes.")
        lock = None
    told = _told(file)
    try:
        with contextlib.suppress(OSError):
            # A disk may be full; the lock is held all the same.
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
            told.write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            told.unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def hold_run(folder: Path, *, rank: int = 0) -> AbstractContextManager[None]:
    """Hold the folder of a training (it is there) for one of its processes; refused while another training has it."""
    advice = "Wait until it is done or stop it, then repeat the call with `resume=True`; or name another folder."
    name = RUN_LOCK if rank == 0 else f"{RUN_LOCK}-{rank}"
    return hold(folder / name, f"`run_dir` {str(folder)!r}", wait=False, advice=advice)


@contextmanager
def reading(folder: Path) -> Iterator[str]:
    """Inside a ``with`` block, the name of a lock in a folder that is held: of one who reads folders inside of it.

    An empty file of that name in one of these keeps it from being removed, see `check_unread`. So there may be any
    number of readers, and each holds a single lock, however much it reads.
    """
    name = f"{_READER}{secrets.token_hex(4)}"
    try:
        with hold(folder / name, repr(str(folder)), wait=False):
            yield name
    finally:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def check_unread(folder: Path, thing: str) -> None:
    """Raise InUseError where any process is `reading` a folder; what those that are gone left is removed."""
    for mark in folder.glob(f"{_READER}{'[0-9a-f]' * 8}"):
        lock = folder.with_name(mark.name)
        with hold(lock, thing, wait=False):
            mark.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


class _Holder(Stored):
    """What lies beside a lock."""

    pid: Number
    host: Name
    since: NotNegative


def _told(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _holder(file: Path) -> str:
    """Who holds a lock, by what it wrote beside it."""
    try:
        told = _Holder.read(_told(file))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.since))
        return f"process {told.pid} on {told.host!r} since {since}"
    except (OSError, SealstError, ValueError, OverflowError):
        return "another process"
