"""Tables as files, in the format that their ending names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealst.cli._common import as_json

if TYPE_CHECKING:
    import pandas as pd

_WRITERS = {
    ".csv": lambda frame: frame.to_csv(index=False),
    ".tsv": lambda frame: frame.to_csv(index=False, sep="\t"),
    ".json": lambda frame: as_json(frame.to_dict(orient="records")) + "\n",
}


def check_ending(path: Path, option: str) -> None:
    """Refuse an ending that names no format."""
    if path.suffix.lower() not in _WRITERS:
        raise click.UsageError(f"{option} must end in {', '.join(_WRITERS)}, found {path.name!r}.")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table that appears complete or not at all."""
    from sealst._files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _WRITERS[path.suffix.lower()](frame))
