"""The command ``sealst embed``; of a list of slides it becomes ``sealst slides embed``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from sealst._text_table import ENDINGS, first_lines, separator_of
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._embed_slides import slides_embed
from sealst.cli._from_signature import options_of
from sealst.cli._sections import Work, saved_text
from sealst.cli._types import AutoNumber


class _Embed(SealstCommand):
    """`sealst embed`; a table with a column ``slide`` lists slides, for which another command is responsible."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if any(_lists_slides(Path(arg)) for arg in args):
            return slides_embed.make_context(info_name, args, parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


def _lists_slides(path: Path) -> bool:
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return False
    try:
        lines = first_lines(path)
    except (OSError, UnicodeDecodeError):
        # The command says what is wrong with it.
        return False
    return "slide" in [name.strip() for name in next(csv.reader(lines, delimiter=separator_of(lines)), [])]


@click.command(
    cls=_Embed,
    epilog="Examples: `sealst embed s1.zarr s2.zarr --model run`; `sealst embed sections --encoder uni2-h --key-added "
    "X_uni --out tables`.",
)
@opt.model_options(required=False)
@opt.encoder_option
@options_of(
    "tl.embed", "modality", "pool", "pretrained", "crop_um", "views", "key_added",
    modality={"type": click.Choice(["image", "gene"])},
    pool={"help": "With --encoder: cls, mean or cls+mean; default its own way."},
    views={"type": AutoNumber(), "sentences": 2},
    pretrained={"help": "With --encoder: its weights, or random ones for tests."},
)  # fmt: skip
@opt.region_option
@opt.work_options()
@opt.device_option
def embed(work: Work, *, model: opt.Stored | None, encoder: str | None, device: str | None, **options: Any) -> Answer:
    """Embed the crop of every spot (tl.embed).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. Without --out the embeddings are
    saved in the stores, where they replace earlier ones of the same name. A table with a column 'slide' is a list of
    slides: `sealst slides embed` takes over, with its own options.
    """
    if (model is None) == (encoder is None):
        raise click.UsageError("Give one of --model and --encoder.")
    if encoder is not None:
        opt.check_encoder(encoder)
    if model is not None:
        model.check()
    work.check()
    chosen: Any = encoder if model is None else model.load(device)
    from sealst import tl

    key = options["key_added"] or ("X_seal" if options["modality"] == "image" else "X_seal_gene")
    given = opt.stated(table_key=work.table_key, device=device, **options)

    def run(sdata: Any) -> dict[str, Any]:
        tl.embed(sdata, chosen, **given)
        values = work.table(sdata).obsm[key]
        known = values[:, 0] == values[:, 0]
        return {"n_obs": len(values), "n_embedded": int(known.sum()), "dim": int(values.shape[1])}

    records = work.run(run)
    return Answer({"key": key, "sections": records}, saved_text(records, "n_obs", "n_embedded", "dim"))
