"""Lists of slides: where each one is, whose it is, and what is known about it."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from sealst._data.bags.bags import SLIDE, read_slide_table
from sealst._errors import DataError, MissingKeyError
from sealst._files import absolute, expanded
from sealst._given.schema import Name, Positive, check_fields
from sealst._keys import Keys
from sealst._logging import warn
from sealst._text_table import ENDINGS
from sealst._validate import as_text, check_file_name, listed, section_name

PATH, MPP = "path", "mpp"
#: columns of the result that a manifest must not have for labels
WRITTEN = ("file", "n_tiles", "status", "seconds", "digest")
#: and one that it has where the model knows what its training looked like
NOVELTY = "novelty"


@dataclass(frozen=True)
class Slide:
    """One slide of a manifest."""

    name: Name
    path: Path
    patient: Name
    organ: Name = "unknown"
    mpp: Positive | None = None
    #: further columns
    labels: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, f"slide {self.name!r}")


def read_manifest(manifest: pd.DataFrame | str | PathLike[str]) -> list[Slide]:
    """Slides of a table, or of a CSV or TSV file; paths in a file are relative to it."""
    frame, folder, where = _frame(manifest)
    if PATH not in frame.columns:
        raise MissingKeyError(
            f"{where} has no column 'path'; found: {listed(frame.columns)}. It names the slides' files."
        )
    taken = [name for name in (*WRITTEN, NOVELTY) if name in frame.columns]
    if taken and not set(WRITTEN) <= set(taken):
        raise DataError(
            f"{where} has column(s) {listed(taken)}, which the result uses for what became of a slide. Rename them, "
            f"e.g. {f'label_{taken[0]}'!r}."
        )
    frame = frame.drop(columns=taken)
    if frame.empty:
        raise DataError(f"{where} lists no slide.")
    if empty := [i for i, text in frame[PATH].items() if _missing(text)]:
        raise DataError(f"{where}: `path` is empty in line(s) {listed(empty)}.")
    paths = [Path(os.path.normpath(folder / expanded(str(text).strip()))) for text in frame[PATH]]
    names = [_name(frame, row, path) for row, path in enumerate(paths)]
    # Files that differ in case alone are one file on some systems.
    folded = Counter(name.casefold() for name in names)
    if double := sorted(name for name in names if folded[name.casefold()] > 1):
        raise DataError(f"{where}: slide name(s) {listed(double)} occur twice; tell them apart in a column 'slide'.")
    if double := sorted(str(path) for path, times in Counter(paths).items() if times > 1):
        raise DataError(f"{where}: file(s) {listed(double)} occur twice; a slide counts once.")
    if Keys.PATIENT not in frame.columns or frame[Keys.PATIENT].map(_missing).any():
        warn(
            f"{where} does not name the patient of every slide (column 'patient'); the slide's name stands for it. "
            "Slides of one patient may then end up on both sides of a split."
        )
    labels = [name for name in frame.columns if name not in (SLIDE, PATH, Keys.PATIENT, Keys.ORGAN, MPP)]
    return [
        Slide(
            name,
            path,
            patient=_text(row, Keys.PATIENT, name),
            organ=_text(row, Keys.ORGAN, "unknown"),
            mpp=None if MPP not in row or _missing(row[MPP]) else _number(row[MPP]),
            labels={key: row[key] for key in labels},
        )
        for name, path, (_, row) in zip(names, paths, frame.iterrows(), strict=True)
    ]


def _frame(manifest: pd.DataFrame | str | PathLike[str]) -> tuple[pd.DataFrame, Path, str]:
    if isinstance(manifest, pd.DataFrame):
        frame, named = manifest, manifest.index.name == SLIDE and SLIDE not in manifest.columns
        return (frame.reset_index() if named else frame.reset_index(drop=True)), Path.cwd(), "The manifest"
    if not isinstance(manifest, str | PathLike):
        raise TypeError(f"`manifest` must be a DataFrame or the path of a CSV or TSV, found {type(manifest).__name__}.")
    path = absolute(manifest)
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path.name}: a manifest ends in {', '.join(ENDINGS)}, found {path.suffix!r}.")
    if not path.is_file():
        raise DataError(f"No manifest at {str(path)!r}.")
    frame = read_slide_table(path)
    frame.index = frame.index + 2
    return frame, path.parent, path.name


def _missing(value: Any) -> bool:
    return bool(pd.isna(value)) or not str(value).strip()


def _name(frame: pd.DataFrame, row: int, path: Path) -> str:
    given = frame[SLIDE].iloc[row] if SLIDE in frame.columns else None
    if _missing(given):
        name = section_name(path.stem.removesuffix(".ome"))
        check_file_name(name, what="Slide name (of its file)")
        return name
    name = as_text(given).strip()
    if name != section_name(name):
        raise DataError(
            f"Slide name {name!r} must be of letters, digits, '_', '-' and '.', and not start with '_' or '.': files "
            f"are named by it. Call it {section_name(name)!r}."
        )
    check_file_name(name, what="Slide name")
    return name


def _text(row: pd.Series, key: str, default: str) -> str:
    return default if key not in row or _missing(row[key]) else as_text(row[key]).strip()


def _number(value: Any) -> Any:
    """A number that stands as text in a column with others that are none."""
    with suppress(ValueError, TypeError):
        return float(value)
    return value
