"""The command ``sealst check``."""

from __future__ import annotations

from pathlib import Path

import click

from sealst.cli._common import EXIT_DATA, Answer, SealstCommand


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst check outs --mpp 0.5`. Exit codes: 0 no errors (warnings may be left), 1 unexpected "
    "failure, 2 wrong usage, 3 errors found.",
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
) -> Answer:
    """Say what PATH holds and what will go wrong with it.

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
    # What other commands give for input that they refuse.
    return Answer(report.to_dict(), str(report), 0 if report.ok else EXIT_DATA)
