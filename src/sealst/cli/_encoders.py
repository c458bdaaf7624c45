"""The commands ``sealst encoders`` and ``sealst export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst._text_table import read_text_table
from sealst._validate import check_key
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._options import Stored, device_option, model_options, out_option
from sealst.cli._sections import check_new
from sealst.cli._types import EXISTING_FILE

#: columns of the table for people; --show and --json give all
_SHOWN = ["dim", "input_px", "native_mpp", "pool", "licence", "gated", "commercial"]


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst encoders`; `sealst encoders --show uni2-h`; `sealst encoders --json`.",
)
@click.option("--show", default=None, help="Everything about one of them.")
def encoders(show: str | None) -> Answer:
    """List the published encoders (models.list_encoders).

    They are known by key. Any timm vision transformer or convolutional network and any local timm folder work too.
    """
    from sealst.models import list_encoders
    from sealst.models._encoders.records import REGISTRY

    if show is not None:
        check_key(list(REGISTRY), show, where="the published encoders", hint="See `sealst encoders`.")
    table = list_encoders()
    if show is None:
        return Answer(_records(table), table[_SHOWN].to_string())
    one = table.loc[show]
    return Answer(_records(table.loc[[show]])[0], f"{show}\n{one.to_string()}")


def _records(table: Any) -> list[dict[str, Any]]:
    return [
        {str(n): None if (v is None or v != v) else v for n, v in row.items()}
        for row in table.reset_index().to_dict(orient="records")
    ]


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst export --model run --out encoder`; `sealst export --model run --format adapter --out "
    "lora`.",
)
@model_options()
@out_option("New folder.")
@click.option("--format", "kind", type=click.Choice(["timm", "adapter"]), default="timm", show_default=True,
              help="timm: the encoder with the adapter merged in; adapter: LoRA alone, in peft's format.")  # fmt: skip
@click.option("--evaluation", type=EXISTING_FILE, default=None,
              help="evaluation.csv of `sealst evaluate`, for the model card.")  # fmt: skip
@device_option
def export(
    *, model: Stored, out: Path, overwrite: bool, kind: str, evaluation: Path | None, device: str | None
) -> Answer:
    """Write a model's image encoder for other tools.

    Calls SealModel.export_timm or SealModel.export_adapter. A timm folder is loaded again and compared before it is
    put in its place. Mind the licence of the base encoder: many do not let merged weights be passed on.
    """
    check_new(out, overwrite)
    model.check()
    seal = model.load(device)
    write = seal.export_timm if kind == "timm" else seal.export_adapter
    table = None if evaluation is None else read_text_table(evaluation)
    folder = write(out, evaluation=table, overwrite=overwrite)
    files = sorted(p.name for p in Path(folder).iterdir())
    facts = {"path": str(folder), "format": kind, "model": seal.fingerprint, "files": files}
    return Answer(facts, f"{folder}: {', '.join(files)}")
