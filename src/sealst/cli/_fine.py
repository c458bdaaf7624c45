"""The commands ``sealst fit-local``, ``sealst map`` and ``sealst cells``: finer than a spot."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from sealst._files import scratch
from sealst._keys import Keys
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import Work, check_new, open_sections, saved_text
from sealst.cli._types import AutoNumber


@click.command(
    name="fit-local",
    cls=SealstCommand,
    epilog="Example: `sealst fit-local sections --model run --out fine_model`.",
)
@opt.sections_argument
@opt.model_options()
@opt.out_option("Folder of the model that has learned.")
@options_of("tl.fit_local", "held_out", "epochs", "max_spots")
@opt.seed_option
@opt.device_option
@opt.table_key_option
def fit_local(
    sections: tuple[Path, ...], *, model: opt.Stored, out: Path, overwrite: bool, device: str | None, **options: Any
) -> Answer:
    """Teach a model the expression of single patches (tl.fit_local).

    SECTIONS are those that it was trained on: zarr stores of `sealst prepare`, a folder of them, or a manifest.
    """
    check_new(out, overwrite)
    model.check()
    from sealst import tl

    given = opt.stated(**options)
    if "held_out" in given:
        given["held_out"] = open_sections(given["held_out"])
    seal = model.load(device)
    tl.fit_local(open_sections(sections), seal, **given)
    seal.save(out, overwrite=overwrite)
    facts = {"model": str(out), "fingerprint": seal.fingerprint, "local": seal.local.summary()}
    known = seal.local.reliability
    return Answer(facts | {"reliability": None if known is None else known.summary()}, f"Model: {out}")


@click.command(
    name="map",
    cls=SealstCommand,
    epilog="Example: `sealst map s1.zarr --model fine_model --genes ERBB2,COL1A1 --resolution-um 16`.",
)
@opt.model_options()
@options_of(
    "tl.predict", "genes", "resolution_um", "min_reliability", "views", "key_added", "image_key",
    genes={"required": True},
    resolution_um={"required": True, "help": "Side of a bin in µm, no smaller than the encoder's patches."},
    views={"type": AutoNumber(), "help": "Over how many flips and rotations of each crop to average, 1 to 8."},
    key_added={"default": None, "help": "Name of the image; default <image>_expression."},
)  # fmt: skip
@opt.region_option
@opt.work_options()
@opt.device_option
def expression_map(work: Work, *, model: opt.Stored, device: str | None, **options: Any) -> Answer:
    """Map expression in bins finer than a spot (tl.predict).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. The model has been through `sealst
    fit-local`. Maps are images in the stores, with genes as channels.
    """
    if work.out is not None:
        raise click.UsageError("Maps are images and stay in the stores; leave out --out.")
    model.check(options["genes"])
    from sealst import tl

    seal = model.load(device)

    def run(sdata: Any) -> dict[str, Any]:
        # What the section before was saved from.
        held.close()
        before = {name: id(element) for name, element in sdata.images.items()}
        path = held.enter_context(scratch(Path(sdata.path).with_suffix(".map"))) / "map.zarr"
        tl.predict(sdata, seal, path=path, table_key=work.table_key, **opt.stated(**options))
        (key,) = (name for name, element in sdata.images.items() if before.get(name) != id(element))
        n_genes, rows, columns = sdata.images[key].shape
        return {"image": key, "n_genes": n_genes, "n_rows": rows, "n_columns": columns}

    with ExitStack() as held:
        records = work.run(run)
    text = saved_text(records, "image", "n_genes", "n_rows", "n_columns")
    return Answer({"model": seal.fingerprint, "sections": records}, text)


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst cells s1.zarr --at nuclei --model fine_model --genes ERBB2,COL1A1 --out s1_cells.h5ad`.",
)
@opt.model_options()
@options_of(
    "tl.embed", "at", "surroundings_um", "views", "key_added", "image_key",
    at={"required": True, "help": "Element that holds the cells: shapes, points or labels."},
    views={"type": AutoNumber(), "help": "Over how many flips and rotations of each crop to average, 1 to 8."},
)  # fmt: skip
@options_of(
    "tl.predict",
    "genes",
    genes={"help": "Also the expression of these genes, by a model that has been through `sealst fit-local`."},
)
@opt.region_option
@opt.work_options()
@opt.device_option
def cells(work: Work, *, model: opt.Stored, device: str | None, genes: Any, **options: Any) -> Answer:
    """Embed cells, and predict their expression (tl.embed, tl.predict).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. Results go into the table that
    annotates the cells, or a new one, <at>_table: in the stores, or with --out into h5ad files.
    """
    model.check(genes)
    work.check()
    from sealst import tl
    from sealst._section import annotated

    seal = model.load(device)

    def run(sdata: Any) -> dict[str, Any]:
        held = annotated(sdata, options["at"])
        name = f"{options['at']}_table" if held is None else held[0]
        slot = options["key_added"] or Keys.EMBEDDING
        if genes is None:
            tl.embed(sdata, seal, table_key=work.table_key, **opt.stated(**options))
        else:
            # Both of one pass of the encoder.
            given = opt.stated(**{name: value for name, value in options.items() if name != "key_added"})
            tl.predict(sdata, seal, genes=genes, embedding_key=slot, table_key=work.table_key, **given)
        values = sdata.tables[name].obsm[slot]
        known = values[:, 0] == values[:, 0]
        return {"table": name, "n_cells": len(values), "n_embedded": int(known.sum()), "dim": int(values.shape[1])}

    records = work.run(run)
    text = saved_text(records, "table", "n_cells", "n_embedded", "dim")
    return Answer({"model": seal.fingerprint, "sections": records}, text)
