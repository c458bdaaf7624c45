"""The group ``sealst slides``: whole slides, many at a time."""

from __future__ import annotations

import click

from sealst.cli._common import EXIT_CODES
from sealst.cli._embed_slides import slides_embed
from sealst.cli._fit_slides import slides_fit, slides_predict


@click.group(
    epilog="Example: `sealst slides embed cohort.csv --out cohort --model run`, then `sealst slides fit cohort "
    f"--target grade --out grade`. {EXIT_CODES}"
)
def slides() -> None:
    """Whole slides, many at a time."""


slides.add_command(slides_embed)
slides.add_command(slides_fit)
slides.add_command(slides_predict)
