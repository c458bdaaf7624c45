"""Read whole slides without spots."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from spatialdata import SpatialData
from spatialdata.transformations import Identity, Scale

from sealst._errors import ScaleError
from sealst._files import visible
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import multiscale
from sealst._section.pyramid import extended
from sealst._validate import check_section, patient_text, section_name
from sealst.io._images.files import TIFF_SUFFIXES, VENDOR_SUFFIXES, open_image


def read_wsi(
    path: str | PathLike[str],
    *,
    section: str | None = None,
    patient: str | None = None,
    organ: str = "unknown",
    technology: str = "H&E",
    mpp: float | None = None,
) -> SpatialData:
    """Read an H&E slide that has no spots.

    Pixels stay on disk until they are needed. Cut the slide into tiles by `sealst.pp.tile`, which stand for spots in
    every later call.

    Parameters
    ----------
    path
        Image file, see `sealst.io.open_image`.
    section
        Name of the section; by default the file's name without its ending, other characters than letters, digits,
        ``_``, ``-`` and ``.`` replaced by ``_``.
    patient, organ, technology
        Kept for `sealst.pp.tile`, which writes them to ``.obs``. `patient` defaults to the name of the section.
    mpp
        µm per pixel at full resolution, where the file does not state it. Where it does, the two must agree within 5 %.

    Returns
    -------
    SpatialData with

    - ``images["<section>_he"]``: multiscale image, uint8, (c, y, x), lazy; coordinate systems ``"global"`` (pixels) and
      ``"um"`` (µm)
    - ``attrs["<section>_he"]``: `patient`, `organ`, `technology`, `mpp`, `mpp_source`, `path`; `lost`, places in pixels
      (x0, y0, x1, y1) that the file does not hold, where there are any

    Raises
    ------
    ScaleError
        When the scale is not known, or contradictory.
    DataError
        When the file cannot be read as an H&E image.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_wsi("slide.svs", patient="p1", organ="breast")  # doctest: +SKIP
    >>> sl.pp.tile(sdata)  # doctest: +SKIP
    """
    name = section_name(Path(path).stem.removesuffix(".ome")) if section is None else section
    check_section(name)
    slide = open_image(path, mpp=mpp)
    if slide.mpp is None:
        raise ScaleError(
            f"{Path(slide.path).name} does not state its physical scale. Pass `mpp=`, in µm per pixel (about 0.25 for "
            "a 40x scan, 0.5 for 20x; the scanner's report has the exact number)."
        )
    transforms = {"global": Identity(), Keys.UM: Scale([slide.mpp, slide.mpp], axes=("x", "y"))}
    levels = extended(slide.readable)
    facts: dict[str, Any] = {
        Keys.PATIENT: patient_text(patient) or name,
        Keys.ORGAN: organ,
        Keys.TECHNOLOGY: technology,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "path": slide.path,
    } | slide.facts
    height, width = slide.shape
    logger.info("%s: %d x %d px, %.4g µm/px (%s)", name, width, height, slide.mpp, slide.mpp_source)
    return SpatialData(images={Keys.image(name): multiscale(levels, transforms)}, attrs={Keys.image(name): facts})


def recognise(path: Path) -> bool:
    """Whether a path looks like a whole slide, by names only."""
    if path.is_dir():
        return any(inner.suffix.lower() in (".dcm", ".dicom") for inner in visible(path).values())
    return path.suffix.lower() in (*TIFF_SUFFIXES, *VENDOR_SUFFIXES)
