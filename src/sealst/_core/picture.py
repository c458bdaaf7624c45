"""Numbers of a picture, by machine code: what stain it has, and how fine its detail is."""

from __future__ import annotations

import numpy as np
from numba import types

from sealst._core.compiled import compiled


@compiled()
def _stain(crop: np.ndarray, density: np.ndarray, out: np.ndarray) -> None:
    """Mean and deviation of the density of each channel, (6,). Every second pixel tells them."""
    counts = np.zeros((3, 256), np.int64)
    for y in range(0, crop.shape[0], 2):
        for x in range(0, crop.shape[1], 2):
            for c in range(3):
                counts[c, crop[y, x, c]] += 1
    n = counts[0].sum()
    for c in range(3):
        mean = variance = 0.0
        for level in range(256):
            mean += counts[c, level] * float(density[level])
        mean /= n
        for level in range(256):
            variance += counts[c, level] * (float(density[level]) - mean) ** 2
        out[c], out[3 + c] = mean, np.sqrt(variance / n)


@compiled()
def _energy(grey: np.ndarray, sums: np.ndarray) -> float:
    """Mean square of the differences between neighbours, down and across, added up; `sums` is room to work in."""
    height, width = grey.shape
    if min(height, width) < 2:
        return 0.0
    # By columns: sums of single precision stay short, and eight of them are made at a time.
    down, across = sums[0, :width], sums[1, : width - 1]
    down[:], across[:] = 0, 0
    for y in range(height):
        row = grey[y]
        left, right = row[: width - 1], row[1:]
        for x in range(width - 1):
            across[x] += (right[x] - left[x]) * (right[x] - left[x])
        if y:
            above = grey[y - 1]
            for x in range(width):
                down[x] += (row[x] - above[x]) * (row[x] - above[x])
    total_down = total_across = 0.0
    for x in range(width):
        total_down += down[x]
    for x in range(width - 1):
        total_across += across[x]
    return total_down / ((height - 1) * width) + total_across / (height * (width - 1))


@compiled(
    types.void(types.Array(types.uint8, 4, "C", readonly=True), types.float32[::1], types.float32[:, ::1]),
)
def stain_and_energy(crops: np.ndarray, density: np.ndarray, out: np.ndarray) -> None:
    """Mean and deviation of the density of each channel; then gradient energies, each at a scale twice as coarse.

    Parameters
    ----------
    crops
        uint8 (n, y, x, 3).
    density
        float32 (256,), of every level.
    out
        float32 (n, 6 + scales), which is written.
    """
    n, height, width, _ = crops.shape
    grey, sums = np.empty((height, width), np.float32), np.empty((2, width), np.float32)
    for i in range(n):
        _stain(crops[i], density, out[i])
        # One channel tells the detail.
        for y in range(height):
            for x in range(width):
                grey[y, x] = density[crops[i, y, x, 1]]
        h, w = height, width
        for scale in range(6, out.shape[1]):
            out[i, scale] = _energy(grey[:h, :w], sums)
            h, w = h // 2, w // 2
            # In place: what is written lies before all that is still to be read.
            for y in range(h):
                for x in range(w):
                    left = grey[2 * y, 2 * x] + grey[2 * y + 1, 2 * x]
                    right = grey[2 * y, 2 * x + 1] + grey[2 * y + 1, 2 * x + 1]
                    grey[y, x] = (left + right) / np.float32(4)
