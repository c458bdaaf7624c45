"""The command ``sealst check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sealst.cli._common import EXIT_DATA, Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._options import format_option, reader_option, scale_options, sections_argument, stated
from sealst.cli._sections import is_several
from sealst.cli._types import EXISTING, merged


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst check outs --mpp 0.5 --option counts=raw`; `sealst check cohort.csv --json`. Exit "
    "codes: 0 no errors (warnings may be left), 1 unexpected failure, 2 wrong usage, 3 errors found.",
)
@sections_argument
@options_of("io.check", "region", image={"type": EXISTING, "help": "Full-resolution image, where it lies elsewhere."})
@format_option
@reader_option
@scale_options
@options_of("io.check", "table_key")
def check(
    sections: tuple[Path, ...],
    *,
    image: Path | None,
    mpp: float | None,
    format: str | None,
    options: tuple[Mapping[str, Any], ...],
    **given: Any,
) -> Answer:
    """Say what SECTIONS hold and what will go wrong with them.

    Each of SECTIONS is a folder or file with one section: the output of Space Ranger or of the Xenium analyzer,
    HEST-1k, a legacy Spatial Transcriptomics folder, a slide image, or a SpatialData zarr store; or several of them as
    a folder of stores or a manifest, of which path, image and mpp count here. Nothing is changed.
    """
    from sealst.io import check as check_section

    if taken := sorted(merged(options).keys() & {"region", "image", *given, "mpp", "format"}):
        raise click.UsageError(f"--option {taken[0]}=...: it is --{taken[0].replace('_', '-')}.")
    if image is not None and (len(sections) > 1 or is_several(sections[0])):
        raise click.UsageError("--image is the picture of one section; of several a manifest names it, in a column.")
    records, texts = [], []
    for name, path, said in _listed(sections):
        reading = said | merged(options) | stated(image=image, mpp=mpp, format=format)
        report = check_section(path, **given | reading)
        records.append({"section": name} | report.to_dict())
        texts.append(str(report))
    failed = sum(not record["ok"] for record in records)
    if len(records) > 1:
        texts.append(f"{len(records) - failed} of {len(records)} sections have no errors.")
    # What other commands give for input that they refuse.
    return Answer({"ok": not failed, "sections": records}, "\n\n".join(texts), EXIT_DATA if failed else 0)


def _listed(paths: Sequence[Path]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Name and path of every section, and what a manifest says about its reading."""
    import pandas as pd

    from sealst.io import read_collection

    for path in paths:
        if not is_several(path):
            yield (path.stem if path.is_file() or path.suffix == ".zarr" else path.name), path, {}
            continue
        for row in read_collection(path).manifest.to_dict("records"):
            yield (
                row["section"],
                Path(row["path"]),
                {n: row[n] for n in ("image", "mpp", "format") if pd.notna(row.get(n)) and row[n] != ""},
            )
