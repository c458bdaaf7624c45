"""A gene panel as a tab-separated file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sealst._errors import PanelError
from sealst._files import write_text
from sealst._validate import listed

if TYPE_CHECKING:
    from sealst._core.genes.panel import GenePanel

_COLUMNS = ("gene", "ensembl", "mean", "std")
#: column of a panel whose sections measure different genes: one digit per section, 1 where it measures the gene
_MEASURED = "measured"


def write_panel(panel: GenePanel, target: Path) -> None:
    """Write a panel; the file appears complete or not at all."""
    facts = {
        "species": panel.species,
        "layer": panel.layer,
        "target_sum": panel.target_sum,
        "sections": list(panel.sections),
        "n_genes": len(panel),
        "fingerprint": panel.fingerprint,
    }
    columns: list[Sequence[str]] = [
        panel.genes,
        panel.ensembl or ("",) * len(panel),
        [repr(value) for value in panel.mean.tolist()],
        [repr(value) for value in panel.std.tolist()],
    ]
    names: tuple[str, ...] = _COLUMNS
    if panel.availability is not None:
        names = (*_COLUMNS, _MEASURED)
        columns.append(["".join("01"[bit] for bit in gene) for gene in panel.availability.T.astype(int)])
    lines = [f"# {key}: {json.dumps(value)}" for key, value in facts.items()]
    lines.append("\t".join(names))
    lines += ["\t".join(row) for row in zip(*columns, strict=True)]
    write_text(target, "\n".join(lines) + "\n")


def read_panel(path: Path) -> tuple[dict[str, Any], str | None]:
    """Fields of the panel in a file, and the fingerprint it was written with."""
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    facts = _parse_facts(path, lines[:start])
    columns = tuple(lines[start].split("\t")) if start < len(lines) else ()
    if columns not in (_COLUMNS, (*_COLUMNS, _MEASURED)):
        found = repr(lines[start]) if start < len(lines) else "the end of the file"
        raise PanelError(f"{path}, line {start + 1}: expected the columns {listed(_COLUMNS)}, found {found}.")
    rows = [_parse_row(path, start + 2 + i, line, columns) for i, line in enumerate(lines[start + 1 :])]
    if "n_genes" in facts and len(rows) != facts["n_genes"]:
        raise PanelError(f"{path}, line {len(lines)}: the file ends after {len(rows)} of {facts['n_genes']} genes.")
    sections = tuple(facts.get("sections", ()))
    availability = None
    if _MEASURED in columns:
        availability = _parse_measured(path, start + 2, [row[4] for row in rows], len(sections))
    fields = {
        "genes": tuple(r[0] for r in rows),
        "mean": np.array([float(r[2]) for r in rows]),
        "std": np.array([float(r[3]) for r in rows]),
        "ensembl": tuple(r[1] for r in rows) if any(r[1] for r in rows) else (),
        "target_sum": facts.get("target_sum", 1e4),
        "layer": facts.get("layer", "context"),
        "species": facts.get("species", "human"),
        "sections": sections,
        "availability": availability,
    }
    return fields, facts.get("fingerprint")


def _parse_facts(path: Path, lines: Sequence[str]) -> dict[str, Any]:
    types = {"species": str, "layer": str, "target_sum": float, "sections": list, "n_genes": int, "fingerprint": str}
    facts: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        key, colon, text = line.lstrip("# ").partition(":")
        if not colon or key.strip() not in types:
            continue  # a comment by a person
        try:
            value = json.loads(text)
        except ValueError as error:
            raise PanelError(f"{path}, line {number}: {key!r} must be a JSON value, found {text.strip()!r}.") from error
        expected = types[key]
        if not isinstance(value, (int, float) if expected is float else expected):
            raise PanelError(f"{path}, line {number}: {key!r} must be {expected.__name__}, found {text.strip()!r}.")
        facts[key] = value
    return facts


def _parse_row(path: Path, number: int, line: str, columns: Sequence[str]) -> list[str]:
    cells = line.split("\t")
    if len(cells) != len(columns):
        raise PanelError(f"{path}, line {number}: expected {len(columns)} columns, found {len(cells)}: {line!r}.")
    if not cells[0].strip():
        raise PanelError(f"{path}, line {number}: column 'gene' is empty.")
    for column, cell in zip(columns[2:4], cells[2:4], strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise PanelError(f"{path}, line {number}: column {column!r} must be a finite number, found {cell!r}.")
    return cells


def _parse_measured(path: Path, start: int, cells: Sequence[str], n_sections: int) -> np.ndarray:
    for number, cell in enumerate(cells, start=start):
        if len(cell) != n_sections or set(cell) - {"0", "1"}:
            raise PanelError(
                f"{path}, line {number}: column {_MEASURED!r} must have a 0 or 1 for each of the {n_sections} "
                f"sections, found {cell!r}."
            )
    return np.array([[digit == "1" for digit in cell] for cell in cells], dtype=bool).reshape(-1, n_sections).T
