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
_UM = {"pm": 1e-6, "å": 1e-4, "nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0}
_UM |= {"micron": 1.0, "microns": 1.0, "micrometer": 1.0}
_RESOLUTION_UNIT_UM = {2: 25400.0, 3: 10000.0}
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
    text = page.description
    found = {
        "OME-XML PhysicalSize": _of_ome(tif.ome_metadata, page.imagewidth, page.imagelength) if tif.is_ome else None,
        "Aperio MPP": _of_aperio(text),
        "Philips DICOM_PIXEL_SPACING": _of_philips(text) if tif.is_philips else None,
        "ImageJ unit": _of_imagej(tif, page),
        "TIFF resolution tags": _of_tags(page),
    }
    return {where: value for where, value in found.items() if value is not None}


def _of_ome(xml: str | None, width: int, height: int) -> tuple[float, float] | None:
    try:
        root = ElementTree.fromstring(xml or "")
    except ElementTree.ParseError:
        return None
    for pixels in root.iter():
        if not pixels.tag.endswith("Pixels") or (pixels.get("SizeX"), pixels.get("SizeY")) != (str(width), str(height)):
            continue
        sizes = []
        for axis in "XY":
            unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("\N{GREEK SMALL LETTER MU}", "µ")
            size = _number(pixels.get(f"PhysicalSize{axis}", ""))
            if size is None or unit.lower() not in _UM:
                return None
            sizes.append(size * _UM[unit.lower()])
        return sizes[0], sizes[1]
    return None


def _of_aperio(description: str) -> tuple[float, float] | None:
    found = re.search(rf"\bMPP\s*=\s*{_NUMBER}", description) if description.startswith("Aperio") else None
    value = _number(found.group(1)) if found else None
    return None if value is None else (value, value)


def _of_philips(xml: str) -> tuple[float, float] | None:
    # Row spacing (y) before column spacing (x), in mm; the first entry is the finest level.
    found = re.search(rf'DICOM_PIXEL_SPACING"[^>]*>\s*"{_NUMBER}"\s+"{_NUMBER}"', xml.replace("&quot;", '"'))
    return (float(found.group(2)) * 1e3, float(found.group(1)) * 1e3) if found else None


def _of_imagej(tif: Any, page: Any) -> tuple[float, float] | None:
    unit = str((tif.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ").lower() if tif.is_imagej else ""
    return _per_resolution(page, _UM[unit]) if unit in _UM else None


def _of_tags(page: Any) -> tuple[float, float] | None:
    unit = page.tags.valueof(_RESOLUTION_UNIT, default=None)
    return _per_resolution(page, _RESOLUTION_UNIT_UM[int(unit)]) if unit in _RESOLUTION_UNIT_UM else None


def _per_resolution(page: Any, unit_um: float) -> tuple[float, float] | None:
    sizes = []
    for tag in (_X_RESOLUTION, _Y_RESOLUTION):
        value = page.tags.valueof(tag, default=None)
        if not isinstance(value, tuple) or len(value) != 2 or not all(value):
            return None
        sizes.append(unit_um * value[1] / value[0])
    return sizes[0], sizes[1]


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", "."))
    except ValueError:
        return None
