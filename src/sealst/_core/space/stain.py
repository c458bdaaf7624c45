"""The stain of a section as a few numbers that can be kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sealst._errors import DataError, MissingKeyError
from sealst._files import write_text
from sealst._given.schema import Finite, Name, Stored, Text, one_of

#: numbers that a method needs
STAIN_VALUES: Mapping[str, tuple[str, ...]] = {
    "macenko": ("stain_matrix", "white_point"),
    "vahadane": ("stain_matrix", "white_point"),
    "reinhard": ("mu", "sigma"),
}
_FORMAT = "sealst-stain-1"
#: a number for each channel or dye, and the matrix of both
_Few = Annotated[list[Finite], Field(min_length=2, max_length=3)]
_Matrix = Annotated[list[Annotated[list[Finite], Field(min_length=3, max_length=3)]], Field(min_length=3, max_length=3)]


class _File(Stored):
    """A stain as `Stain.save` writes it."""

    format: Annotated[str, one_of(_FORMAT)]
    method: Name
    section: Text = ""
    values: dict[Name, _Few | _Matrix]


@dataclass(frozen=True, eq=False)
class Stain:
    """Stain of a section, a reference that other sections can be normalised to.

    Made by `sealst.pp.fit_stain`, used by `sealst.pp.normalize_stain`.
    """

    #: ``"macenko"``, ``"vahadane"`` or ``"reinhard"``
    method: str
    #: the numbers of the method, as in `squidpy.experimental.im.StainReference`
    values: Mapping[str, np.ndarray] = field(repr=False)
    #: section it was fitted on
    section: str = ""

    def __post_init__(self) -> None:
        if self.method not in STAIN_VALUES:
            raise DataError(f"A stain's method must be one of {sorted(STAIN_VALUES)}, found {self.method!r}.")
        if missing := [name for name in STAIN_VALUES[self.method] if name not in self.values]:
            raise DataError(f"A {self.method} stain needs {missing}, found {sorted(self.values)}.")
        arrays = {name: np.array(value, dtype=float) for name, value in self.values.items()}
        if broken := [name for name, value in arrays.items() if not np.isfinite(value).all()]:
            raise DataError(f"The stain's {broken} hold(s) NaN or infinite numbers.")
        object.__setattr__(self, "values", arrays)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for ``.uns`` and for files."""
        return {"method": self.method, "section": self.section, "values": dict(self.values)}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the stain to a JSON file."""
        values = {name: value.tolist() for name, value in self.values.items()}
        content = {"format": _FORMAT} | self.as_dict() | {"values": values}
        write_text(Path(path), json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Stain:
        """Read a stain that `save` wrote."""
        try:
            found = _File.read(Path(path), kind=DataError)
        except FileNotFoundError as error:
            raise MissingKeyError(f"No stain at {str(path)!r}; write one with `stain.save(path)`.") from error
        return cls(found.method, {name: np.array(value) for name, value in found.values.items()}, found.section)
