"""Let two files or folders exchange their names in one step, where the system can."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

#: `renameat2` of Linux: a path is taken from the working folder, and both names are exchanged
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: the same of `renamex_np` of macOS
_RENAME_SWAP = 2


def exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two files or folders; False where that cannot be done, and both are as they were then."""
    call = _system_call()
    if call is None:
        return False
    # Said as Python's own renaming is, to whoever audits what happens to files.
    sys.audit("os.rename", str(a), str(b), -1, -1)
    # Old kernels and some network file systems refuse.
    return call(os.fsencode(a), os.fsencode(b)) == 0


@cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    """The system's function, from its C library; None where there is none."""
    if sys.platform == "win32":
        return None
    library: Any = ctypes.CDLL(None)
    if (linux := getattr(library, "renameat2", None)) is not None:
        linux.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        return lambda a, b: int(linux(_AT_FDCWD, a, _AT_FDCWD, b, _RENAME_EXCHANGE))
    if (mac := getattr(library, "renamex_np", None)) is not None:
        mac.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
        return lambda a, b: int(mac(a, b, _RENAME_SWAP))
    return None
