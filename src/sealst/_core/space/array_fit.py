"""Where a regular array of spots lies in a picture: a robust affine fit of pixels on array positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
