"""The command ``sealst embed``; of a list of slides it becomes ``sealst slides embed``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from sealst._text_table import ENDINGS, first_lines, separator_of
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand
from sealst.cli._embed_slides import slides_embed
from sealst.cli._options import (
    EXISTING,
    device_option,
    load_model,
    region_option,
    sections_argument,
    stated,
    table_key_option,
    table_out_options,
)
from sealst.cli._sections import Work, saved_text


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
    f"X_uni --out tables`. {EXIT_CODES}",
)
@sections_argument
@click.option("--model", type=EXISTING, default=None, help="Folder of a SEAL model, or of the run that made it.")
@click.option("--encoder", default=None, help="An encoder as it is: key of `sealst encoders`, timm name, local-dir:…")
@click.option("--weights", type=EXISTING, default=None, help="With --model: the base encoder's weights.")
@click.option("--base", default=None, help="With --model: where the base encoder is now, if it moved.")
@click.option("--modality", type=click.Choice(["image", "gene"]), default="image", show_default=True,
              help="What is embedded: the picture, or the measured expression.")  # fmt: skip
@click.option("--pool", default=None, help="With --encoder: cls, mean or cls+mean; default its own way.")
@click.option("--pretrained/--no-pretrained", default=True, show_default=True, help="With --encoder.")
@click.option("--crop-um", type=float, default=None, help="With --encoder: paired crop size; default the first.")
@click.option("--key-added", default=None, help="Slot in .obsm; default X_seal, or X_seal_gene for expression.")
@table_out_options
@region_option
@table_key_option
@device_option
def embed(
    sections: tuple[Path, ...],
    *,
    model: Path | None,
    encoder: str | None,
    weights: Path | None,
    base: str | None,
    out: Path | None,
    overwrite: bool,
    table_key: str,
    device: str | None,
    **options: Any,
) -> Answer:
    """Embed the crop of every spot (tl.embed).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. Without --out the embeddings are
    saved in the stores, where they replace earlier ones of the same name. A table with a column 'slide' is a list of
    slides: `sealst slides embed` takes over, with its own options.
    """
    if (model is None) == (encoder is None):
        raise click.UsageError("Give one of --model and --encoder.")
    if model is None and (weights or base):
        raise click.UsageError("--weights and --base belong to --model.")
    work = Work(sections, out, overwrite, table_key)
    chosen: Any = encoder if model is None else load_model(model, weights=weights, base=base, device=device)
    from sealst import tl

    key = options["key_added"] or ("X_seal" if options["modality"] == "image" else "X_seal_gene")
    given = stated(**options) | stated(table_key=table_key, device=device)

    def run(sdata: Any) -> dict[str, Any]:
        tl.embed(sdata, chosen, **given)
        return _found(sdata.tables[table_key].obsm[key])

    records = work.run(run)
    return Answer({"key": key, "sections": records}, saved_text(records, "n_obs", "n_embedded", "dim"))


def _found(values: Any) -> dict[str, Any]:
    known = values[:, 0] == values[:, 0]
    return {"n_obs": len(values), "n_embedded": int(known.sum()), "dim": int(values.shape[1])}
