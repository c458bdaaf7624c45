"""The stain of a section as a few numbers that can be kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sealst._errors import DataError, MissingKeyError
from sealst._files import write_text

#: numbers that a method needs
STAIN_VALUES: Mapping[str, tuple[str, ...]] = {
    "macenko": ("stain_matrix", "white_point"),
    "vahadane": ("stain_matrix", "white_point"),
    "reinhard": ("mu", "sigma"),
}
_FORMAT = "sealst-stain-1"


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
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise MissingKeyError(f"No stain at {str(path)!r}; write one with `stain.save(path)`.") from error
        except ValueError as error:
            raise DataError(f"{str(path)!r} is no stain file: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"{str(path)!r} is no stain file of this version; write one with `stain.save(path)`.")
        return cls(content.get("method", ""), content.get("values", {}), content.get("section", ""))
