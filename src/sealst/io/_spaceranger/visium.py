"""Read Visium sections from the folder that Space Ranger writes."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from spatialdata import SpatialData

from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import visible
from sealst._keys import Keys
from sealst._section import record
from sealst._section.arrays import from_arrays
from sealst._section.pyramid import SlideImage
from sealst._validate import check_choice, section_name
from sealst.io._spaceranger.folders import BINS, KINDS, bin_folders, locate, prefixes, starting_folder
from sealst.io._spaceranger.picture import check_picture, choose_picture, fit_scale
from sealst.io._spaceranger.positions import pixels, read_run

PITCH_UM, SPOT_UM = 100.0, 55.0
#: µm between array columns (half a pitch, as rows are staggered) and between array rows
_STEP_UM = np.array([PITCH_UM / 2, PITCH_UM * np.sqrt(0.75)])
#: what `spot_diameter_fullres` spans, by current and by early documentation
_NOMINAL_UM = (65.0, SPOT_UM)


def recognise(path: Path) -> bool:
    """Whether a folder looks like a Visium section of Space Ranger, by names of files alone."""
    if not path.is_dir() or any(bin_folders(p) for p in (path, path / "outs")):
        return False
    return any(
        prefixes(p) and any(n == "spatial" or "tissue_positions" in n for n in visible(p))
        for p in (path, path / "outs")
    )


@documented
def read_visium(
    path: str | PathLike[str],
    image: str | PathLike[str] | np.ndarray | SlideImage | None = None,
    *,
    section: str | None = None,
    patient: str | None = None,
    organ: str = "unknown",
    mpp: float | None = None,
    counts: Literal["filtered", "raw"] = "filtered",
    in_tissue: bool = True,
    sample: str | None = None,
    coordinate_scale: float = 1.0,
) -> SpatialData:
    """Read a Visium section from the folder that Space Ranger writes.

    Versions 1 to 4 are read, also as they come from downloads: names with a sample's prefix, gzipped, all files in one
    folder, positions with or without a header whatever the file's name, columns renamed in a way that leaves one
    meaning. Counts and positions are joined by barcode, and refused where they cannot be of one run.

    The physical scale comes from the array, whose neighbours are 100 µm apart: a robust fit of the spots' pixels on
    their rows and columns, for rotated and mirrored arrays too. It must agree within 5 % with `mpp`, with what the
    image file states and with ``spot_diameter_fullres``, which spans 65 µm (55 by early documentation).

    Parameters
    ----------
    path
        Folder ``outs``, its parent, its ``spatial`` folder, or the file of the counts. Counts are the ``.h5`` file or
        the folder of ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv``.
    %(spaceranger.image)s
    section
        Name of the section; default the prefix of the files, else the name of the folder.
    patient, organ
        Written to ``.obs``. `patient` defaults to the name of the section.
    mpp
        µm per pixel of the image that is used. By default from the pitch of the array.
    counts
        ``"filtered"``, spots under tissue, or ``"raw"``, all spots.
    in_tissue
        Whether to leave out spots that are not ``in_tissue`` by the table of positions.
    sample
        Prefix of the files, where a folder holds several samples.
    %(spaceranger.coordinate_scale)s

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`, with image ``"<section>_he"``, circles of 55 µm ``"<section>_spots"``
    (index = barcodes), and in ``tables["table"]``

    - ``.X``: counts of genes; other features are left out, genes with one symbol are summed
    - ``.var["gene_ids"]``: str, Ensembl id (of the first gene with the symbol)
    - ``.obs["array_row"]``, ``.obs["array_col"]``: int; ``.obs["in_tissue"]``: bool
    - ``.uns["sealst"]["read_visium"]``: the scale, which picture, where they came from, and how many rows were dropped

    Raises
    ------
    DataError
        When files are missing, damaged or of different runs, barcodes occur twice, or spots lie off the array.
    ScaleError
        When the scale is unknown or contradictory, or the image is not the one the coordinates belong to.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_visium("run/outs", "slide.tif", section="P1_a", patient="P1")  # doctest: +SKIP

    References
    ----------
    10x Genomics, Space Ranger documentation, "Spatial outputs".
    """
    check_choice("counts", counts, KINDS)
    start = starting_folder(path)
    places = (start.parent,) if BINS.match(start.absolute().name) else (start, start / "outs")
    if found := next((b for p in places if (b := bin_folders(p))), None):
        raise DataError(
            f"{str(start)!r} is of Visium HD, with bins of {', '.join(map(str, sorted(found)))} µm. Read it with "
            "`sl.io.read_visium_hd`."
        )
    outs = locate(path, kind=counts, sample=sample)
    section = section or section_name(outs.sample)
    run = read_run(outs, kind=counts, in_tissue=in_tissue, section=section)
    picture = choose_picture(outs, image, factors=run.factors, coordinate_scale=coordinate_scale, section=section)
    nominal = {}
    if diameter := run.factors.get("spot_diameter_fullres"):
        nominal = {f"spot_diameter_fullres ({um:g} µm)": um / diameter / picture.scale for um in _NOMINAL_UM}
    _, scale, source = fit_scale(
        run, picture, _STEP_UM, tolerance_um=PITCH_UM / 2, mpp=mpp, nominal=nominal, section=section
    )
    xy = pixels(run.joined) * picture.scale
    check_picture(picture, xy, mpp=scale, section=section)
    sdata = from_arrays(
        picture.image,
        run.x,
        xy,
        genes=list(run.counts.var.index),
        mpp=scale,
        spot_um=SPOT_UM,
        section=section,
        spot_ids=list(run.joined.index),
        patient=patient,
        organ=organ,
        technology="Visium",
        array=run.joined[[Keys.ARRAY_ROW, Keys.ARRAY_COL]].to_numpy(),
        obs=run.joined[["in_tissue"]].astype(bool),
        var=run.counts.var,
    )
    entry = run.provenance | picture.provenance | {"mpp": scale, "mpp_source": source}
    record(sdata.tables[Keys.TABLE], "read_visium", entry)
    return sdata
