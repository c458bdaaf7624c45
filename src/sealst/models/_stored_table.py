"""Tables in the folder of a model, which may come from anybody: lines ``# key: value``, then tab-separated rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sealst._errors import CheckpointError
from sealst._files import TABLE_BYTES, read_text
from sealst._given.schema import Name, Stored


def table_text(facts: Mapping[str, Any], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text of a file: numbers in full, so that reading gives back the same, and unknown values (NaN) empty."""
    lines = [f"# {key}: {json.dumps(value)}" for key, value in facts.items()]
    cells = [["" if v != v else repr(v) if isinstance(v, float) else str(v) for v in row] for row in rows]
    return "\n".join([*lines, "\t".join(columns), *map("\t".join, cells)]) + "\n"


class OfModel(Stored):
    """What the lines above a table say of every kind."""

    #: fingerprint
    model: Name


S = TypeVar("S", bound=OfModel)


def read_table(
    path: Path, facts: type[S], columns: Sequence[str], *, model: str, without: str
) -> tuple[S, list[tuple[dict[str, str], str]]]:
    """What the lines above a table say, and the cells of its rows by `columns`, each with where it stands.

    Raises where the table is of another model than the one with this fingerprint; `without` says what the model does
    that has none.
    """
    lines = read_text(path, kind=CheckpointError, most=TABLE_BYTES).rstrip("\n").split("\n")
    n_facts = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    where = place_of(path)
    try:
        pairs = [line.removeprefix("# ").split(": ", 1) for line in lines[:n_facts]]
        stated = {key: json.loads(value) for key, value in pairs}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is damaged: {str(error)[:200]}") from error
    header, *rows = [line.split("\t") for line in lines[n_facts:]] or [[]]
    found = facts.of(stated, where=where)
    if found.model != model:
        raise CheckpointError(
            f"{where} is of the model {found.model}, not of {model}, which lies beside it. Remove the file; the model "
            f"then {without}."
        )
    if absent := [name for name in columns if name not in header]:
        raise CheckpointError(f"{where} is damaged: it has no column {absent[0]!r}.")
    return found, [(dict(zip(header, row, strict=False)), f"{where}, row {i}") for i, row in enumerate(rows, 1)]


def place_of(path: Path) -> str:
    """How messages call a file of a folder."""
    return f"{path.name} in {str(path.parent)!r}"
