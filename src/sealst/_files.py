"""Write text files and folders that appear complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sealst._errors import CheckpointError


def write_text(path: Path, text: str) -> None:
    """Write a text file through a temporary one beside it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Inside a ``with`` block, a temporary file beside `path`; afterwards it stands at `path`."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
        _swap(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _swap(work: Path, path: Path) -> None:
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
