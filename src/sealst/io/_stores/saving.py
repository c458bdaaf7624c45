"""Saves into a store that may be cut off at any point: what is new is there whole before anything is replaced.

``.saving`` in a store holds the new elements, and, once all of them are written, a list of what takes whose place, with
digests of both. It lies inside, so that it goes wherever its store goes and is gone with it. Who opens the store next
finishes what was cut off, if all that the list names is what it was; names that lead anywhere else are never followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import zarr
from pydantic import Field

from sealst._errors import DataError
from sealst._files import ELEMENTS, write_json
from sealst._given.schema import Name, Stored
from sealst._system.exchange import exchange

_FOLDER, _LIST, _NEW, _OLD = ".saving", "list.json", "new", "old"
_NAME = re.compile(r"[\w.-]*[\w-][\w.-]*")
#: bytes at either end of a file that count for its digest
_ENDS = 2**16


class Step(Stored):
    """One element that is replaced, added or removed."""

    #: ``kind/name``
    key: Name
    #: digest of what stands there before; None where nothing does
    old: Name | None
    #: digest of what stands there afterwards; None removes it
    new: Name | None


class _Steps(Stored):
    """The list of a save."""

    format: Literal[1]
    steps: Annotated[tuple[Step, ...], Field(strict=False)]


def stage(store: Path) -> Path:
    """Folder for new elements, below ``new``; what an earlier save left in it is removed."""
    folder = store / _FOLDER
    if folder.is_symlink():
        folder.unlink()
    # Without its list it is nothing that could be finished.
    (folder / _LIST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder / _NEW


def is_unfinished(store: Path) -> bool:
    """Whether a save was cut off after all of it was written."""
    return not (store / _FOLDER).is_symlink() and (store / _FOLDER / _LIST).is_file()


def is_begun(store: Path) -> bool:
    """Whether a save that was cut off had replaced something already."""
    return any(step.old != step.new and _is_done(store, step) for step in _read_list(store))


def commit(store: Path, gone: Collection[str]) -> None:
    """Put the elements of `stage` in their places, and remove the elements `gone`."""
    new = store / _FOLDER / _NEW
    added = [f"{kind}/{one.name}" for kind in ELEMENTS if (new / kind).is_dir() for one in _folders(new / kind)]
    steps = [Step(key=key, old=_digest(_place(store, key)), new=_digest(new / key)) for key in added]
    steps += [Step(key=key, old=old, new=None) for key in gone if (old := _digest(_place(store, key))) is not None]
    write_json(store / _FOLDER / _LIST, _Steps(format=1, steps=tuple(steps)).model_dump(), sync=True)
    _run(store, steps)


def finish(store: Path) -> None:
    """Finish a save that was cut off.

    Raises
    ------
    DataError
        When its list is damaged, or what it names is no longer what it was. Nothing is changed then.
    """
    steps = _read_list(store)
    _run(store, [step for step in steps if not _is_done(store, step)])


def discard(store: Path) -> None:
    """Forget a save that was cut off."""
    (store / _FOLDER / _LIST).unlink()
    shutil.rmtree(store / _FOLDER)


def _run(store: Path, steps: Sequence[Step]) -> None:
    saving = store / _FOLDER
    for step in steps:
        place, new, old = _place(store, step.key), saving / _NEW / step.key, saving / _OLD / step.key
        group = place.parent / "zarr.json"
        if step.new is not None and not group.exists():
            place.parent.mkdir(exist_ok=True)
            shutil.copy(new.parent / "zarr.json", group)
        # What is replaced stays below `.saving` until all is done.
        if step.new is not None and place.exists() and exchange(new, place):
            continue
        if place.exists():
            old.parent.mkdir(parents=True, exist_ok=True)
            os.replace(place, old)
        if step.new is not None:
            os.replace(new, place)
    with warnings.catch_warnings():
        # Shapes are parquet files, which zarr does not know.
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(str(store))
    for left in store.glob("zarr.*.partial"):
        # zarr's, of a process that was killed.
        left.unlink(missing_ok=True)
    discard(store)


def _is_done(store: Path, step: Step) -> bool:
    """Whether a step was taken; raises where it neither was nor can be."""
    saving = store / _FOLDER
    found = _digest(_place(store, step.key))
    if found == step.new:
        return True
    # Where names cannot be exchanged, the old one may be aside and the new one not yet in its place.
    before = found == step.old or (found is None and _digest(saving / _OLD / step.key) == step.old)
    if before and (step.new is None or _digest(saving / _NEW / step.key) == step.new):
        return False
    raise DataError(f"{step.key} is neither what it was before that save nor what the save would make of it.")


def _read_list(store: Path) -> Sequence[Step]:
    steps = _Steps.read(store / _FOLDER / _LIST, kind=DataError).steps
    for step in steps:
        _place(store, step.key)
    return steps


def _place(store: Path, key: str) -> Path:
    """Where an element stands; a key that leads out of the store is refused."""
    kind, _, name = key.partition("/")
    if kind not in ELEMENTS or not _NAME.fullmatch(name):
        raise DataError(f"A save into {store.name!r} names {key!r}, which is no element of a store.")
    if (store / kind).is_symlink():
        raise DataError(
            f"{kind!r} of {store.name!r} is a link to {os.readlink(store / kind)!r}; elements are replaced in the "
            "store alone. Put the folder itself in its place."
        )
    return store / kind / name


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir())


def _digest(element: Path) -> str | None:
    """Digest of the files of an element: names, sizes, and both ends of each; None where there is none."""
    if element.is_symlink():
        return hashlib.sha256(f"-> {os.readlink(element)}".encode()).hexdigest()
    if not element.exists():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in element.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(element).as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()
