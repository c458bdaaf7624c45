"""Write elements back to a zarr store so that a crash never loses data.

New elements are written next to the store, and only when all of them are complete they change places with the old ones,
folder by folder. What a crash leaves half done is finished when the store is opened next.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import zarr
from filelock import FileLock
from spatialdata import SpatialData, read_zarr

from sealst._errors import DataError
from sealst._files import replace_folder
from sealst._logging import logger, quiet_writing
from sealst.io._stores.linked import attach, is_linked

_KINDS = ("images", "labels", "shapes", "tables")
_COMPLETE = "complete"


def open_store(path: Path, **options: Any) -> SpatialData:
    """Read a store; pixels stay on disk, or in a slide's own file. A save that was cut off is finished first."""
    if is_unfinished(path):
        with _lock(path):
            # Another process may have been in the middle of it, and be done now.
            if is_unfinished(path):
                logger.info("Finishing a save of %s that was cut off.", path.name)
                _swap(_stage(path), path)
    sdata = read_zarr(path, **options)
    selection = options.get("selection")
    return sdata if selection is not None and "images" not in selection else attach(sdata)


def is_unfinished(path: Path) -> bool:
    """Whether a save was cut off after all of it was written."""
    return (_stage(path) / _COMPLETE).exists()


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"))


def write_back(sdata: SpatialData, path: Path, replaced: Collection[str] = (), gone: Collection[str] = ()) -> None:
    """Replace tables and shapes of a store by those of `sdata`, and remove the elements in `gone` (``kind/name``).

    Of images and labels only those are written that the store lacks or that are named in `replaced`.
    """
    if (version := zarr.open_group(str(path), mode="r").metadata.zarr_format) != 3:
        raise DataError(
            f"{str(path)!r} is a store of zarr format {version}, in which nothing can be replaced. Write it anew: "
            "`sdata.write('new.zarr')`."
        )
    with _lock(path):
        _write_back(sdata, path, replaced, gone)


def _write_back(sdata: SpatialData, path: Path, replaced: Collection[str], gone: Collection[str]) -> None:
    stage = _stage(path)
    if is_unfinished(path):
        _swap(stage, path)
    shutil.rmtree(stage, ignore_errors=True)
    rasters = {
        kind: {
            name: element
            for name, element in getattr(sdata, kind).items()
            if f"{kind}/{name}" in replaced or not ((path / kind / name).exists() or is_linked(sdata, name))
        }
        for kind in ("images", "labels")
    }
    part = SpatialData(**rasters, shapes=dict(sdata.shapes), tables=dict(sdata.tables))
    try:
        stage.mkdir()
        with quiet_writing():
            # Regions that are labels or points stay where they are.
            warnings.filterwarnings("ignore", message=".*annotates.*")
            warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
            part.write(stage / "new", update_sdata_path=False, consolidate_metadata=False)
        (stage / "gone").write_text("\n".join(gone), encoding="utf-8")
        (stage / _COMPLETE).touch()
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    _swap(stage, path)


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


def write_whole(sdata: SpatialData, path: Path) -> None:
    """Write a store, in place of what is there; it has its name only once it is complete."""
    part = _stage(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        with quiet_writing():
            sdata.write(part, update_sdata_path=False)
        replace_folder(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _stage(path: Path) -> Path:
    # Beside the store: renaming works within one file system only.
    return path.parent / f".{path.name}.saving"


def _swap(stage: Path, store: Path) -> None:
    """Put the new elements in their places; may be called again after it was cut off at any point."""
    for kind in _KINDS:
        new, old = stage / "new" / kind, stage / "old" / kind
        if not new.is_dir():
            continue
        if not (store / kind / "zarr.json").exists():
            (store / kind).mkdir(exist_ok=True)
            shutil.copy(new / "zarr.json", store / kind / "zarr.json")
        old.mkdir(parents=True, exist_ok=True)
        for element in sorted(p for p in new.iterdir() if p.is_dir()):
            target = store / kind / element.name
            if target.exists():
                os.replace(target, old / element.name)
            os.replace(element, target)
    for name in (stage / "gone").read_text(encoding="utf-8").splitlines():
        if (store / name).exists():
            (stage / "old" / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(store / name, stage / "old" / name)
    with warnings.catch_warnings():
        # Shapes are parquet files, which zarr does not know.
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(str(store))
    shutil.rmtree(stage)
