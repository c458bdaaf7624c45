"""Slides as bags of tile embeddings, each read when it is asked for, and tables with a row for each slide."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sealst._errors import DataError
from sealst._html import SHOWN, as_html
from sealst._keys import Keys
from sealst._text_table import read_text_table
from sealst._validate import as_text, check_key, listed, patient_names


class BlankSlideError(DataError):
    """A slide with too few tiles of tissue, or none of whose tiles has an embedding."""


@dataclass(frozen=True, eq=False)
class Bag:
    """Tiles of one slide.

    Attributes
    ----------
    name
        Name of the slide.
    features
        Embeddings, float32 (n_tiles, dim), all finite.
    xy
        Centres of the tiles (x, y) in pixels of the full-resolution image, (n_tiles, 2); None where unknown.
    tiles
        Ids of the tiles, as in the table they come from, (n_tiles,).
    """

    name: str
    features: np.ndarray
    xy: np.ndarray | None
    tiles: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Bags(Sequence[Bag]):
    """Bags of several slides and what is known about each slide; see `sealst.io.read_bags`.

    Attributes
    ----------
    obs
        One row per slide, index = name of the slide: ``patient`` and every label.
    keys
        Names of the embeddings that every slide has, such as ``"X_seal"`` and ``"X_frozen"``.
    key
        The embedding that bags hold.
    facts
        Where the bags come from, and which model made each embedding (fingerprint or name), by key.
    """

    obs: pd.DataFrame
    keys: tuple[str, ...]
    key: str
    #: reads one slide's embedding of a name; must be picklable, so that loader workers can call it
    readers: Mapping[str, Callable[[str], Bag]] = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_key(self.keys, self.key, where="the bags' embeddings", hint="Name one of them with `key=`.")
        check_key(self.obs.columns, Keys.PATIENT, where="`bags.obs`", hint="Splits are by patient: add the column.")
        # Whatever the table said, 1, 1.0 and " 1" are one patient from here on.
        object.__setattr__(self, "obs", self.obs.assign(**{Keys.PATIENT: patient_names(self.obs[Keys.PATIENT])}))
        if double := sorted(self.obs.index[self.obs.index.duplicated()].unique()):
            raise DataError(f"Slide name(s) {listed(double)} occur twice; every slide needs a name of its own.")
        if missing := [name for name in self.obs.index if name not in self.readers]:
            raise DataError(f"Slide(s) {listed(missing)} have labels but no embeddings.")

    def __len__(self) -> int:
        return len(self.obs)

    def __iter__(self) -> Iterator[Bag]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, position: Any) -> Any:
        """Bag at a position, or the bags of a slice."""
        if isinstance(position, slice):
            return self.take(np.arange(len(self))[position])
        return self.readers[self.obs.index[position]](self.key)

    def __repr__(self) -> str:
        labels = [column for column in self.obs.columns if column != Keys.PATIENT]
        patients = self.obs[Keys.PATIENT].nunique()
        return f"Bags of {len(self)} slides, {patients} patients: {self.key!r} of {self.keys}; labels {listed(labels)}"

    def _repr_html_(self) -> str:
        rows = self.obs.iloc[:SHOWN].rename_axis("slide").reset_index().to_dict("records")
        return as_html(f"Bags of {len(self)} slides", {"embedding": self.key, "others": listed(self.keys)}, rows=rows)

    def take(self, rows: np.ndarray | Sequence[int]) -> Bags:
        """Bags of some rows of `obs`, by position or boolean mask."""
        obs = self.obs.iloc[np.asarray(rows)]
        return replace(self, obs=obs, readers={name: self.readers[name] for name in obs.index})

    def with_key(self, key: str) -> Bags:
        """Return the same slides with another of their embeddings."""
        return replace(self, key=key)

    def with_labels(self, labels: pd.DataFrame) -> Bags:
        """Bags with further columns of `obs`, joined by slide name; existing columns are replaced.

        The name is in the column ``slide``, or in the index where there is none. Slides without a row get missing
        values (and keep their patient); rows without a slide are left out. Raises `DataError` where no name agrees or
        one occurs twice.
        """
        return replace(self, obs=join_labels(self.obs, labels_by_slide(labels)))


SLIDE = "slide"
#: columns that hold names
NAMES = frozenset({SLIDE, "path", "file", "digest", Keys.PATIENT, Keys.ORGAN})
#: what stands for a missing label; "None" is a class in many tables
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "#NA", "#N/A N/A")


def read_slide_table(path: Path, *, names: Collection[str] = ()) -> pd.DataFrame:
    """Table of slides from a text file.

    Columns of names (the usual ones and `names`) are text as it stands there, so that ``007`` and ``NA`` are names; in
    all others, ``NA`` and the like are missing values.
    """
    texts = NAMES | set(names)
    options: dict[str, Any] = {"skipinitialspace": True, "keep_default_na": False}
    columns = read_text_table(path, **options, nrows=0).columns
    missing = {name: [""] if name.strip() in texts else list(_MISSING) for name in columns}
    kinds = {name: str for name in columns if name.strip() in texts}
    frame = read_text_table(path, **options, na_values=missing, dtype=kinds)
    frame.columns = frame.columns.str.strip()
    return frame


def labels_by_slide(labels: pd.DataFrame, slide: str = SLIDE) -> pd.DataFrame:
    """Labels with slides' names as index: of the column `slide` where it is there, else of the index."""
    table = labels.set_index(slide) if slide in labels.columns else labels.copy()
    table.index = table.index.map(as_text).astype(str)
    if double := sorted(table.index[table.index.duplicated()].unique()):
        raise DataError(f"`labels` has slide(s) {listed(double)} more than once; a slide has one row.")
    if Keys.PATIENT in table:
        table[Keys.PATIENT] = patient_names(table[Keys.PATIENT])
    return table


def join_labels(slides: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Slides with columns of labels, joined by name; a label that exists is replaced, a patient only where stated."""
    if not len(slides.index.intersection(labels.index)):
        raise DataError(
            f"No slide is named in `labels`: slides are {listed(slides.index, 3)}, labels of "
            f"{listed(labels.index, 3)}. Names must agree exactly, endings included, and stand in a column 'slide' or "
            "in the index; `read_bags` takes another column's name as `slide_key=`."
        )
    found = labels.reindex(slides.index)
    if Keys.PATIENT in found and Keys.PATIENT in slides:
        found[Keys.PATIENT] = found[Keys.PATIENT].where(found[Keys.PATIENT].notna(), slides[Keys.PATIENT])
    return slides.drop(columns=[column for column in labels.columns if column in slides.columns]).join(found)
