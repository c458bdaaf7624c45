"""One self-contained HTML file from text, tables and pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment
from PIL import Image

if TYPE_CHECKING:
    import pandas as pd

#: longer reports open with a list of their sections
_CONTENTS_FROM = 7
_NUMBER = re.compile(r"[−+-]?\d[\d.,]*( ?%)?( ?[±(\[].*| to [−+-]?\d[\d.,]*)?")
#: longer cells break into lines
_LONG_CELL = 40
#: pixels of the page that a table may take, of a character of it, and around each of its cells
_TABLE_PX, _CHAR_PX, _CELL_PX = 950, 7.4, 20
#: characters of a long cell that stand in one line at least
_WRAPPED = 28
#: a picture of more colours shows tissue, where nobody sees what lossy compression leaves out; charts stay exact
_CHART_COLOURS = 4096
_TISSUE_QUALITY, _CHART_EFFORT = 82, 50
#: twice the width of the page, which is sharp on any screen; WebP ends at the longest side
_PAGE_PX, _LONGEST_PX = 1984, 16383

# The policy lets a browser fetch nothing, whatever the text says.
_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
p, li { max-width: 46rem; } nav ul { columns: 16rem; padding-left: 1.2rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
dl { max-width: 50rem; border-left: 3px solid var(--line); padding-left: 1rem; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.caption { font-size: .9rem; opacity: .8; margin: 1.5rem 0 -.6rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child { padding-left: 0; } thead th { vertical-align: bottom; }
tbody th { font-weight: normal; } tbody th, td { white-space: nowrap; }
.n { text-align: right; } tbody .w { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
/* On a phone every row becomes a list of its cells, each after the name of its column. */
@media (max-width: 40rem) {
  thead { position: absolute; clip-path: inset(50%); } table, tbody, tr, th, td { display: block; }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--line); } tbody th { font-weight: 600; }
  tbody th, tbody td, tbody .w { border: 0; padding: .1rem 0; white-space: normal; min-width: 0; text-align: left; }
  td { display: flex; justify-content: space-between; gap: 1rem; } td.n { text-align: right; }
  td::before { content: attr(data-of); opacity: .8; }
}
footer { margin-top: 3rem; font-size: .85rem; opacity: .75; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for p in lead %}<p>{{ p }}</p>
{% endfor %}
{% if answers %}<dl>{% for q, a in answers %}
<dt>{{ q }}</dt><dd>{{ a }}</dd>{% endfor %}
</dl>{% endif %}
{% if contents %}<nav aria-label="Contents"><ul>
{% for s in sections %}<li><a href="#part{{ loop.index }}">{{ s.heading }}</a></li>
{% endfor %}</ul></nav>{% endif %}
{% for s in sections %}
<section id="part{{ loop.index }}">
<h2>{{ s.heading }}</h2>
{% for p in s.text %}<p>{{ p }}</p>
{% endfor %}
{% if s.points %}<ul>{% for p in s.points %}<li>{{ p }}</li>
{% endfor %}</ul>{% endif %}
{% for t in s.all_tables %}
{% if t.caption %}<p class="caption">{{ t.caption }}</p>{% endif %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ t.caption or s.heading }}"><table>
<thead><tr>{% for c in t.columns %}<th scope="col"{{ c.mark }}>{{ c.name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in t.rows %}
<tr>{% for c, v in row %}{% if loop.first %}<th scope="row"{{ c.mark }}>{{ v }}</th>{% else -%}
<td{{ c.mark }} data-of="{{ c.name }}">{{ v }}</td>{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endfor %}
{% for f in s.figures %}<figure><img src="{{ f.data }}" alt="{{ f.alt or f.caption }}">
<figcaption>{{ f.caption }}</figcaption></figure>
{% endfor %}
</section>
{% endfor %}
<footer>{{ footer }}</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows; in the report it stands as WebP, a fifth of the size."""

    #: a file, or its content
    png: Path | bytes
    caption: str
    #: for who cannot see it; by default the caption
    alt: str = ""

    @property
    def content(self) -> bytes:
        """The PNG."""
        return self.png if isinstance(self.png, bytes) else self.png.read_bytes()

    @property
    def data(self) -> str:
        """The picture as a ``data:`` address."""
        with Image.open(io.BytesIO(self.content)) as opened:
            picture = opened.convert("RGB")
        if max(picture.size) > _LONGEST_PX:
            return f"data:image/png;base64,{base64.b64encode(self.content).decode()}"
        chart = picture.getcolors(_CHART_COLOURS) is not None
        if not chart:
            picture.thumbnail((_PAGE_PX, _LONGEST_PX))
        webp = io.BytesIO()
        picture.save(webp, "webp", lossless=chart, quality=_CHART_EFFORT if chart else _TISSUE_QUALITY)
        return f"data:image/webp;base64,{base64.b64encode(webp.getvalue()).decode()}"


@dataclass(frozen=True)
class _Column:
    name: str
    numeric: bool
    long: bool
    #: pixels that it takes, about
    width: float

    @property
    def mark(self) -> str:
        # No quotes: the template would escape them.
        return " class=n" if self.numeric else " class=w" if self.long else ""


@dataclass(frozen=True, eq=False)
class Table:
    """A table, its cells formatted, and what it shows."""

    frame: pd.DataFrame
    caption: str = ""

    @property
    def columns(self) -> list[_Column]:
        """Names of the columns, and which of them hold numbers."""
        found = []
        for i, name in enumerate(self.frame.columns):
            cells = [str(cell) for cell in self.frame.iloc[:, i]]
            filled = [cell for cell in cells if cell not in ("", "–", "nan")]
            numeric = bool(filled) and all(_NUMBER.fullmatch(cell) for cell in filled)
            longest = max(map(len, cells), default=0)
            head = max(map(len, str(name).split()), default=0)
            width = _CHAR_PX * max(head, longest if longest <= _LONG_CELL else _WRAPPED) + _CELL_PX
            found.append(_Column(str(name), numeric, longest > _LONG_CELL, width))
        return found

    def fitted(self) -> list[Table]:
        """The table in parts that fit on the page, each with the words that name a row: what is left of all numbers."""
        columns = self.columns
        n_named = max(1, next((i for i, column in enumerate(columns) if column.numeric), len(columns)))
        named = sum(column.width for column in columns[:n_named])
        parts: list[list[int]] = [[]]
        for i, column in enumerate(columns[n_named:], start=n_named):
            taken = named + sum(columns[k].width for k in parts[-1])
            if parts[-1] and taken + column.width > _TABLE_PX:
                parts.append([])
            parts[-1].append(i)
        whole = self.caption.rstrip(".")
        return [
            Table(
                self.frame.iloc[:, [*range(n_named), *part]],
                self.caption if not k else f"{whole}, continued." if whole else "",
            )
            for k, part in enumerate(parts)
        ]

    @property
    def rows(self) -> list[list[tuple[_Column, object]]]:
        """Cells with their column."""
        columns = self.columns
        return [list(zip(columns, row, strict=True)) for row in self.frame.itertuples(index=False)]


@dataclass(frozen=True)
class Block:
    """One section of a report."""

    heading: str
    text: Sequence[str] = ()
    #: shown as it is: format numbers before
    table: pd.DataFrame | None = None
    figures: Sequence[Picture] = field(default_factory=tuple)
    #: items of a list below the text
    points: Sequence[str] = ()
    #: further tables, with captions
    tables: Sequence[Table] = ()

    @property
    def all_tables(self) -> list[Table]:
        """Return `table` and `tables`, those that are too wide for the page in parts."""
        found = ([] if self.table is None else [Table(self.table)]) + list(self.tables)
        return [part for table in found for part in table.fitted()]


def render(
    title: str,
    lead: Sequence[str],
    blocks: Sequence[Block],
    footer: str,
    *,
    answers: Sequence[tuple[str, str]] = (),
) -> str:
    """Return HTML that refers to nothing outside itself; `answers` are questions and what is known, before the rest."""
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    contents = len(blocks) >= _CONTENTS_FROM
    return template.render(title=title, lead=lead, answers=answers, sections=blocks, footer=footer, contents=contents)
