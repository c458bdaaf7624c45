"""What lies around a spot: means over its neighbourhood, weighted by distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from scipy.spatial import KDTree

from sealst._core.space.lattice import pitch
from sealst._core.splits import evenly
from sealst._errors import DataError

#: spots whose neighbours are looked up at once
_ROWS = 4096
#: spots of a patch
_PATCH = 25
#: where the bell curve ends, in units of its width
_REACH = 3.0


def surroundings(values: np.ndarray, xy: np.ndarray, width: float) -> np.ndarray:
    """Mean of values over each point's surroundings, itself included, weighted by a Gaussian of the distance.

    Parameters
    ----------
    values
        float (n, columns).
    xy
        Positions (n, 2), of one section.
    width
        Standard deviation of the Gaussian, in the unit of the positions; it ends at three times that.

    Returns
    -------
    (n, columns), in the type of `values`.

    Raises
    ------
    DataError
        When a position is not finite, or there is not one for every row.

    Examples
    --------
    >>> surroundings(np.array([[0.0], [2.0]]), np.array([[0.0, 0.0], [0.0, 1e-6]]), 1.0).round(3)
    array([[1.],
           [1.]])
    """
    xy = np.asarray(xy, dtype=np.float64)
    if xy.shape != (len(values), 2) or not np.isfinite(xy).all():
        raise DataError(
            f"Surroundings need a finite position in µm for each of {len(values)} spots, found an array of shape "
            f"{xy.shape} with {int((~np.isfinite(xy)).sum())} values that are not."
        )
    out, tree = np.empty_like(values), KDTree(xy)
    for start in range(0, len(xy), _ROWS):
        part = xy[start : start + _ROWS]
        near = KDTree(part).sparse_distance_matrix(tree, _REACH * width, output_type="coo_matrix")
        weight = np.exp(-0.5 * (near.data / width) ** 2)
        table = sp.csr_matrix((weight, (near.row, near.col)), shape=(len(part), len(xy)))
        out[start : start + _ROWS] = (table @ values) / np.asarray(table.sum(axis=1))
    return out


def common_pitch(positions: Sequence[np.ndarray]) -> float | None:
    """Median over sections of the distance between neighbouring spots; None where no section has one."""
    found = []
    for xy in positions:
        try:
            found.append(pitch(xy))
        except DataError:
            # Too few spots, unknown positions, or several spots at one.
            continue
    return float(np.median(found)) if found else None


def patches(xy: np.ndarray, most: int) -> np.ndarray:
    """Rows of at most `most` spots, in order: all, or patches of neighbours that are spread over the section.

    Spots that are chosen one by one would have lost their surroundings.
    """
    if len(xy) <= most:
        return np.arange(len(xy))
    size = min(_PATCH, most)
    seeds = xy[evenly(len(xy), most // size)]
    return np.unique(KDTree(xy).query(seeds, k=size)[1])


def beside_surroundings(values: np.ndarray, xy: np.ndarray, width: float, *, dim: int | None = None) -> np.ndarray:
    """Values and the mean over the `surroundings` of the first `dim` columns (default all), side by side."""
    return np.hstack([values, surroundings(values[:, :dim], xy, width)])
