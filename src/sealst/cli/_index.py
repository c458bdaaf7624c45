"""The command ``sealst index``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst._keys import Keys
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand
from sealst.cli._options import (
    ANY_PATH,
    EXISTING,
    base_options,
    device_option,
    load_model,
    overwrite_option,
    sections_argument,
    stated,
    table_key_option,
)
from sealst.cli._sections import check_new, open_sections_or_tables
from sealst.cli._types import Several, YamlMapping


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst index sections --out library --columns stage`, then `sealst retrieve library --model run "
    f"--genes CD3E,MS4A1 --where organ=breast`. {EXIT_CODES}",
)
@sections_argument
@click.option("--out", type=ANY_PATH, required=True, help="New folder for the index.")
@overwrite_option
@click.option("--key", default=Keys.EMBEDDING, show_default=True, help="Slot in .obsm with the embeddings.")
@click.option("--kind", type=click.Choice(["auto", "exact", "flat", "ivf", "hnsw"]), default="auto", show_default=True,
              help="How it is searched; all but exact need the extra 'index'.")  # fmt: skip
@click.option("--params", type=YamlMapping(), default=None,
              help="ivf: n_lists, n_probe; hnsw: links, ef_construction, ef_search; as '{n_probe: 64}'.")  # fmt: skip
@click.option("--columns", type=Several(click.STRING), default=None,
              help="Further columns of .obs to keep, by commas, for --where and in hits.")  # fmt: skip
@click.option("--model", type=EXISTING, default=None,
              help="Model that made the embeddings; needed where it has projection heads.")  # fmt: skip
@base_options
@table_key_option
@device_option
def index(
    sections: tuple[Path, ...],
    *,
    out: Path,
    overwrite: bool,
    model: Path | None,
    weights: Path | None,
    base: str | None,
    device: str | None,
    **options: Any,
) -> Answer:
    """Build an index of embedded sections for sealst retrieve.

    Calls tl.build_index. SECTIONS are zarr stores after `sealst embed`, a folder of them, a manifest, or h5ad tables
    that an --out wrote; one is open at a time. Spots without an embedding are left out.
    """
    if model is None and (weights or base or device):
        raise click.UsageError("--weights, --base and --device belong to --model.")
    check_new(out, overwrite)
    opened = open_sections_or_tables(sections)
    from sealst.tl import build_index

    heads = None if model is None else load_model(model, weights=weights, base=base, device=device)
    made = build_index(opened, out, model=heads, overwrite=overwrite, **stated(**options))
    facts = {"out": str(out), "kind": made.kind, "n_obs": len(made), "dim": made.dim, "model": made.model}
    return Answer(facts | {"sections": list(made.sections)}, repr(made))
