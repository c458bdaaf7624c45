"""Write slides without their pixels."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from spatialdata import SpatialData

from sealst._errors import DataError
from sealst._logging import logger
from sealst._validate import listed
from sealst.io._stores.linked import LINK, has_file, link
from sealst.io._stores.store import write_whole


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
    if not isinstance(sdata, SpatialData):
        raise TypeError(f"Expected a SpatialData, found {type(sdata).__name__}.")
    target = Path(path).expanduser().absolute()
    _check_target(sdata, target, overwrite)
    linked = {} if pixels else {name: link(sdata, name) for name in sdata.images if has_file(sdata, name)}
    if not pixels and sdata.images and not linked:
        raise DataError(
            f"No picture of this SpatialData ({listed(sdata.images)}) was read from a slide's file by "
            "`sl.io.read_wsi`, so a store without pixels would lose it. Pass `pixels=True`."
        )
    # What an earlier store left out may be written now.
    attrs = {
        key: {name: fact for name, fact in facts.items() if name != LINK} if isinstance(facts, dict) else facts
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
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(part, target)
    files = listed(Path(facts["path"]).name for facts in linked.values())
    logger.info("Wrote %s%s", target, "" if pixels else f"; pictures stay in {files}")


def _check_target(sdata: SpatialData, target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise DataError(f"{str(target)!r} exists; replace it with `overwrite=True`.")
    if not (target / "zarr.json").is_file():
        raise DataError(f"{str(target)!r} is no SpatialData store; it is not replaced.")
    if sdata.path is not None and Path(sdata.path).absolute() == target:
        raise DataError(f"{str(target)!r} is the store that `sdata` reads from; write to another path.")
