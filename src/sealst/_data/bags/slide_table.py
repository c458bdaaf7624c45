"""Tables with one row per slide: names are kept as they stand, whatever they look like."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._validate import as_text, listed, patient_text

SLIDE = "slide"
#: columns that hold names
NAMES = frozenset({SLIDE, "path", "file", "digest", Keys.PATIENT, Keys.ORGAN})
#: what stands for a missing label; "None" is a class in many tables
_MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "#NA", "#N/A N/A")


def read_slide_table(path: Path, *, separator: str = ",", names: Collection[str] = ()) -> pd.DataFrame:
    """Table of slides from a text file.

    Columns of names (the usual ones and `names`) are text as it stands there, so that ``007`` and ``NA`` are names; in
    all others, ``NA`` and the like are missing values.
    """
    texts = NAMES | set(names)
    options: dict[str, Any] = {"sep": separator, "skipinitialspace": True, "keep_default_na": False}
    try:
        columns = pd.read_csv(path, **options, nrows=0).columns
        missing = {name: [""] if name.strip() in texts else list(_MISSING) for name in columns}
        kinds = {name: str for name in columns if name.strip() in texts}
        frame = pd.read_csv(path, **options, na_values=missing, dtype=kinds)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not encoded as UTF-8 ({error}). Save it so, e.g. as 'CSV UTF-8'.") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} could not be read as a table: {error}") from error
    frame.columns = frame.columns.str.strip()
    if len(frame.columns) == 1 and (other := next((c for c in ",;\t" if c in frame.columns[0]), None)):
        raise DataError(
            f"{path.name} has one column, {frame.columns[0]!r}: it is separated by {other!r}, and {separator!r} was "
            "expected. Save it with commas as .csv or with tabs as .tsv."
        )
    return frame


def labels_by_slide(labels: pd.DataFrame, slide: str = SLIDE) -> pd.DataFrame:
    """Labels with slides' names as index: of the column `slide` where it is there, else of the index."""
    table = labels.set_index(slide) if slide in labels.columns else labels.copy()
    table.index = table.index.map(as_text).astype(str)
    if double := sorted(table.index[table.index.duplicated()].unique()):
        raise DataError(f"`labels` has slide(s) {listed(double)} more than once; a slide has one row.")
    if Keys.PATIENT in table:
        table[Keys.PATIENT] = patients_of(table[Keys.PATIENT])
    return table


def check_some_agree(slides: pd.Index, labels: pd.Index) -> None:
    """Raise where no slide has labels."""
    if not len(slides.intersection(labels)):
        raise DataError(
            f"No slide is named in `labels`: slides are {listed(slides, 3)}, labels of {listed(labels, 3)}. "
            "Names must agree exactly, endings included, and stand in a column 'slide' or in the index; `read_bags` "
            "takes another column's name as `slide_key=`."
        )


def patients_of(column: pd.Series) -> pd.Series:
    """Patients as text, None where missing; before rows are joined, since that may turn 1 into 1.0."""
    return pd.Series([patient_text(value) for value in column], index=column.index, dtype=object)
