"""Overlapping crops on a grid of patch tokens, and what is stitched of them: pure geometry, band by band."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenGrid:
    """Squares of `side` by `side` tokens that cover a picture, each sharing `overlap` tokens with the next.

    Token (0, 0) lies at the picture's upper left corner.

    Parameters
    ----------
    side
        Tokens along a side of a crop.
    overlap
        Tokens that neighbouring crops share; less than `side`.
    token_px
        Side of a token in pixels of the full-resolution picture.
    height, width
        Of the picture, in these pixels.
    """

    side: int
    overlap: int
    token_px: float
    height: int
    width: int

    @property
    def step(self) -> int:
        """Tokens from one crop to the next."""
        return self.side - self.overlap

    @property
    def n_shared(self) -> int:
        """How many rows of crops in front of one reach into its tokens."""
        return -(-self.overlap // self.step)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tokens that begin inside the picture."""
        rows, columns = (max(1, int(np.ceil(n / self.token_px - 1e-6))) for n in (self.height, self.width))
        return rows, columns

    @property
    def crops(self) -> tuple[int, int]:
        """Rows and columns of crops: as few as reach the last token."""
        rows, columns = (max(1, -(-(n - self.overlap) // self.step)) for n in self.shape)
        return rows, columns

    def boxes(self, places: np.ndarray) -> np.ndarray:
        """Squares (x0, y0, x1, y1) in pixels of crops at (row, column), (n, 2)."""
        corner = np.asarray(places)[:, ::-1] * (self.step * self.token_px)
        return np.hstack([corner, corner + self.side * self.token_px])

    def holding(self, wanted: np.ndarray) -> np.ndarray:
        """Crops (row, column) that hold any of the tokens in a mask of `shape`, row by row."""
        found = []
        for row in range(self.crops[0]):
            top = row * self.step
            band = np.asarray(wanted[top : top + self.side].any(axis=0))
            if band.any():
                starts = np.arange(self.crops[1]) * self.step
                # How many tokens are wanted in front of every column.
                before = np.concatenate([[0], np.cumsum(band)])
                ends = np.minimum(starts + self.side, len(band))
                columns = np.flatnonzero(before[ends] > before[np.minimum(starts, len(band))])
                found.append(np.column_stack([np.full(len(columns), row), columns]))
        return np.concatenate(found) if found else np.empty((0, 2), dtype=int)

    @property
    def weights(self) -> np.ndarray:
        """How much each token of a crop counts where crops overlap, (side, side): those at the border see less."""
        depth = np.minimum(np.arange(self.side) + 1, self.side - np.arange(self.side))
        ramp = np.minimum(depth, self.overlap + 1) / (self.overlap + 1)
        return np.asarray(np.outer(ramp, ramp), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Band:
    """Finished rows of a stitched map."""

    #: first row
    top: int
    #: (rows, columns, values), float32; 0 where no crop was
    values: np.ndarray
    #: which tokens were covered by a crop, (rows, columns)
    covered: np.ndarray


def stitched(
    grid: TokenGrid, parts: Iterable[tuple[np.ndarray, np.ndarray]], width: int, *, first: int = 0
) -> Iterator[Band]:
    """Bands of a map that is put together from crops, in order.

    Where crops overlap, their values are averaged by `TokenGrid.weights`. Memory is that of one row of crops, whatever
    the height of the picture.

    Parameters
    ----------
    grid
        Where crops lie.
    parts
        Places (row, column), (n, 2), sorted by row, and values (n, side, side, width) of crops, in batches.
    width
        Values of a token.
    first
        Row of crops from which on bands are wanted; parts begin `TokenGrid.n_shared` rows before it.

    Yields
    ------
    One band for each row of crops from `first` on, also where it has no crop; the last reaches the end of the map.
    """
    rows, columns = grid.shape
    last, weights = grid.crops[0] - 1, grid.weights[..., None]
    # A crop may reach beyond the map.
    reach = (grid.crops[1] - 1) * grid.step + grid.side
    total = np.zeros((grid.side, reach, width), dtype=np.float32)
    share = np.zeros((grid.side, reach, 1), dtype=np.float32)
    now = max(first - grid.n_shared, 0)

    def finish() -> Band | None:
        nonlocal total, share
        n = grid.side if now == last else grid.step
        top = now * grid.step
        keep = min(n, rows - top)
        seen = share[:keep, :columns]
        values = np.divide(total[:keep, :columns], seen, out=np.zeros_like(total[:keep, :columns]), where=seen > 0)
        band = Band(top, values, seen[..., 0] > 0)
        total = np.concatenate([total[n:], np.zeros_like(total[:n])])
        share = np.concatenate([share[n:], np.zeros_like(share[:n])])
        return band if now >= first else None

    for places, values in parts:
        for (row, column), own in zip(places, values, strict=True):
            while now < row:
                if (band := finish()) is not None:
                    yield band
                now += 1
            left = column * grid.step
            total[:, left : left + grid.side] += weights * own
            share[:, left : left + grid.side] += weights
    while now <= last:
        if (band := finish()) is not None:
            yield band
        now += 1


def overlaps(n_source: int, source: float, n_target: int, target: float) -> np.ndarray:
    """Length that intervals of a source share with those of a target, (n_target, n_source); both begin at 0.

    Parameters
    ----------
    n_source, n_target
        How many intervals there are.
    source, target
        Their lengths, in the same unit.
    """
    low = np.maximum.outer(np.arange(n_target) * target, np.arange(n_source) * source)
    high = np.minimum.outer((np.arange(n_target) + 1) * target, (np.arange(n_source) + 1) * source)
    return np.asarray(np.clip(high - low, 0, None))
