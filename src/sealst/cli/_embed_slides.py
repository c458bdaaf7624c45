"""The command ``sealst slides embed``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from sealst._logging import logger
from sealst._settings import settings

#: exit code where slides failed: what other commands give for input that they refuse
EXIT_SLIDES = 3


@click.command(
    "embed",
    epilog="Exit codes: 0 all slides done, 1 unexpected failure, 2 wrong usage, 3 input refused or some slides failed "
    "(OUT/failures.csv says which).",
)
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="Folder for results; an earlier run in it is continued.")  # fmt: skip
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None,
              help="Folder of a SEAL model.")  # fmt: skip
@click.option("--encoder", default=None, help="Or an encoder as it is: key, timm name, or local-dir:FOLDER.")
@click.option("--pool", default=None, help="Pooling of --encoder: cls, mean, cls+mean.")
@click.option("--tile-um", type=float, default=None, help="Side of a tile in µm; default the model's.")
@click.option("--tile-px", type=click.IntRange(min=1), default=None, help="And in pixels; default the model's.")
@click.option("--step-um", type=float, default=None, help="Distance of tiles in µm; default: they touch.")
@click.option("--min-tissue", type=float, default=0.5, show_default=True, help="Least share of tissue in a tile.")
@click.option("--frozen/--no-frozen", default=None,
              help="Also embed without the adapter; default for a SEAL model.")  # fmt: skip
@click.option("--expression", is_flag=True, help="Also write predicted expression.")
@click.option("--gene", "genes", multiple=True, help="Of this gene only; may be given several times.")
@click.option("--net", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=None,
              help="Gene sets (GMT or CSV) whose activity to score.")  # fmt: skip
@click.option("--n-workers", type=click.IntRange(min=0), default=0, show_default=True,
              help="Processes on this machine; 0 works in the command's own.")  # fmt: skip
@click.option("--scheduler", default=None, help="Address of a Dask scheduler, such as tcp://host:8786.")
@click.option("--tiles-per-task", type=click.IntRange(min=1), default=4096, show_default=True,
              help="Tiles that are embedded and kept at a time.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Tiles per forward pass.")
@click.option("--retries", type=click.IntRange(min=0), default=1, show_default=True, help="Of a step that failed.")
@click.option("--device", default=None, help="auto, cpu, cuda, …")
@click.option("--overwrite", is_flag=True, help="Embed slides again that are finished.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of the slides as JSON, for pipelines.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar and no messages.")
def slides_embed(
    manifest: Path,
    *,
    out: Path,
    model: Path | None,
    encoder: str | None,
    genes: tuple[str, ...],
    net: Path | None,
    batch_size: int,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Embed the tissue of many slides, into one table per slide.

    MANIFEST is a CSV or TSV with one slide per row: path, and if known slide (name), patient, organ, mpp; further
    columns are labels and are kept. Writes OUT/manifest.csv, OUT/failures.csv, OUT/run.json and OUT/slides/SLIDE.h5ad.
    Cut off at any point, the same command continues.

    \b
    sealst slides embed cohort.csv --out cohort --model my_model --n-workers 2
    sealst slides embed cohort.csv --out cohort --encoder uni2-h --scheduler tcp://login1:8786
    """  # noqa: D301  click takes the backspace for "do not wrap"
    if (model is None) == (encoder is None):
        raise click.UsageError("Give one of --model and --encoder.")
    from sealst.tl import embed_slides

    if quiet or as_json:
        logger.setLevel(logging.WARNING)
    with settings.override(batch_size=batch_size, progress=settings.progress and not (quiet or as_json)):
        found = embed_slides(
            manifest, out, encoder if model is None else model,  # type: ignore[arg-type]
            genes=list(genes) or None,
            net=None if net is None else str(net),
            **options,
        )  # fmt: skip
    failed = found[found["status"] != "done"]
    if as_json:
        rows = json.loads(found.to_json(orient="records"))
        counts = {"slides": len(found), "failed": len(failed), "tiles": int(found["n_tiles"].sum())}
        click.echo(json.dumps({"out": str(out)} | counts | {"rows": rows}, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{len(found) - len(failed)} of {len(found)} slides, {found['n_tiles'].sum()} tiles: {out}")
    if len(failed):
        click.echo(f"{len(failed)} slide(s) failed, see {out / 'failures.csv'}.", err=True)
        sys.exit(EXIT_SLIDES)
