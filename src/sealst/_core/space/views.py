"""Crops turned and mirrored, and what a function says of them on average: tissue has no upper side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sealst._errors import DataError
from sealst._validate import whole

#: symmetries of the square: four rotations, and their mirror images
N_SYMMETRIES = 8


def symmetry(crops: np.ndarray, code: int) -> np.ndarray:
    """Crops (n, px, px, 3) under one of the eight symmetries of the square; 0 leaves them as they are.

    The codes are those of `sealst._data.augment.dihedral`.
    """
    if code == 0:
        return crops
    # A pixel is moved as one thing.
    pixel = np.dtype((np.void, crops.itemsize * crops.shape[3]))
    turned = np.rot90(np.ascontiguousarray(crops).view(pixel)[..., 0], code % 4, axes=(1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if code >= 4 else turned)[..., None].view(crops.dtype)


def turned_back(grids: np.ndarray, code: int) -> np.ndarray:
    """Grids (n, side, side, width) of crops under a `symmetry`, as they lie in the crops as they were."""
    if code == 0:
        return grids
    return np.rot90(grids[:, :, ::-1] if code >= 4 else grids, -(code % 4), axes=(1, 2))


def over_views(function: Callable[[np.ndarray], np.ndarray], crops: np.ndarray, views: int) -> np.ndarray:
    """Mean of a function of crops, values (n, width), over the first `views` symmetries of the square.

    Parameters
    ----------
    function
        uint8 crops (n, px, px, 3) → values (n, width).
    crops
        uint8 (n, px, px, 3).
    views
        1 to 8; 1 is the crop as it is.
    """
    return first_and_mean(function, crops, views)[1]


def first_and_mean(
    function: Callable[[np.ndarray], np.ndarray], crops: np.ndarray, views: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a function says of crops as they are, and beside it `over_views`; nothing is computed twice."""
    first = function(crops)
    if views == 1:
        return first, first
    total = first.astype(np.float64)
    for code in range(1, views):
        total += function(symmetry(crops, code))
    return first, (total / views).astype(np.float32)


def check_views(views: int) -> int:
    """A number of views, or an error that says which there are."""
    found = whole("views", views, least=1)
    if found > N_SYMMETRIES:
        raise DataError(f"`views` is {found}, but a square has {N_SYMMETRIES} symmetries; use 1 to {N_SYMMETRIES}.")
    return found
