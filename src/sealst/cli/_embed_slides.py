"""The group ``sealst slides`` (whole slides, many at a time) and its command ``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst._settings import settings
from sealst.cli._common import EXIT_CODES, EXIT_DATA, Answer, SealstCommand
from sealst.cli._fit_slides import slides_fit, slides_predict
from sealst.cli._options import ANY_PATH, EXISTING, EXISTING_FILE, device_option, model_folder, net_help, stated
from sealst.cli._types import Genes


@click.group(
    epilog="Example: `sealst slides embed cohort.csv --out cohort --model run`, then `sealst slides fit cohort "
    f"--target grade --out grade`. {EXIT_CODES}"
)
def slides() -> None:
    """Whole slides, many at a time."""


@click.command(
    "embed",
    cls=SealstCommand,
    epilog="Examples: `sealst slides embed cohort.csv --out cohort --model my_model --n-workers 2`; `sealst slides "
    "embed cohort.csv --out cohort --encoder uni2-h --scheduler tcp://login1:8786`. Exit codes: 0 all slides done, 1 "
    "unexpected failure, 2 wrong usage, 3 input refused or some slides failed (OUT/failures.csv says which).",
)
@click.argument("manifest", type=EXISTING_FILE)
@click.option("--out", type=ANY_PATH, required=True,
              help="Folder for results; an earlier run in it is continued.")  # fmt: skip
@click.option("--model", type=EXISTING, default=None, help="Folder of a SEAL model, or of the run that made it.")
@click.option("--encoder", default=None, help="Or an encoder as it is: key, timm name, or local-dir:FOLDER.")
@click.option("--pool", default=None, help="Pooling of --encoder: cls, mean, cls+mean.")
@click.option("--crop-um", type=float, default=None, help="Side of a tile in µm; default the model's.")
@click.option("--crop-px", type=click.IntRange(min=1), default=None, help="And in pixels; default the model's.")
@click.option("--step-um", type=float, default=None, help="Distance of tiles in µm; default: they touch.")
@click.option("--min-tissue", type=float, default=0.5, show_default=True, help="Least share of tissue in a tile.")
@click.option("--frozen/--no-frozen", default=None,
              help="Also embed without the adapter; default for a SEAL model.")  # fmt: skip
@click.option("--expression", is_flag=True, help="Also write predicted expression.")
@click.option("--genes", type=Genes(), default=None,
              help="Of these genes only, by commas, or a text file with one per line.")  # fmt: skip
@click.option("--net", default=None, help=f"Score the activity of gene sets too. {net_help}")
@click.option("--n-workers", type=click.IntRange(min=0), default=0, show_default=True,
              help="Processes on this machine; 0 works in the command's own.")  # fmt: skip
@click.option("--scheduler", default=None, help="Address of a Dask scheduler, such as tcp://host:8786.")
@click.option("--tiles-per-task", type=click.IntRange(min=1), default=4096, show_default=True,
              help="Tiles that are embedded and kept at a time.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=None,
              help="Tiles per forward pass; default settings' batch_size (64).")  # fmt: skip
@click.option("--retries", type=click.IntRange(min=0), default=1, show_default=True, help="Of a step that failed.")
@device_option
@click.option("--overwrite", is_flag=True, help="Embed slides again that are finished.")
@click.option("--prune", is_flag=True, help="Remove results of slides that are not in MANIFEST, at the end.")
def slides_embed(
    manifest: Path,
    *,
    out: Path,
    model: Path | None,
    encoder: str | None,
    batch_size: int | None,
    device: str | None,
    **options: Any,
) -> Answer:
    """Embed the tissue of many slides, into one table per slide (tl.embed_slides).

    MANIFEST is a CSV or TSV with one slide per row: path, and if known slide (name), patient, organ, mpp; further
    columns are labels and are kept. Writes OUT/manifest.csv, OUT/failures.csv, OUT/run.json and OUT/slides/SLIDE.h5ad.
    Cut off at any point, the same command continues.
    """
    if (model is None) == (encoder is None):
        raise click.UsageError("Give one of --model and --encoder.")
    from sealst.tl import embed_slides

    folder: Any = encoder if model is None else model_folder(model)
    with settings.override(**stated(batch_size=batch_size)):
        found = embed_slides(manifest, folder, out, device=device, **options)
    failed = int((found["status"] != "done").sum())
    counts = {"slides": len(found), "failed": failed, "tiles": int(found["n_tiles"].sum())}
    text = f"{len(found) - failed} of {len(found)} slides, {counts['tiles']} tiles: {out}"
    if failed:
        text += f"\n{failed} slide(s) failed, see {out / 'failures.csv'}."
    rows = found.to_dict(orient="records")
    return Answer({"out": str(out)} | counts | {"rows": rows}, text, exit_code=EXIT_DATA if failed else 0)


for _command in (slides_embed, slides_fit, slides_predict):
    slides.add_command(_command)
