"""The command ``sealst check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

#: exit code where the report holds an error: what other commands give for input that they refuse
EXIT_PROBLEMS = 3


@click.command(
    epilog="Exit codes: 0 no errors (warnings may be left), 1 unexpected failure, 2 wrong usage, 3 errors found."
)
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--image", type=click.Path(path_type=Path, exists=True), default=None,
              help="Full-resolution image, where it lies outside the folder.")  # fmt: skip
@click.option("--region", default=None, help="Region of the table; by default all.")
@click.option("--image-key", default=None, help="Name of the H&E image in a SpatialData store.")
@click.option("--coordinate-system", default="global", show_default=True, help="System in which image and spots meet.")
@click.option("--mpp", type=float, default=None, help="µm per pixel of the full-resolution image.")
@click.option("--pitch-um", type=float, default=None, help="Distance of neighbouring spots in µm (Visium 100).")
@click.option("--spot-um", type=float, default=None, help="Diameter of a spot in µm (Visium 55).")
@click.option("--table-key", default="table", show_default=True, help="Table whose rows are the spots.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, for pipelines.")
def check(
    path: Path,
    *,
    image: Path | None,
    region: str | None,
    image_key: str | None,
    coordinate_system: str,
    mpp: float | None,
    pitch_um: float | None,
    spot_um: float | None,
    table_key: str,
    as_json: bool,
) -> None:
    """Say what PATH holds and what will go wrong with it, before anything is computed.

    PATH is a folder or file with one section: the output of Space Ranger or of the Xenium analyzer, HEST-1k, a legacy
    Spatial Transcriptomics folder, a slide image, or a SpatialData zarr store. Nothing is changed.
    """
    from sealst.io import check as check_section

    report = check_section(
        path,
        image=image,
        region=region,
        image_key=image_key,
        coordinate_system=coordinate_system,
        mpp=mpp,
        pitch_um=pitch_um,
        spot_um=spot_um,
        table_key=table_key,
    )
    click.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, default=_plain) if as_json else str(report))
    if not report.ok:
        sys.exit(EXIT_PROBLEMS)


def _plain(value: Any) -> Any:
    """Numpy numbers as numbers, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)
