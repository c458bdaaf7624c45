"""Crops of a single colour: pixels that are not there, which zarr reads as black, without an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sealst._errors import DataError
from sealst._logging import warn

#: share of crops of one colour above which something is wrong; a masked picture may have a few
_MAX_PLAIN = 0.05
_HINT = (
    "Are parts of the picture missing from its store? Zarr reads them as black, without an error; `sl.pl.crops` shows "
    "crops."
)


@dataclass
class PlainCrops:
    """Counts crops of a single colour while a section is read, and says once what that means.

    Parameters
    ----------
    section
        Name of the section, for messages.
    total
        Number of its crops, where only some of them are read; by default those that are.
    """

    section: str
    total: int | None = None
    n: int = 0
    plain: int = 0
    #: of these, crops that are black
    black: int = 0
    said: bool = False

    def watch(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pass on positions and crops; a section that is read a second time is not spoken of again.

        Raises
        ------
        DataError
            At the end, when every crop is of a single colour.
        """
        if self.said:
            yield from parts
            return
        self.n = self.plain = self.black = 0
        for positions, crops in parts:
            self.add(crops)
            yield positions, crops
        self.said = True
        if (text := self.verdict()) is not None:
            warn(text)

    def add(self, crops: np.ndarray) -> None:
        """Count some crops."""
        self.n += len(crops)
        # Few pixels rule out nearly all.
        for step in (32, 8, 1):
            thin = crops[:, ::step, ::step]
            crops = crops[(thin == thin[:, :1, :1]).all(axis=(1, 2, 3))]
        self.plain += len(crops)
        self.black += int((crops[:, 0, 0] == 0).all(axis=1).sum())

    def verdict(self) -> str | None:
        """What is to be said of the crops that were counted; None where all is well, an error where none shows tissue.

        Glass is white in many slides, and a few crops of it are nothing to speak of; black is no colour of a slide.
        """
        if self.plain and self.plain == max(self.n, self.total or 0):
            raise DataError(
                f"All {self.plain} crops of {self.section!r} are of a single colour: the picture is not there. {_HINT} "
                "Copy the store again, or read the section from where its pictures are."
            )
        if self.black or self.plain > _MAX_PLAIN * self.n:
            black = f" ({self.black} black)" if self.black else ""
            return f"{self.plain} of {self.n} crops of {self.section!r} are of a single colour{black}. {_HINT}"
        return None
