"""The formats that sealst reads, one record each; a new reader is one more line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from spatialdata import SpatialData

from sealst._errors import DataError
from sealst._files import absolute, is_store, put_back, visible
from sealst._validate import check_choice, listed
from sealst.io._anndata import read_h5ad_with_image
from sealst.io._hest import samples as _hest
from sealst.io._images import wsi as _wsi
from sealst.io._spaceranger import visium as _visium
from sealst.io._spaceranger import visium_hd as _visium_hd
from sealst.io._st import read_st
from sealst.io._stores.store import open_store
from sealst.io._xenium import runs as _xenium

_PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
#: tables of a legacy ST folder that hold no counts, by a word in their name
_NO_COUNTS = ("selection", "annotation", "cluster", "coordinates", "label", "spot_data")


@dataclass(frozen=True)
class Format:
    """One kind of folder or file that holds a section."""

    name: str
    #: cheap test by names of files
    recognises: Callable[[Path], bool]
    #: path and the reader's own options to a section
    read: Callable[..., SpatialData]
    #: public name of the reader, for messages
    reader: str
    #: what a folder must hold, for messages
    needs: str


def read(path: str | PathLike[str], *, format: str | None = None, **options: Any) -> SpatialData:
    """Read a section, whatever its format.

    The format is recognised by the names of the files; `sealst.io.check` tells what it is, and what is in it.

    Parameters
    ----------
    path
        Folder or file with one section: the output of Space Ranger (Visium, Visium HD) or of the Xenium analyzer, a
        section of HEST-1k, a folder of the legacy Spatial Transcriptomics array, a slide image, an AnnData (h5ad, with
        ``image=``), or a SpatialData zarr store.
    format
        ``"visium"``, ``"visium_hd"``, ``"xenium"``, ``"hest"``, ``"h5ad"``, ``"st"``, ``"wsi"`` or ``"zarr"``; by
        default what is recognised.
    options
        Passed on to the reader: ``section=``, ``patient=``, ``organ=``, ``mpp=``, … (a zarr store takes those of
        `spatialdata.read_zarr`).

    Returns
    -------
    SpatialData as from the reader of the format, such as `sealst.io.read_visium`.

    Raises
    ------
    DataError
        When nothing is at `path`, the format is not recognised, or several fit.

    Examples
    --------
    >>> sdata = sl.io.read("outs", section="s1", patient="A", organ="breast")  # doctest: +SKIP
    """
    found = absolute(path)
    return format_of(found, format).read(found, **options)


def format_of(path: Path, name: str | None = None) -> Format:
    """Return the one format of a folder or file; `name` chooses among several."""
    put_back(path)
    if name is not None:
        check_choice("format", name, list(FORMATS))
        return FORMATS[name]
    if not path.exists():
        raise DataError(f"Nothing at {str(path)!r} (looked for {str(path.absolute())!r}).")
    fitting = [one for one in FORMATS.values() if one.recognises(path)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{str(path)!r} looks like several formats: {listed(one.name for one in fitting)}. Name one with `format=`."
        )
    needs = "\n".join(f"- {one.name} ({one.reader}): {one.needs}" for one in FORMATS.values())
    if path.is_file():
        found = f"a file of type {path.suffix or 'unknown'!r}"
    else:
        inside = [name + "/" * p.is_dir() for name, p in visible(path).items()]
        found = listed(inside, 12) if inside else "an empty folder"
    raise DataError(f"The format of {str(path)!r} is not recognised; found {found}. Expected one of\n{needs}")


def _st_files(path: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Tables of counts, tables of spots and pictures of a legacy ST folder."""
    files = [p for p in visible(path).values() if p.is_file()]
    tables = [p for p in files if p.name.lower().endswith((".tsv", ".tsv.gz"))]
    spots = [p for p in tables if "selection" in p.name.lower()]
    counts = [p for p in tables if not any(word in p.name.lower() for word in _NO_COUNTS)]
    return counts, spots, [p for p in files if p.suffix.lower() in _PICTURES]


def _read_st_folder(path: Path, **options: Any) -> SpatialData:
    roles = dict(zip(("counts", "spots", "image"), _st_files(path), strict=True))
    for role, files in roles.items():
        if role not in options and len(files) != 1:
            raise DataError(
                f"{str(path)!r}: expected one file of {role}, found {listed(p.name for p in files)}. Name it, e.g. "
                f"`sl.io.read(path, {role}=...)`."
            )
    chosen = {role: options.pop(role, files[0] if files else None) for role, files in roles.items()}
    return read_st(**{"section": path.name, "organ": "unknown"} | options | chosen)


FORMATS = {
    one.name: one
    for one in (
        Format("visium", _visium.recognise, _visium.read_visium, "sl.io.read_visium",
               "output of Space Ranger: '*feature_bc_matrix.h5' and 'spatial/' with positions and scale factors"),
        Format("visium_hd", _visium_hd.recognise, _visium_hd.read_visium_hd, "sl.io.read_visium_hd",
               "output of Space Ranger with 'binned_outputs/square_*um/' (of cells 'segmented_outputs')"),
        Format("xenium", _xenium.recognise, _xenium.read_xenium, "sl.io.read_xenium",
               "output of the Xenium analyzer with 'experiment.xenium'"),
        Format("hest", _hest.recognise, _hest.read_hest, "sl.io.read_hest",
               "the folder of HEST-1k with 'st/*.h5ad' and 'wsis/', or one of these tables"),
        Format("h5ad", lambda path: path.suffix == ".h5ad" and path.is_file() and not _hest.recognise(path),
               read_h5ad_with_image, "sl.io.from_anndata",
               "a table of one section (AnnData, .h5ad) whose picture is named with `image=`"),
        Format("st", lambda path: all(_st_files(path)[:2]), _read_st_folder, "sl.io.read_st",
               "a folder of the legacy array: one table of counts (tsv), one '*selection*.tsv' and one image"),
        Format("wsi", _wsi.recognise, _wsi.read_wsi, "sl.io.read_wsi",
               "one slide image (svs, tiff, ndpi, mrxs, …) or a folder of DICOM files"),
        Format("zarr", is_store, open_store, "spatialdata.read_zarr", "a store that `sdata.write(path)` made"),
    )
}  # fmt: skip
