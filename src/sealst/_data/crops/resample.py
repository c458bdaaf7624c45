"""Cut crops out of chunks and resample them: bicubic with antialiasing, by boxes that fall between pixels.

All sums are of whole numbers, so that crops are the same to the last bit on every machine and in any number of threads.

A pixel of a crop is the mean of the pixels within two of its own sides of its centre, weighted by Keys' cubic kernel
with a = -1/2, which is stretched where the picture shrinks. Weights are normalised over the pixels that are there. This
is Pillow's definition; but Pillow rounds to 8 bits between the axes, which loses what rings beyond black and white.
"""

from __future__ import annotations

import numpy as np
from numba import types

from sealst._core.compiled import compiled

#: what is not in the picture
_WHITE = 255
#: weights are whole numbers of 1 / 2**_BITS
_BITS = 14
_ONE = 1 << _BITS
#: bits below the grey level that are kept between the axes
_KEPT = 6
#: weighted pixels that are added at a time
_TERMS = 4
#: rows of a crop that are made together, so that all of it stays in the cache; and that are turned together
_STRIP = 112
_TURNED = 8


@compiled()
def _weights(low: float, high: float, n: int, first: np.ndarray, weights: np.ndarray) -> None:
    """Of which pixels of a line of n those of a crop are made, which has the pixels from `low` to `high`.

    Pixel i is made of those from `first[i]` on by `weights[i]`, which add up to `_ONE`.
    """
    n_terms = weights.shape[1]
    step = (high - low) / len(first)
    stretch = max(step, 1.0)
    real = np.empty(n_terms)
    for i in range(len(first)):
        centre = low + (i + 0.5) * step
        start = max(int(centre - 2 * stretch + 0.5), 0)
        stop = min(int(centre + 2 * stretch + 0.5), n, start + n_terms)
        total = 0.0
        for k in range(stop - start):
            x = abs((start + k + 0.5 - centre) / stretch)
            if x < 1:
                real[k] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2:
                real[k] = ((-0.5 * x + 2.5) * x - 4) * x + 2
            else:
                real[k] = 0
            total += real[k]
        first[i] = start
        # Sums are rounded, so that weights add up to one, and what is of one colour stays so.
        below, passed = 0.0, 0
        for k in range(n_terms):
            if k < stop - start:
                below += real[k]
            reached = int(np.floor(below / total * _ONE + 0.5))
            weights[i, k] = reached - passed
            passed = reached


@compiled()
def _add(rows: np.ndarray, first: int, weights: np.ndarray, sums: np.ndarray) -> None:
    """Add `_TERMS` weighted rows to sums. Beyond the last row weights are zero."""
    last = len(rows) - 1
    a, b = rows[min(first, last)], rows[min(first + 1, last)]
    c, d = rows[min(first + 2, last)], rows[min(first + 3, last)]
    u, v, w, z = np.int32(weights[0]), np.int32(weights[1]), np.int32(weights[2]), np.int32(weights[3])
    for i in range(len(sums)):
        sums[i] += u * np.int32(a[i]) + v * np.int32(b[i]) + w * np.int32(c[i]) + z * np.int32(d[i])


@compiled()
def _filter(
    rows: np.ndarray,
    first: np.ndarray,
    weights: np.ndarray,
    shift: int,
    low: int,
    high: int,
    sums: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weighted sums of rows, without their last `shift` bits, from `low` to `high`."""
    for i in range(len(first)):
        sums[:] = 1 << (shift - 1)
        for k in range(0, weights.shape[1], _TERMS):
            _add(rows, first[i] + k, weights[i, k:], sums)
        row = out[i]
        for j in range(len(sums)):
            row[j] = min(max(sums[j] >> shift, low), high)


@compiled()
def _turn(rows: np.ndarray, out: np.ndarray) -> None:
    """Write rows as columns."""
    whole = len(rows) // _TURNED * _TURNED
    for k in range(0, whole, _TURNED):
        some, columns = rows[k : k + _TURNED], out[:, k : k + _TURNED]
        for i in range(rows.shape[1]):
            for j in range(_TURNED):
                columns[i, j] = some[j, i]
    for k in range(whole, len(rows)):
        for i in range(rows.shape[1]):
            out[i, k] = rows[k, i]


@compiled()
def _n_terms(length: float, px: int) -> int:
    return -(-int(np.ceil(4 * max(length / px, 1.0))) // _TERMS) * _TERMS


@compiled()
def _resample(
    window: np.ndarray,
    box: tuple[float, float, float, float],
    rows_room: np.ndarray,
    columns_room: np.ndarray,
    done_room: np.ndarray,
    sums: np.ndarray,
    out: np.ndarray,
) -> None:
    """Resample the box of a window (y, 3, x) to a crop (px, px, 3); from `rows_room` to `sums` is room to work in."""
    x0, y0, x1, y1 = box
    height, _, width = window.shape
    px = len(out)
    first_y, weights_y = np.zeros(px, np.int64), np.zeros((px, _n_terms(y1 - y0, px)), np.int16)
    first_x, weights_x = np.zeros(px, np.int64), np.zeros((px, _n_terms(x1 - x0, px)), np.int16)
    _weights(y0, y1, height, first_y, weights_y)
    _weights(x0, x1, width, first_x, weights_x)
    pixels = window.reshape(height, 3 * width)
    for y in range(0, px, _STRIP):
        n = min(_STRIP, px - y)
        some = slice(y, y + n)
        # Sums over either axis are sums of rows, which lie in one piece; in between the picture is turned.
        rows = rows_room[: n * 3 * width].reshape(n, 3 * width)
        columns = columns_room[: width * 3 * n].reshape(width, 3 * n)
        done = done_room[: px * 3 * n].reshape(px, 3 * n)
        _filter(pixels, first_y[some], weights_y[some], _BITS - _KEPT, -32768, 32767, sums[: 3 * width], rows)
        for c in range(3):
            _turn(rows[:, c * width : (c + 1) * width], columns[:, c * n : (c + 1) * n])
        _filter(columns, first_x, weights_x, _BITS + _KEPT, 0, 255, sums[: 3 * n], done)
        for j in range(n):
            line = out[y + j]
            for x in range(px):
                for c in range(3):
                    line[x, c] = done[x, c * n + j]


@compiled()
def _window(
    chunks: np.ndarray,
    slots: np.ndarray,
    y_edges: np.ndarray,
    x_edges: np.ndarray,
    place: np.ndarray,
    span: np.ndarray,
    window: np.ndarray,
) -> None:
    """Put a window (y, 3, x) together from chunks; white where it leaves the image."""
    left, top, right, bottom = place
    if left < x_edges[0] or top < y_edges[0] or right > x_edges[-1] or bottom > y_edges[-1]:
        window[:] = _WHITE
    for row in range(span[0], span[1] + 1):
        for column in range(span[2], span[3] + 1):
            first_y, first_x = y_edges[row], x_edges[column]
            x0, y0 = max(left, first_x), max(top, first_y)
            x1, y1 = min(right, x_edges[column + 1]), min(bottom, y_edges[row + 1])
            chunk = chunks[slots[row, column]]
            for y in range(y0, y1):
                for c in range(3):
                    source = chunk[c, y - first_y, x0 - first_x : x1 - first_x]
                    target = window[y - top, c, x0 - left : x1 - left]
                    for x in range(len(target)):
                        target[x] = source[x]


@compiled(
    types.void(
        types.Array(types.uint8, 4, "A", readonly=True),
        types.int64[:, ::1],
        types.int64[::1],
        types.int64[::1],
        types.int64[:, ::1],
        types.int64[:, ::1],
        types.float64[:, ::1],
        types.uint8[:, :, :, ::1],
    )
)
def cut(
    chunks: np.ndarray,
    slots: np.ndarray,
    y_edges: np.ndarray,
    x_edges: np.ndarray,
    windows: np.ndarray,
    spans: np.ndarray,
    boxes: np.ndarray,
    out: np.ndarray,
) -> None:
    """Cut crops.

    Parameters
    ----------
    chunks
        Decoded chunks, uint8 (n, 3, y, x).
    slots
        Which of them each place of the grid is, int64 (rows, columns).
    y_edges, x_edges
        Where its rows and columns begin and the last one ends, int64, in pixels.
    windows
        Pixels that a crop depends on, int64 (n, 4), as x0, y0, x1, y1; they may leave the image.
    spans
        First and last row, first and last column of the grid that they lie in, int64 (n, 4).
    boxes
        The squares, float64 (n, 4), as x0, y0, x1, y1; one that is its window is taken as it is.
    out
        uint8 (n, px, px, 3), which is written.
    """
    px = out.shape[1]
    height, width = 0, 0
    for i in range(len(windows)):
        width, height = max(width, windows[i, 2] - windows[i, 0]), max(height, windows[i, 3] - windows[i, 1])
    room = np.empty(height * 3 * width, np.uint8)
    rows, columns = np.empty(_STRIP * 3 * width, np.int16), np.empty(width * 3 * _STRIP, np.int16)
    done, sums = np.empty(px * 3 * _STRIP, np.uint8), np.empty(3 * max(width, _STRIP), np.int32)
    for i in range(len(windows)):
        left, top, right, bottom = windows[i]
        window = room[: (bottom - top) * 3 * (right - left)].reshape(bottom - top, 3, right - left)
        _window(chunks, slots, y_edges, x_edges, windows[i], spans[i], window)
        x0, y0, x1, y1 = boxes[i]
        if x0 == left and y0 == top and x1 == right and y1 == bottom and right - left == px:
            for y in range(px):
                for c in range(3):
                    line = window[y, c]
                    for x in range(px):
                        out[i, y, x, c] = line[x]
        else:
            _resample(window, (x0 - left, y0 - top, x1 - left, y1 - top), rows, columns, done, sums, out[i])
