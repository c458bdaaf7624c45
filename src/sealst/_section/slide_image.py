"""A picture or slide, opened: its levels and the scale that it states."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np

from sealst._errors import DataError


@dataclass(frozen=True, eq=False)
class SlideImage:
    """An H&E image that is read chunk by chunk.

    Parameters
    ----------
    levels
        Pyramid, finest first; each a dask array (3, height, width), uint8, red, green and blue. All levels span the
        same picture.
    mpp
        µm per pixel of the finest level, as the file states it; None where it does not.
    mpp_source
        Where in the file `mpp` stands.
    path
        File the image was opened from.
    """

    levels: tuple[da.Array, ...]
    mpp: float | None = None
    mpp_source: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels:
            raise DataError("A slide image needs at least one level.")
        for level in self.levels:
            if level.ndim != 3 or level.shape[0] != 3 or level.dtype != np.uint8 or 0 in level.shape:
                raise DataError(f"Levels must be uint8 (3, height, width), found {level.dtype} {level.shape}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level in pixels."""
        return self.levels[0].shape[1], self.levels[0].shape[2]
