"""Spot lattices: kind, pitch, neighbours, smoothing over neighbours, and where one lies in a picture.

Array neighbours are found from positions alone, which may be rotated, scaled, incomplete and jittered (legacy Spatial
Transcriptomics spots are off by 6 % of the pitch and more). A distance threshold alone fails there: the longest side
of a jittered square is longer than its shortest diagonal. The direction of an edge tells them apart, since sides and
diagonals of a square differ by 45 degrees and a lattice has one orientation over a whole section.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from sealst._errors import DataError
from sealst._validate import check_choice

#: order of the rotational symmetry (and number of neighbours) of each kind of grid
GRIDS = {"hex": 6, "square": 4}
#: edges up to this many pitches are candidates; the next ring is at sqrt(3) on hex grids, its diagonal at sqrt(2)
REACH = 1.42

# Bonds that surely join neighbours: shorter than the diagonal of a square.
_BOND = 1.2
# Half the 45 degrees between a square's side and its diagonal.
_TOLERANCE = np.pi / 8
# Order of a lattice with a jitter of 16 % of its pitch; points without a lattice have about 1 / sqrt(bonds).
_MIN_ORDER = 0.35
_MIN_LEAD = 0.25


def pitch(xy: np.ndarray) -> float:
    """Distance between the centres of neighbouring spots, in the units of `xy`.

    The median length of the bonds that are shorter than 1.2 pitches, found by iteration. It starts from the 10 %
    quantile of the distances to the nearest spot, so that it holds when few spots have a direct neighbour left.

    Raises
    ------
    DataError
        When there are fewer than two spots, two share a position, or one has no finite coordinates.
    """
    if len(xy) < 2:
        raise DataError(f"A lattice needs at least 2 spots, found {len(xy)}.")
    if lost := int((~np.isfinite(xy)).any(axis=1).sum()):
        raise DataError(f"{lost} of {len(xy)} spots have no finite coordinates. Drop them first.")
    tree = cKDTree(xy)
    nearest = tree.query(xy, k=2)[0][:, 1]
    if (nearest == 0).any():
        raise DataError(
            f"{(nearest == 0).sum()} of {len(xy)} spots share their position with another spot. Drop the duplicates, "
            "or tell the sections apart in `.obs['section']`."
        )
    length = float(np.quantile(nearest, 0.1, method="higher"))
    for _ in range(50):
        pairs = tree.query_pairs(_BOND * length, output_type="ndarray")
        found = float(np.median(np.linalg.norm(xy[pairs[:, 1]] - xy[pairs[:, 0]], axis=1)))
        if abs(found - length) <= 1e-6 * length:
            break
        length = found
    return length


@dataclass(frozen=True)
class KnownArray:
    """Spots as a platform prints them."""

    name: str
    #: how it is called, a regular expression
    called: str
    grid: str
    #: µm between the centres of neighbours
    pitch_um: float
    #: diameters in µm that are stated of one spot
    spots_um: tuple[float, ...]

    def has_spots(self, spot_um: float, tolerance: float) -> bool:
        """Whether spots of this diameter are its own."""
        return any(abs(spot_um - own) <= tolerance * own for own in self.spots_um)


KNOWN_ARRAYS = (
    # Space Ranger states 65 µm, which is what it counts from, and 55 are printed.
    KnownArray("Visium", r"visium(?!\W*hd)", "hex", 100.0, (55.0, 65.0)),
    KnownArray("legacy ST", r"spatial transcriptomics|^(legacy\W*)?st$", "square", 200.0, (100.0,)),
)


def known_array(technology: str) -> KnownArray | None:
    """Return the array that a technology's name stands for."""
    return next((one for one in KNOWN_ARRAYS if re.search(one.called, technology.strip(), re.IGNORECASE)), None)


def turn(xy: np.ndarray, grid: str) -> float:
    """Angle in degrees between the x axis and the nearest row of neighbours, -30 to 30 (hex) or -45 to 45 (square)."""
    fold = GRIDS[grid]
    return float(np.degrees(np.angle(_orientation(_bonds(np.asarray(xy, dtype=float)), fold)) / fold))


def detect_grid(xy: np.ndarray) -> str:
    """Tell a hexagonal from a square lattice by the symmetry of its bonds.

    The mean over all bonds of exp(i m angle) has modulus 1 on a lattice with m-fold symmetry and vanishes on the other
    kind, whatever the rotation, the scale and the spots that are missing; jitter makes it smaller.

    Parameters
    ----------
    xy
        Spot centres (n, 2), any unit.

    Returns
    -------
    ``"hex"`` (Visium) or ``"square"`` (legacy Spatial Transcriptomics, Visium HD bins).

    Raises
    ------
    DataError
        When neither symmetry stands out: spots on one line, cells without a lattice, very few spots.

    Examples
    --------
    >>> detect_grid(np.array([[0, 0], [1, 0], [0, 1], [1, 1]]))
    'square'
    """
    bonds = _bonds(np.asarray(xy, dtype=float))
    order = {grid: abs(_orientation(bonds, fold)) for grid, fold in GRIDS.items()}
    best, other = sorted(order, key=lambda grid: -order[grid])
    if order[best] < _MIN_ORDER or order[best] - order[other] < _MIN_LEAD:
        raise DataError(
            f"The grid of the {len(xy)} spots is not clear (symmetry from 0 to 1: hex {order['hex']:.2f}, square "
            f"{order['square']:.2f}). Name it with `grid='hex'` or `grid='square'`; spots or cells that lie on no grid "
            "have no array neighbours: use `context=False`."
        )
    return best


def keep_neighbours(candidates: Any, xy: np.ndarray, grid: str) -> sp.csr_matrix:
    """Keep the edges of a graph that run along the axes of the lattice.

    Parameters
    ----------
    candidates
        Sparse adjacency (n, n): spots closer than `REACH` pitches.
    xy
        Spot centres (n, 2).
    grid
        ``"hex"`` or ``"square"``.

    Returns
    -------
    CSR float64 (n, n) of ones, symmetric where `candidates` is, zero diagonal. A spot has at most 6 (hex) or 4
    (square) neighbours as long as the jitter stays below a tenth of the pitch.
    """
    check_choice("grid", grid, list(GRIDS))
    fold = GRIDS[grid]
    edges = candidates.tocoo()
    step = xy[edges.col] - xy[edges.row]
    phase = np.exp(1j * fold * np.arctan2(step[:, 1], step[:, 0]))
    off_axis = np.abs(np.angle(phase * np.conj(_orientation(_bonds(xy), fold)))) / fold
    keep = (off_axis < _TOLERANCE) & (edges.row != edges.col)
    ones = np.ones(int(keep.sum()))
    return sp.csr_matrix((ones, (edges.row[keep], edges.col[keep])), shape=candidates.shape)


def smooth_context(x: Any, neighbours: Any, weight: float) -> sp.csr_matrix:
    """Mix every spot with the mean of its neighbours: ``(1 - weight) * x + weight * mean(neighbours)``.

    The spot context of Hemker et al., arXiv 2602.14177. Rows of the mixing matrix sum to 1, so constant expression
    stays constant; a spot without neighbours keeps its own values.

    Parameters
    ----------
    x
        Counts (n, genes), dense or sparse.
    neighbours
        Sparse adjacency (n, n) of ones, zero diagonal.
    weight
        Share of the neighbours, 0 to 1.

    Returns
    -------
    CSR float32 (n, genes).
    """
    degree = np.asarray(neighbours.sum(axis=1), dtype=float).ravel()
    share = np.where(degree > 0, weight, 0.0)
    mixing = sp.diags_array(1.0 - share) + sp.diags_array(share / np.maximum(degree, 1.0)) @ neighbours
    mixed = sp.csr_matrix(sp.csr_matrix(mixing) @ sp.csr_matrix(x), dtype=np.float32)
    mixed.eliminate_zeros()
    mixed.sort_indices()
    return mixed


def _bonds(xy: np.ndarray) -> np.ndarray:
    pairs = cKDTree(xy).query_pairs(_BOND * pitch(xy), output_type="ndarray")
    return xy[pairs[:, 1]] - xy[pairs[:, 0]]


def _orientation(bonds: np.ndarray, fold: int) -> complex:
    """Mean of exp(i fold angle): its modulus measures the symmetry, its phase the rotation of the lattice."""
    return complex(np.exp(1j * fold * np.arctan2(bonds[:, 1], bonds[:, 0])).mean())


# Rounds of reweighting; the weights settle after a few.
_ROUNDS = 25
# Spots used for the fit; an array has two to eleven million bins, and its position needs far fewer.
_MAX_POINTS = 200_000


@dataclass(frozen=True, eq=False)
class ArrayFit:
    """Affine map from positions on the array in µm to pixels.

    Parameters
    ----------
    matrix
        Pixels per µm, (2, 2): ``px = matrix @ um + offset``. Rotated and mirrored arrays are as good as any.
    offset
        Pixel (x, y) of the array's origin.
    """

    matrix: np.ndarray
    offset: np.ndarray

    @property
    def mpp(self) -> float:
        """µm per pixel, the geometric mean over the two directions."""
        return float(1 / np.sqrt(np.prod(self._stretch)))

    @property
    def anisotropy(self) -> float:
        """Relative difference between the largest and the smallest scale over all directions; 0 for a similarity."""
        return float(self._stretch[0] / self._stretch[1] - 1)

    @property
    def _stretch(self) -> np.ndarray:
        # Coordinates that do not vary give no scale; their anisotropy says so.
        return np.maximum(np.linalg.svd(self.matrix, compute_uv=False), 1e-12)

    def __call__(self, um: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of array positions (n, 2) in µm."""
        return um @ self.matrix.T + self.offset

    def residual_um(self, um: np.ndarray, px: np.ndarray) -> np.ndarray:
        """How far each spot lies from where the fit expects it, in µm."""
        return np.linalg.norm(px - self(um), axis=1) * self.mpp


def fit_array(um: np.ndarray, px: np.ndarray, *, tolerance_um: float) -> ArrayFit | None:
    """Fit the position of an array in a picture.

    Least absolute distances (iterated reweighting) find the map although some spots are misplaced; least squares over
    the spots that agree with it then give its precise value.

    Parameters
    ----------
    um
        Positions on the array in µm, (n, 2).
    px
        Pixels (x, y) of the same spots, (n, 2), finite.
    tolerance_um
        Spots farther from the fit than this do not take part in it.

    Returns
    -------
    The fit, or None where the array positions do not span the plane (fewer than 3, or all in one line).
    """
    step = max(1, -(-len(um) // _MAX_POINTS))
    um, px = np.asarray(um[::step], dtype=float), np.asarray(px[::step], dtype=float)
    if not _spans_plane(um):
        return None
    weights = np.ones(len(um))
    for _ in range(_ROUNDS):
        fit = _least_squares(um, px, weights)
        distance = fit.residual_um(um, px)
        weights = 1 / np.maximum(distance, 0.01 * tolerance_um)
    near = distance <= tolerance_um
    return _least_squares(um[near], px[near], np.ones(near.sum())) if _spans_plane(um[near]) else fit


def _least_squares(um: np.ndarray, px: np.ndarray, weights: np.ndarray) -> ArrayFit:
    # Centred, as the offset would otherwise take most of the precision.
    share = weights / weights.sum()
    mean_um, mean_px = share @ um, share @ px
    root = np.sqrt(weights)[:, None]
    solution, *_ = np.linalg.lstsq(root * (um - mean_um), root * (px - mean_px), rcond=None)
    return ArrayFit(solution.T, mean_px - solution.T @ mean_um)


def _spans_plane(points: np.ndarray) -> bool:
    if len(points) < 3:
        return False
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return bool(spread[1] > 1e-6 * spread[0])
