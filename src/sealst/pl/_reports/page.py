"""What the reports share: pictures, tables of facts and versions, and writing the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealst._core.report import Block, Picture, Table, render
from sealst._errors import DataError
from sealst._files import write_text
from sealst._version import __version__
from sealst.pl import _base

_DPI = 110
#: longest text of a fact
_FACT_CHARS = 240
#: facts that stand in the table of versions, and texts that say nothing
_OF_VERSIONS, _NOTHING = ("version", "versions", "sealst"), ("", "None", "nan")


def check_page(path: Path, table: pd.DataFrame, what: str) -> None:
    """Raise unless a report can be written to `path`, and there are results in `table`."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"`path` must end in '.html', found {str(path)!r}.")
    if table.empty:
        raise DataError(f"The {what} has no results (`.table` has no rows).")


def write_page(
    path: Path, title: str, lead: list[str], blocks: Sequence[Block], *, answers: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write a report; the file is complete or not there at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(title, lead, blocks, f"sealst {__version__}", answers=answers))
    return path


def picture_of(draw: Callable[..., Figure | Axes], caption: str, *args: Any, alt: str, **options: Any) -> Picture:
    """Draw a figure and keep it as a PNG."""
    figure = draw(*args, **options)
    figure = figure if isinstance(figure, Figure) else _base.figure_of(figure)
    png = io.BytesIO()
    figure.savefig(png, dpi=_DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return Picture(png.getvalue(), caption, alt)


def facts_table(facts: Mapping[str, Any]) -> Table:
    """What was recorded about the evaluation, without what is empty and without versions, which have their own."""
    rows = [(key.replace("_", " "), plain_text(v)) for key, v in facts.items() if key not in _OF_VERSIONS]
    rows = [(key, value) for key, value in rows if value not in _NOTHING]
    return Table(pd.DataFrame(rows, columns=["fact", "value"]), "Recorded by the evaluation.")


def versions_table(facts: Mapping[str, Any]) -> Table:
    """Versions of the software that made the numbers, and of what wrote the report."""
    recorded = facts.get("versions", {})
    rows = list(recorded.items()) if isinstance(recorded, Mapping) else [("recorded", recorded)]
    rows = [(str(name), plain_text(v)) for name, v in rows]
    return Table(pd.DataFrame([*rows, ("sealst that wrote this report", __version__)], columns=["software", "version"]))


def plain_text(value: Any) -> str:
    """A recorded value as readable text, however it is nested."""
    if isinstance(value, Mapping):
        parts = {str(k): plain_text(v) for k, v in value.items()}
        same = len(parts) > 1 and len(set(parts.values())) == 1
        text = f"{next(iter(parts.values()))} (each)" if same else "; ".join(f"{k}: {v}" for k, v in parts.items())
    elif isinstance(value, list | tuple | set | frozenset | np.ndarray):
        text = ", ".join(plain_text(v) for v in value)
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return _base.shorten(text, _FACT_CHARS)


def count(n: int, what: str) -> str:
    """A number with its noun, in the plural where needed."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
