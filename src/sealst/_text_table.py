"""Tables in text files, whatever separates their columns: commas, semicolons or tabs."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sealst._errors import DataError
from sealst._files import TABLE_BYTES, read_text

if TYPE_CHECKING:
    import pandas as pd

#: endings of the names of such files
ENDINGS = (".csv", ".tsv", ".txt")
#: lines that tell the separator
_LINES = 20
#: of several that fit alike the first counts, as a comma may be a decimal one
_SEPARATORS = ("\t", ";", ",")
_QUOTED = re.compile(r'"[^"]*"')
_POINT, _COMMA = (re.compile(rf"(?:^|[\t;])\s*[+-]?\d*{sign}\d+\s*(?=[\t;]|$)", re.M) for sign in (r"\.", ","))


def read_text_table(path: Path, **options: Any) -> pd.DataFrame:
    """Table of a text file (UTF-8) as `pandas.read_csv` reads it, with the separator and the decimal sign it has.

    The sign is ``.attrs["decimal"]``, for cells that are read as text.

    Raises
    ------
    DataError
        When it is no table.
    """
    import pandas as pd

    text = read_text(path, most=TABLE_BYTES)
    separator = separator_of(text.split("\n", _LINES)[:_LINES])
    # A comma where it separates no columns and every number with decimals has one.
    decimal = "," if separator != "," and _COMMA.search(text) and not _POINT.search(text) else "."
    try:
        frame: pd.DataFrame = pd.read_csv(io.StringIO(text), sep=separator, decimal=decimal, **options)
    except ValueError as error:
        raise DataError(f"{path.name} could not be read as a table: {error}") from error
    frame.attrs["decimal"] = decimal
    return frame


def first_lines(path: Path) -> list[str]:
    """Lines that tell the separator of a text file."""
    with _opened(path) as stream:
        return list(islice(stream, _LINES))


def separator_of(lines: Sequence[str]) -> str:
    """What separates the columns of a table, given its header and some lines below.

    It stands in the header, and as often in the lines below. A file of one column has none: its commas separate
    nothing.
    """
    header, *below = [_QUOTED.sub("", line) for line in lines if line.strip()] or [""]
    known = [sign for sign in _SEPARATORS if sign in header]
    return max(known, key=lambda s: sum(line.count(s) == header.count(s) for line in below), default=_SEPARATORS[0])


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")
