"""Stores of sections: read, written whole and written back, with their pictures or without.

A crash never loses data: new elements are written aside, and only when all of them are complete they change places with
the old ones, folder by folder. What a crash leaves half done is finished when the store is opened next, see `saving`.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
import zarr
from pydantic import Field
from spatialdata import SpatialData, read_zarr
from spatialdata.transformations import Affine, get_transformation

from sealst import _section
from sealst._core.sparse import check_table
from sealst._errors import DataError, InUseError, SealstError
from sealst._files import ELEMENTS, absolute, new_folder, put_back, sweep, visible, written_through
from sealst._given.schema import Count, Finite, Name, Positive, Stored, Text
from sealst._logging import logger, quiet_writing, warn
from sealst._process.locks import hold
from sealst._section.pyramid import extended
from sealst._validate import listed
from sealst.io._images.files import open_image
from sealst.io._stores import saving

#: file by which a store is known
_MARKER = "zarr.json"
#: entry of an image's facts in ``attrs``: how a picture that is not in the store is placed
_LINK = "linked"
_Row = Annotated[tuple[Finite, Finite, Finite], Field(strict=False)]


class _Placed(Stored):
    """How a picture that is not in the store is placed, and how large it was."""

    shape: Annotated[tuple[Count, Count], Field(strict=False)]
    coordinate_systems: dict[Name, Annotated[tuple[_Row, _Row, _Row], Field(strict=False)]]


class _Linked(Stored):
    """What a store says of such a picture."""

    path: Text
    mpp: Positive | None = None
    linked: _Placed


#: stores that sections were read from or saved to, with what `_stamps` said then
_known: WeakKeyDictionary[SpatialData, tuple[Path, dict[str, tuple[int, int]]]] = WeakKeyDictionary()


def open_store(path: Path, **options: Any) -> SpatialData:
    """Read a store; pixels stay on disk, or in a slide's own file. A save that was cut off is finished first."""
    if saving.is_unfinished(path):
        _finish(path)
    # Taken before: a save while this reads must not go unnoticed.
    stamps = _stamps(path)
    sdata = read_checked(path, **options)
    _known[sdata] = path, stamps
    selection = options.get("selection")
    return sdata if selection is not None and "images" not in selection else attach(sdata)


def _finish(path: Path) -> None:
    """Finish a save that was cut off, or say why not; a store that is half old and half new is not read."""
    said = f"A save into {str(path)!r} was cut off, and is not finished"
    try:
        with _lock(path):
            # Another process may have been in the middle of it, and be done now.
            if saving.is_unfinished(path):
                saving.finish(path)
                logger.info("Finished a save into %s that was cut off.", path.name)
    except DataError as error:
        warn(f"{said}: {error} The store is read as it stands; `sl.io.recover` says what can be done.")
    except OSError as error:
        why = f"{said}, as it cannot be written to ({error.strerror}). Have its owner call `sl.io.recover(path)`"
        if saving.is_begun(path):
            raise DataError(f"{why}; until then it is partly old and partly new.") from error
        warn(f"{why}; it is read as it was before.")


def read_checked(path: Path, **options: Any) -> SpatialData:
    """Read a store as it is; one whose tables have sparse matrices with indices outside is refused."""
    sdata = read_zarr(path, **options)
    for name, table in sdata.tables.items():
        check_table(table, where=f"table {name!r} of {path.name}")
    return sdata


def _lock(path: Path) -> AbstractContextManager[None]:
    return hold(path.with_name(f".{path.name}.lock"), f"The store {str(path)!r}")


def write_back(sdata: SpatialData, path: Path, replaced: Collection[str] = (), gone: Collection[str] = ()) -> None:
    """Replace tables and shapes of a store by those of `sdata`, and remove the elements in `gone` (``kind/name``).

    Of images and labels only those are written that the store lacks or that are named in `replaced`.
    """
    if (version := zarr.open_group(str(path), mode="r").metadata.zarr_format) != 3:
        raise DataError(
            f"{str(path)!r} is a store of zarr format {version}, in which nothing can be replaced. Write it anew: "
            "`sdata.write('new.zarr')`."
        )
    # Beside a link there may be another disk.
    path = written_through(path)
    with _lock(path):
        if saving.is_unfinished(path):
            try:
                saving.finish(path)
            except DataError as error:
                raise DataError(
                    f"An earlier save into {str(path)!r} was cut off: {error} Nothing is saved on top of it; "
                    "`sl.io.recover` says what can be done."
                ) from error
        _refuse_changed(sdata, path, gone)
        new = saving.stage(path)
        rasters = {
            kind: {
                name: element
                for name, element in getattr(sdata, kind).items()
                if f"{kind}/{name}" in replaced
                or not ((path / kind / name).exists() or _LINK in _picture_facts(sdata, name))
            }
            for kind in ("images", "labels")
        }
        part = SpatialData(**rasters, shapes=dict(sdata.shapes), tables=dict(sdata.tables))
        try:
            with quiet_writing():
                # Regions that are labels or points stay where they are.
                warnings.filterwarnings("ignore", message=".*annotates.*")
                warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
                part.write(new, update_sdata_path=False, consolidate_metadata=False)
        except BaseException:
            shutil.rmtree(new.parent, ignore_errors=True)
            raise
        # Cut off from here on, the save is finished by the next one, which must not take it for another's.
        _known.pop(sdata, None)
        saving.commit(path, gone)
        _known[sdata] = path, _stamps(path)


def remember(sdata: SpatialData) -> None:
    """Note how the store of a section looks now, unless it was noted when sealst read it."""
    if sdata.path is not None and sdata not in _known:
        path = Path(sdata.path)
        _known[sdata] = path, _stamps(path)


def _stamps(path: Path) -> dict[str, tuple[int, int]]:
    """When every element (``kind/name``) of a store was written."""
    found = {}
    for kind in ELEMENTS:
        for name, element in visible(path / kind).items():
            with contextlib.suppress(OSError):
                found[f"{kind}/{name}"] = element.stat().st_mtime_ns, (element / "zarr.json").stat().st_mtime_ns
    return found


def _refuse_changed(sdata: SpatialData, path: Path, gone: Collection[str]) -> None:
    """Raise where somebody else wrote what is about to be replaced; call with the lock held."""
    where, before = _known.get(sdata, (None, {}))
    if where is None or where.resolve() != path.resolve():
        return
    now = _stamps(path)
    ours = {f"{kind}/{name}" for kind in ("shapes", "tables") for name in getattr(sdata, kind)} | set(gone)
    if changed := sorted(name for name in ours if now.get(name) != before.get(name)):
        raise InUseError(
            f"{str(path)!r} was changed by somebody else since this section was read from it ({listed(changed, 4)}). "
            "Nothing was written, so that nothing of theirs is lost. Read the section again and repeat what was done "
            "to it, or write this one to a store of its own: `sdata.write('other.zarr')`."
        )


def refresh(sdata: SpatialData, path: Path, names: Collection[str]) -> None:
    """Have replaced images and labels read their new pixels, as they may be computed from the old ones."""
    rasters = [name.split("/", 1) for name in names if name.startswith(("images/", "labels/"))]
    if not rasters:
        return
    stored = read_zarr(path, selection=("images", "labels"))
    for kind, name in rasters:
        elements = getattr(sdata, kind)
        del elements[name]
        elements[name] = stored[name]


def write_whole(sdata: SpatialData, path: Path, *, overwrite: bool = False) -> None:
    """Write a store, with `overwrite` in place of what is there; it has its name only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if path.exists() and not overwrite:
            # Of a process that was faster, as callers have looked.
            raise InUseError(f"{str(path)!r} was written by another process meanwhile; it is left as it is.")
        with new_folder(path, overwrite=True, marker=_MARKER) as work:
            # The folder is there for it.
            work.rmdir()
            with quiet_writing():
                sdata.write(work, update_sdata_path=False)


def attach(sdata: SpatialData) -> SpatialData:
    """Open the pictures of a store that are not in it, in place; warns about files that are gone."""
    for name, facts in sdata.attrs.items():
        if not isinstance(facts, dict) or _LINK not in facts or name in sdata.images:
            continue
        try:
            held = _Linked.of(facts, where=f"`sdata.attrs[{name!r}]`", kind=DataError)
            slide = open_image(held.path, mpp=held.mpp)
            if slide.shape != held.linked.shape:
                raise DataError(f"it has {slide.shape} pixels now, {held.linked.shape} before.")
        except SealstError as error:
            warn(
                f"The picture {name!r} of this store is not at hand: {error} Results can be read; calls that need "
                f"pixels cannot run. Where the file has moved, put its place into `sdata.attrs[{name!r}]['path']` and "
                "call `sl.io.write_wsi` again."
            )
            continue
        systems = {
            system: Affine(np.array(matrix), ("x", "y"), ("x", "y"))
            for system, matrix in held.linked.coordinate_systems.items()
        }
        sdata.images[name] = _section.multiscale(extended(slide.readable), systems)
    return sdata


def _picture_facts(sdata: SpatialData, name: str) -> dict[str, Any]:
    """What the section says of a picture: its file, and how it is placed where the store leaves it there."""
    facts = sdata.attrs.get(name)
    return facts if isinstance(facts, dict) else {}


def write_wsi(sdata: SpatialData, path: str | PathLike[str], *, pixels: bool = False, overwrite: bool = False) -> None:
    """Write a slide with its tiles and results to a zarr store, without its pixels.

    The store holds where the slide's file is. `sealst.io.read` opens both, so that every call works as before; a plain
    `spatialdata.read_zarr` gives all but the picture.

    Parameters
    ----------
    sdata
        Slide as from `sealst.io.read_wsi`, with whatever was added to it.
    path
        Folder of the store, ending in ``.zarr``.
    pixels
        Whether to copy the picture into the store (several gigabytes for a whole slide), as ``sdata.write(path)`` does.
    overwrite
        Whether to replace a store. One that `sdata` itself reads from is refused.

    Returns
    -------
    None; the store appears complete or not at all.

    Raises
    ------
    DataError
        When something stands at `path`, or no picture of `sdata` was read from a file.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_wsi("slide.svs")  # doctest: +SKIP
    >>> sl.pp.tile(sdata)  # doctest: +SKIP
    >>> sl.io.write_wsi(sdata, "slide.zarr")  # doctest: +SKIP
    >>> sdata = sl.io.read("slide.zarr")  # doctest: +SKIP
    """
    _section.needs_pixels(sdata)
    target = written_through(absolute(path))
    put_back(target)
    if target.exists():
        if not overwrite:
            raise DataError(f"{str(target)!r} exists; replace it with `overwrite=True`.")
        if not (target / _MARKER).is_file():
            raise DataError(f"{str(target)!r} is no SpatialData store; it is not replaced.")
        if sdata.path is not None and Path(sdata.path).resolve() == target.resolve():
            raise DataError(f"{str(target)!r} is the store that `sdata` reads from; write to another path.")
    linked: dict[str, Any] = {}
    for name, element in {} if pixels else sdata.images.items():
        if (facts := _picture_facts(sdata, name)).get("path"):
            # What is needed to open it again.
            systems = get_transformation(element, get_all=True)
            placed = {system: _section.affine(element, system).tolist() for system in systems}
            shape = [int(n) for n in _section.image_levels(element)[0].shape[1:]]
            linked[name] = facts | {_LINK: {"shape": shape, "coordinate_systems": placed}}
    if not pixels and sdata.images and not linked:
        raise DataError(
            f"No picture of this SpatialData ({listed(sdata.images)}) was read from a slide's file by "
            "`sl.io.read_wsi`, so a store without pixels would lose it. Pass `pixels=True`."
        )
    # What an earlier store left out may be written now.
    attrs = {
        key: {name: fact for name, fact in facts.items() if name != _LINK} if isinstance(facts, dict) else facts
        for key, facts in sdata.attrs.items()
    }
    part = SpatialData(
        images={name: image for name, image in sdata.images.items() if name not in linked},
        labels=dict(sdata.labels),
        points=dict(sdata.points),
        shapes=dict(sdata.shapes),
        tables=dict(sdata.tables),
        attrs=attrs | linked,
    )
    write_whole(part, target, overwrite=overwrite)
    files = listed(Path(facts["path"]).name for facts in linked.values())
    logger.info("Wrote %s%s", target, "" if pixels else f"; pictures stay in {files}")


def recover(path: str | PathLike[str], *, discard: bool = False) -> None:
    """Mend what a killed process left of writing a store, a model or any other folder of results.

    Reading a store finishes a save that was cut off by itself, as long as the elements that it concerns are what they
    were. This call says why it does not, and finishes or forgets it. Where a system cannot exchange two folders in one
    step, a process that was killed while it replaced one may have left nothing under its name: the earlier one gets its
    name back. Hidden folders that such processes left beside `path` are removed; those of living ones stay.

    Parameters
    ----------
    path
        Store or folder, by the name that it has, or should have.
    discard
        Whether to forget a save into a store that was cut off; its elements then stay as they are now.

    Returns
    -------
    None; a log line says what was done.

    Raises
    ------
    DataError
        When nothing is at `path`, or a save cannot be finished since the store has changed; the text says in what.

    Examples
    --------
    >>> sl.io.recover("sections/a.zarr")  # doctest: +SKIP
    """
    target = written_through(absolute(path))
    there = target.exists()
    sweep(target)
    if not target.exists():
        raise DataError(f"Nothing at {str(target)!r}, and nothing beside it that a killed process left of it.")
    done = [] if there else ["what a killed process had moved aside has its name again"]
    if saving.is_unfinished(target):
        with _lock(target):
            if discard:
                saving.discard(target)
            else:
                try:
                    saving.finish(target)
                except DataError as error:
                    raise DataError(
                        f"The save into {str(target)!r} that was cut off cannot be finished: {error} Pass "
                        "`discard=True` to forget it and keep the store as it is, or restore the store from a copy."
                    ) from error
        done.append(f"a save that was cut off is {'forgotten' if discard else 'finished'}")
    logger.info("%s: %s", target, "; ".join(done) or "nothing was left of killed processes")
