"""Short HTML for notebooks: everything is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

#: rows of a table that are shown
SHOWN = 10
_LEFT = "style='text-align:left'"


def as_html(title: str, facts: Mapping[str, Any], *, rows: Sequence[Mapping[str, Any]] = ()) -> str:
    """Title, names and values below each other, and a table of further rows.

    Parameters
    ----------
    title
        What is shown.
    facts
        Names and values.
    rows
        Rows with the same columns.
    """
    parts = [f"<p><b>{html.escape(title)}</b></p>"]
    if facts:
        lines = (f"<tr><th {_LEFT}>{html.escape(str(k))}</th>{_cell(v)}</tr>" for k, v in facts.items())
        parts.append(f"<table>{''.join(lines)}</table>")
    if rows:
        head = "".join(f"<th {_LEFT}>{html.escape(str(name))}</th>" for name in rows[0])
        body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows)
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
    return f"<div>{''.join(parts)}</div>"


def text_as_html(text: str) -> str:
    """HTML of a repr whose first line is a title, and whose others are ``name: value``."""
    title, *lines = text.splitlines()
    pairs = (line.partition(":") for line in lines)
    return as_html(title, {name.strip(): value.strip() for name, _, value in pairs})


def _cell(value: Any) -> str:
    return f"<td {_LEFT}>{html.escape(str(value))}</td>"
