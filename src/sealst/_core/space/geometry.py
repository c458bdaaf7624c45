"""Squares around spots: pure geometry in pixels of the full-resolution image, (x, y), pixel 0 covering [0, 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sealst._errors import ScaleError
from sealst._given.schema import Positive, Width, check_fields

#: what was done to the first picture to get the second
TURNS = {
    "as it is": lambda x: x,
    "mirrored left to right": np.fliplr,
    "upside down": np.flipud,
    "turned by 180 degrees": lambda x: x[::-1, ::-1],
    "turned by 90 degrees": lambda x: np.rot90(x),
    "turned by 270 degrees": lambda x: np.rot90(x, 3),
    "transposed": lambda x: x.T,
    "transposed and turned by 180 degrees": lambda x: x[::-1, ::-1].T,
}


def likeness(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Correlation of a square grey picture with another one, in each of the eight ways it can be laid.

    Parameters
    ----------
    first, second
        Grey pictures of the same side, (n, n).

    Returns
    -------
    Pearson correlation by name of the turn; 0 where a picture is of one grey.
    """
    found = {}
    for name, turn in TURNS.items():
        x, y = (np.asarray(v, dtype=float).ravel() - np.mean(v) for v in (turn(first), second))
        size = np.sqrt((x @ x) * (y @ y))
        found[name] = float(x @ y / size) if size > 0 else 0.0
    return found


#: largest relative difference between two statements of the physical scale
TOLERANCE = 0.05


def agreed(sources: Mapping[str, float], *, what: str, hint: str = "") -> tuple[float, str]:
    """Value and name of the first source, after checking that no other contradicts it.

    Parameters
    ----------
    sources
        µm per pixel by where it comes from, the most trusted first.
    what
        What the scale belongs to, for messages: ``"image 'C2_he'"``.
    hint
        What to do where there is no source.

    Raises
    ------
    ScaleError
        When there is no source, or two differ by more than 5 %.
    """
    if not sources:
        raise ScaleError(f"The physical scale of {what} is unknown. {hint}".rstrip())
    names = list(sources)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            value, second = sources[name], sources[other]
            # Not `>`, which a NaN would pass.
            if not abs(value - second) <= TOLERANCE * max(value, second):
                raise ScaleError(
                    f"Contradictory scale for {what}: {value:.4g} µm per pixel by {name}, {second:.4g} by {other}. Is "
                    "the image a downsampled copy ('hires') of the one that the coordinates belong to?"
                )
    return sources[names[0]], names[0]


def apply_affine(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map points (n, 2) by a 3 x 3 affine matrix."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def similarity_scale(matrix: np.ndarray, tolerance: float = 0.01) -> float | None:
    """Scale factor of a 3 x 3 affine that keeps angles (rotation and mirroring allowed), else None."""
    scales = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if scales[-1] <= 0 or scales[0] / scales[-1] > 1 + tolerance:
        return None
    return float(scales.mean())


def scale_between(source: np.ndarray, target: np.ndarray, tolerance: float = 0.01) -> float | None:
    """Factor between the distances of the same points (n, 2) in two systems.

    NaN where no two of the points differ, None where a turned, mirrored and scaled copy of `source` misses `target` by
    more than `tolerance` of the points' spread.
    """
    from scipy.linalg import orthogonal_procrustes

    known = np.isfinite(source).all(1) & np.isfinite(target).all(1)
    a, b = (points[known] - points[known].mean(0) if known.any() else np.zeros((1, 2)) for points in (source, target))
    spread, wanted = np.linalg.norm(a), np.linalg.norm(b)
    if spread == 0 or wanted == 0:
        return float("nan")
    turned = a @ orthogonal_procrustes(a, b)[0] * (wanted / spread)
    return float(wanted / spread) if np.linalg.norm(turned - b) <= tolerance * wanted else None


def square_boxes(centres: np.ndarray, side: float | np.ndarray) -> np.ndarray:
    """Boxes (x0, y0, x1, y1) of squares around centres (n, 2), all of one side or each of its own."""
    half = np.reshape(side, (-1, 1)) / 2
    return np.hstack([centres - half, centres + half])


def inside_fraction(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Share of each box's area that lies inside an image, (n,)."""
    x0, y0, x1, y1 = boxes.T
    overlap_x = np.clip(np.minimum(x1, width) - np.maximum(x0, 0), 0, None)
    overlap_y = np.clip(np.minimum(y1, height) - np.maximum(y0, 0), 0, None)
    return overlap_x * overlap_y / ((x1 - x0) * (y1 - y0))


def pick_level(downsamples: np.ndarray, wanted: float) -> int:
    """Index of the coarsest pyramid level that is at least as fine as wanted (level 0 where none is).

    Parameters
    ----------
    downsamples
        Full-resolution pixels per pixel of each level, finest first.
    wanted
        Full-resolution pixels per pixel of the crop.
    """
    fine_enough = np.flatnonzero(np.asarray(downsamples) <= wanted * 1.01)
    return int(fine_enough[-1]) if fine_enough.size else 0


@dataclass(frozen=True)
class CropSpec:
    """The crops a model was trained on."""

    #: side in µm
    crop_um: Positive
    #: side in pixels
    crop_px: Width

    def __post_init__(self) -> None:
        check_fields(self, "crop")
