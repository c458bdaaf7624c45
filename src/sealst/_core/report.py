"""One self-contained HTML file from text, tables and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .75; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for p in lead %}<p>{{ p }}</p>
{% endfor %}
{% for s in sections %}
<section>
<h2>{{ s.heading }}</h2>
{% for p in s.text %}<p>{{ p }}</p>
{% endfor %}
{% if s.table is not none %}<div class="scroll"><table>
<thead><tr>{% for c in s.table.columns %}<th scope="col">{{ c }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in s.table.itertuples(index=False) %}
<tr>{% for v in row %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endif %}
{% for f in s.figures %}<figure><img src="data:image/png;base64,{{ f.data }}" alt="{{ f.caption }}">
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
    """A PNG file and what it shows."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The file as base64 text."""
        return base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Block:
    """One section of a report."""

    heading: str
    text: Sequence[str] = ()
    #: shown as it is: format numbers before
    table: pd.DataFrame | None = None
    figures: Sequence[Picture] = field(default_factory=tuple)


def render(title: str, lead: Sequence[str], blocks: Sequence[Block], footer: str) -> str:
    """Return HTML that refers to nothing outside itself."""
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(title=title, lead=lead, sections=blocks, footer=footer)
