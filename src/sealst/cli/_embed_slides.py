"""The group ``sealst slides`` (whole slides, many at a time) and its command ``embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst._settings import settings
from sealst.cli import _options as opt
from sealst.cli._common import EXIT_CODES, EXIT_DATA, Answer, SealstCommand
from sealst.cli._fit_slides import slides_fit, slides_predict
from sealst.cli._from_signature import options_of
from sealst.cli._types import ANY_PATH, EXISTING, EXISTING_FILE


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
    "embed cohort.csv --out cohort --encoder uni2-h --scheduler tcp://login1:8786`. Exit codes: 0 all slides done or "
    "blank, 1 unexpected failure, 2 wrong usage, 3 input refused or some slides failed (OUT/failures.csv says which). "
    "Slides without tissue are blank, and fail nothing.",
)
@click.argument("manifest", type=EXISTING_FILE)
@click.option("--out", type=ANY_PATH, required=True,
              help="Folder for results; an earlier run in it is continued.")  # fmt: skip
@click.option("--model", type=EXISTING, default=None, help="Folder of a SEAL model, or of the run that made it.")
@opt.encoder_option
@options_of(
    "tl.embed_slides", "pool", "crop_um", "crop_px", "step_um", "min_tissue", "views", "frozen", "expression", "genes",
    "net", "n_workers", "scheduler", "tiles_per_task", "retries", "overwrite", "prune",
    crop_um={"sentences": 2},
    crop_px={"sentences": 2},
    expression={"help": "Write predicted expression too."},
    genes={"help": "Of which genes, by commas, or a text file with one per line; by default of the whole panel."},
    tiles_per_task={"sentences": 2},
    net={"help": f"Score the activity of gene sets too. {opt.net_help}"},
    retries={"type": click.IntRange(min=0)},
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=None,
              help="Tiles per forward pass; default settings' batch_size (64).")  # fmt: skip
@opt.device_option
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
    folder: Any = encoder if model is None else opt.model_folder(model)
    if encoder is not None:
        opt.check_encoder(encoder)
    if model is not None:
        opt.Stored(folder, None, None).check(options["genes"])
    from sealst.tl import embed_slides

    with settings.override(**opt.stated(batch_size=batch_size)):
        found = embed_slides(manifest, folder, out, device=device, **options)
    failed, blank = (int((found["status"] == status).sum()) for status in ("failed", "blank"))
    counts = {"slides": len(found), "failed": failed, "blank": blank, "tiles": int(found["n_tiles"].sum())}
    text = f"{len(found) - failed - blank} of {len(found)} slides, {counts['tiles']} tiles: {out}"
    if blank:
        text += f"\n{blank} slide(s) are blank."
    if failed:
        text += f"\n{failed} slide(s) failed, see {out / 'failures.csv'}."
    rows = found.to_dict(orient="records")
    return Answer({"out": str(out)} | counts | {"rows": rows}, text, exit_code=EXIT_DATA if failed else 0)


for _command in (slides_embed, slides_fit, slides_predict):
    slides.add_command(_command)
