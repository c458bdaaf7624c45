"""The command ``sealst index``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import check_new, open_sections_or_tables


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst index sections --out library --model run --columns stage`, then `sealst retrieve library "
    "--model run --genes CD3E,MS4A1 --where organ=breast`.",
)
@opt.sections_argument
@opt.out_option("New folder for the index.")
@options_of(
    "tl.build_index", "key", "kind", "params", "columns",
    kind={"type": click.Choice(["auto", "exact", "flat", "ivf", "hnsw"]), "sentences": 2},
    params={"sentences": 2},
)  # fmt: skip
@opt.model_options(
    required=False,
    help="Model that made the embeddings: what it predicts is kept beside them, to be asked for genes.",
)
@opt.table_key_option
@opt.device_option
def index(
    sections: tuple[Path, ...],
    *,
    out: Path,
    overwrite: bool,
    model: opt.Stored | None,
    device: str | None,
    **options: Any,
) -> Answer:
    """Build an index of embedded sections for sealst retrieve.

    Calls tl.build_index. SECTIONS are zarr stores after `sealst embed`, a folder of them, a manifest, or h5ad tables
    that an --out wrote; one is open at a time. Spots without an embedding are left out.
    """
    if model is None and device:
        raise click.UsageError("--device belongs to --model.")
    check_new(out, overwrite)
    if model is not None:
        model.check()
    opened = open_sections_or_tables(sections)
    from sealst.tl import build_index

    heads = None if model is None else model.load(device)
    made = build_index(opened, out, model=heads, overwrite=overwrite, **opt.stated(**options))
    facts = {"out": str(out), "kind": made.kind, "n_obs": len(made), "dim": made.dim, "model": made.model}
    return Answer(facts | {"sections": list(made.sections)}, repr(made))
