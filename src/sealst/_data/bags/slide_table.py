"""Tables with one row per slide: names are kept as they stand, whatever they look like."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._text_table import read_text_table
from sealst._validate import as_text, listed, patient_names

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
    try:
        columns = read_text_table(path, **options, nrows=0).columns
        missing = {name: [""] if name.strip() in texts else list(_MISSING) for name in columns}
        kinds = {name: str for name in columns if name.strip() in texts}
        frame = read_text_table(path, **options, na_values=missing, dtype=kinds)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not encoded as UTF-8 ({error}). Save it so, e.g. as 'CSV UTF-8'.") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} could not be read as a table: {error}") from error
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
