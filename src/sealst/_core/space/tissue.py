"""Tissue under boxes, and what tells tissue from glass: pure arrays."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

#: a pixel with no channel above this was blacked out (masked, never scanned, ink), and is no tissue
BLACK = 15
#: standard deviation, in grey levels, below which a place is glass and above which it is tissue, whatever else there is
GLASS, TISSUE = 2.5, 10.0
#: grey level above which a smooth place can be glass, and how much darker than glass nothing but tissue is
_BRIGHT, _DARKER = 150, 30
#: an island of an image that fills this share of its own bounding box is a rectangle
_RECTANGULAR = 0.98
#: islands below this share of the image are specks
_SPECK = 1e-3


def box_fractions(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Share of each box's area that is tissue, exact also where edges cut through pixels.

    Parameters
    ----------
    mask
        Tissue, bool (height, width); pixel 0 covers [0, 1).
    boxes
        Boxes (x0, y0, x1, y1) in pixels of the mask, (n, 4). What lies outside the mask counts as no tissue.
    """
    mask, boxes = np.asarray(mask, dtype=bool), np.asarray(boxes, dtype=float).reshape(-1, 4)
    # The integral of a mask of constant pixels is bilinear within each pixel, so interpolating it is exact.
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    x0, y0, x1, y1 = boxes.T
    inside = _at(integral, x1, y1) - _at(integral, x0, y1) - _at(integral, x1, y0) + _at(integral, x0, y0)
    area = (x1 - x0) * (y1 - y0)
    return np.clip(np.divide(inside, area, out=np.zeros(len(boxes)), where=area > 0), 0, 1)


def _at(integral: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    x, y = np.clip(x, 0, width), np.clip(y, 0, height)
    col, row = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
    across, down = x - col, y - row
    top = integral[row, col] * (1 - across) + integral[row, col + 1] * across
    bottom = integral[row + 1, col] * (1 - across) + integral[row + 1, col + 1] * across
    return top * (1 - down) + bottom * down


def unusable(picture: np.ndarray) -> np.ndarray:
    """Pixels of a picture (3, height, width) that cannot be tissue: blacked out, or in a pasted inset.

    Where the background was blacked out along the outline of the tissue, a rectangle left standing is no part of the
    section but a picture pasted beside it. Rectangles alone are kept: they are fields that the scanner took.
    """
    black = picture.max(axis=0) <= BLACK
    if not black.any():
        return black
    islands, _ = ndimage.label(~black)
    sizes = np.bincount(islands.ravel())
    rectangles, outlined = [], False
    for number, where in enumerate(ndimage.find_objects(islands), start=1):
        if where is None or sizes[number] < _SPECK * black.size:
            continue
        if sizes[number] >= _RECTANGULAR * islands[where].size:
            rectangles.append(number)
        else:
            outlined = True
    return black | np.isin(islands, rectangles) if outlined and rectangles else black


def texture(picture: np.ndarray, radius: int, *, ignore: np.ndarray) -> np.ndarray:
    """How much of tissue's texture a place shows, from 0 (smooth as glass) to 1, (height, width) float32.

    Standard deviation in a square of 2 `radius` + 1 pixels, mean over channels, on a logarithmic scale from `GLASS` to
    `TISSUE`. Glass is smooth whatever its colour, so pale fat, smeared eosin and a grey or pink background need no
    threshold of their own.

    Parameters
    ----------
    picture
        uint8 (3, height, width).
    radius
        In pixels.
    ignore
        Pixels to leave out, bool (height, width); 0 in the result.
    """
    size, used = 2 * radius + 1, (~ignore).astype(np.float32)
    weight = np.maximum(ndimage.uniform_filter(used, size), 1e-6)
    variance = np.zeros_like(used)
    for channel in picture:
        values = channel.astype(np.float32) * used
        mean = ndimage.uniform_filter(values, size) / weight
        variance += ndimage.uniform_filter(values * channel, size) / weight - mean**2
    deviation = np.sqrt(np.clip(variance / len(picture), 1e-12, None))
    scaled = np.clip(np.log(deviation / GLASS) / np.log(TISSUE / GLASS), 0, 1)
    return np.where(ignore, 0, scaled).astype(np.float32)


def solid(picture: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """How much darker than glass a pixel is, from 0 (up to 30 grey levels) to 1 (60 and more), float32.

    Finds what is tissue but as smooth as glass: colloid, cartilage, lakes of blood.

    Parameters
    ----------
    picture
        uint8 (3, height, width).
    smooth
        Places without texture, bool (height, width). Their median, where they are bright, is the grey level of glass.
    """
    grey = picture.mean(axis=0, dtype=np.float32)
    bright = grey[smooth & (grey > _BRIGHT)]
    if not bright.size:
        return np.zeros_like(grey)
    return np.clip((np.median(bright) - grey - _DARKER) / _DARKER, 0, 1)


def tighten(mask: np.ndarray, radius: int, *, ignore: np.ndarray) -> np.ndarray:
    """Take back the rim of `radius` pixels by which `texture` sees tissue beyond its edge."""
    square = np.ones((2 * radius + 1, 2 * radius + 1), dtype=bool)
    return ndimage.binary_erosion(mask | ignore, square, border_value=1) & ~ignore
