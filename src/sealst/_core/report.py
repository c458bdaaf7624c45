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
#: share of the size at which a picture was drawn that leaves its text readable, and width of the page;
#: on a narrower screen the picture scrolls sideways
_LEAST_SHARE, _PAGE_WIDTH = 0.62, 960
#: a picture of more colours shows tissue, where nobody sees what lossy compression leaves out; charts stay exact
_CHART_COLOURS = 4096
_TISSUE_QUALITY, _CHART_EFFORT = 82, 50
#: twice the width of the page, which is sharp on any screen; WebP ends at the longest side
_PAGE_PX, _LONGEST_PX = 1984, 16383
#: of a picture that does not say at how many pixels per inch it was drawn
_DPI = 150

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
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.caption { font-size: .9rem; opacity: .8; margin: 1.5rem 0 -.6rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child { padding-left: 0; } thead th { vertical-align: bottom; }
tbody th { font-weight: normal; } tbody th, td { white-space: nowrap; }
.n { text-align: right; } tbody .w { white-space: normal; min-width: 14rem; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .75; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for p in lead %}<p>{{ p }}</p>
{% endfor %}
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
<td{{ c.mark }}>{{ v }}</td>{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endfor %}
{% for f in s.figures %}<figure><div class="scroll" tabindex="0" role="region" aria-label="{{ f.caption }}">
<img style="min-width:{{ f.least_width }}px" src="{{ f.data }}" alt="{{ f.alt or f.caption }}"></div>
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

    @property
    def least_width(self) -> int:
        """Narrowest that it is shown, in pixels of the page (96 per inch)."""
        with Image.open(io.BytesIO(self.content)) as opened:
            drawn = opened.width * 96 / opened.info.get("dpi", (_DPI, _DPI))[0]
        return min(round(_LEAST_SHARE * drawn), _PAGE_WIDTH)


@dataclass(frozen=True)
class _Column:
    name: str
    numeric: bool
    long: bool

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
            found.append(_Column(str(name), numeric, any(len(cell) > _LONG_CELL for cell in cells)))
        return found

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
        """Return `table` and `tables`."""
        return ([] if self.table is None else [Table(self.table)]) + list(self.tables)


def render(title: str, lead: Sequence[str], blocks: Sequence[Block], footer: str) -> str:
    """Return HTML that refers to nothing outside itself."""
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    contents = len(blocks) >= _CONTENTS_FROM
    return template.render(title=title, lead=lead, sections=blocks, footer=footer, contents=contents)
