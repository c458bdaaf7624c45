"""Physical scale as image files state it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from sealst._core.space.geometry import TOLERANCE, agreed
from sealst._errors import ScaleError

#: µm per pixel that a microscope or slide scanner can have; what lies outside is a default of a program (72 dpi)
PLAUSIBLE = (0.05, 20.0)
_MAX_UNEVEN = 0.01
UM_PER_INCH = 25400.0
_UM = {"pm": 1e-6, "å": 1e-4, "nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": UM_PER_INCH}
_UM |= {"micron": 1.0, "microns": 1.0, "micrometer": 1.0}
_RESOLUTION_UNIT_UM = {2: UM_PER_INCH, 3: 10000.0}
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_NUMBER = r"(\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?)"

#: µm per pixel along x and y, by where they stand
Stated = dict[str, tuple[float, float]]


def scale_of(name: str, stated: Mapping[str, tuple[float, float]], mpp: float | None) -> tuple[float | None, str]:
    """µm per pixel and where it comes from, after checking that all statements agree; (None, "") without any."""
    sources: dict[str, float] = {}
    for where, (x, y) in stated.items():
        if not all(PLAUSIBLE[0] <= value <= PLAUSIBLE[1] for value in (x, y)):
            continue
        if abs(x - y) > _MAX_UNEVEN * min(x, y):
            raise ScaleError(
                f"{name}: its pixels are not square, {x:.4g} µm along x and {y:.4g} µm along y by {where}. Resample "
                "the image to square pixels, or correct the file's header."
            )
        sources[where] = (x + y) / 2
    if mpp is not None:
        # A header that contradicts itself is settled by the argument, one that only contradicts the argument is not.
        if any(abs(value - mpp) <= TOLERANCE * mpp for value in sources.values()):
            sources = {}
        sources = {"argument `mpp`": float(mpp)} | sources
    return agreed(sources, what=name) if sources else (None, "")


def of_tiff(tif: Any, page: Any) -> Stated:
    """What a TIFF file (tifffile) states about the pixels of a page, the most trusted first."""
    found: dict[str, tuple[float, float] | None] = {}
    if tif.is_ome:
        found["OME-XML PhysicalSize"] = _of_ome(tif.ome_metadata, page)
    text = page.description
    if text.startswith("Aperio") and (match := re.search(rf"\bMPP\s*=\s*{_NUMBER}", text)):
        value = float(match[1].replace(",", "."))
        found["Aperio MPP"] = (value, value)
    spacing = rf'DICOM_PIXEL_SPACING"[^>]*>\s*"{_NUMBER}"\s+"{_NUMBER}"'
    if tif.is_philips and (match := re.search(spacing, text.replace("&quot;", '"'))):
        # Row spacing (y) before column spacing (x), in mm; the first entry is the finest level.
        found["Philips DICOM_PIXEL_SPACING"] = (float(match[2]) * 1e3, float(match[1]) * 1e3)
    if tif.is_imagej:
        unit = str((tif.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ").lower()
        found["ImageJ unit"] = _per_resolution(page, _UM[unit]) if unit in _UM else None
    if (inch_or_cm := page.tags.valueof(_RESOLUTION_UNIT, default=None)) in _RESOLUTION_UNIT_UM:
        found["TIFF resolution tags"] = _per_resolution(page, _RESOLUTION_UNIT_UM[int(inch_or_cm)])
    return {where: value for where, value in found.items() if value is not None}


def ome_pixels(xml: str | None, page: Any) -> list[ElementTree.Element]:
    """Descriptions in OME-XML of pictures of a page's size; none where the text is no XML."""
    size = {"SizeX": str(page.imagewidth), "SizeY": str(page.imagelength)}
    try:
        found = ElementTree.fromstring(xml or "").iter()
    except ElementTree.ParseError:
        return []
    return [one for one in found if one.tag.endswith("Pixels") and size.items() <= one.attrib.items()]


def _of_ome(xml: str | None, page: Any) -> tuple[float, float] | None:
    for pixels in ome_pixels(xml, page)[:1]:
        try:
            units = [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XY"]
            um = [_UM[unit.replace("\N{GREEK SMALL LETTER MU}", "µ").lower()] for unit in units]
            x, y = (float(pixels.get(f"PhysicalSize{axis}", "").replace(",", ".")) for axis in "XY")
            return x * um[0], y * um[1]
        except (KeyError, ValueError):  # no unit of length, or no number
            return None
    return None


def _per_resolution(page: Any, unit_um: float) -> tuple[float, float] | None:
    sizes = []
    for tag in (_X_RESOLUTION, _Y_RESOLUTION):
        value = page.tags.valueof(tag, default=None)
        if not isinstance(value, tuple) or len(value) != 2 or not all(value):
            return None
        sizes.append(unit_um * value[1] / value[0])
    return sizes[0], sizes[1]
