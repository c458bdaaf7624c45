"""What is known of an image's scale: its own coordinate system, what a caller states, and the array of spots."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np

from sealst._core.space.geometry import apply_affine, similarity_scale
from sealst._core.space.lattice import pitch
from sealst._errors import DataError, ScaleError
from sealst._section.images import between, mpp_of


def stated_scales(
    element: Any,
    spots: gpd.GeoDataFrame,
    system: str,
    *,
    name: str,
    mpp: float | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
) -> dict[str, float]:
    """µm per pixel of an image by every statement of it, the most trusted first.

    Parameters
    ----------
    element
        Image.
    spots
        Shapes of a region.
    system
        Coordinate system in which image and spots meet.
    name
        Name of the region, for messages.
    mpp, pitch_um, spot_um
        What is stated: µm per pixel, distance between the centres of neighbouring spots, diameter of a spot.

    Raises
    ------
    ScaleError
        When image and spots are stretched against each other, or the spots do not tell what is needed of them.
    """
    sources: dict[str, float] = {}
    if (own := mpp_of(element)) is not None:
        sources["the image's 'um' coordinate system"] = own
    if mpp is not None:
        sources["`mpp`"] = float(mpp)
    if pitch_um is not None:
        try:
            sources["`pitch_um`"] = float(pitch_um) / pitch(spot_centres(element, spots, system))
        except DataError as error:
            raise ScaleError(f"`pitch_um` gives no scale for {name!r}: {error}") from error
    if spot_um is not None:
        ratio = similarity_scale(between(spots, element, system))
        if "radius" not in spots or ratio is None:
            why = "they are stretched against the image" if "radius" in spots else "they are no circles"
            raise ScaleError(f"`spot_um` gives no scale for {name!r}: its shapes have no diameter, {why}.")
        sources["`spot_um`"] = float(spot_um) / (2 * float(spots["radius"].median()) * ratio)
    return sources


def spot_centres(element: Any, spots: gpd.GeoDataFrame, system: str) -> np.ndarray:
    """Centres of spots in pixels of an image, (n, 2)."""
    points = spots.geometry.centroid
    return apply_affine(between(spots, element, system), np.column_stack([points.x, points.y]))
