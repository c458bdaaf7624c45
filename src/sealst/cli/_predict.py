"""The commands ``sealst predict`` and ``sealst pathways``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst._keys import Keys
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand
from sealst.cli._options import (
    device_option,
    load_model,
    method_option,
    model_options,
    net_help,
    region_option,
    sections_argument,
    stated,
    table_key_option,
    table_out_options,
)
from sealst.cli._sections import Work, saved_text
from sealst.cli._types import Genes


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst predict s1.zarr --model run --genes ERBB2,COL1A1 --net hallmark.gmt --out s1.h5ad`. "
    f"{EXIT_CODES}",
)
@sections_argument
@model_options
@click.option("--genes", type=Genes(), default=None,
              help="Genes to write, by commas, or a text file with one per line; default the panel.")  # fmt: skip
@click.option("--net", default=None, help=f"Score pathways on the predicted panel too. {net_help}")
@method_option
@click.option("--key-added", default=Keys.EXPRESSION, show_default=True, help="Slot in .obsm.")
@table_out_options
@region_option
@table_key_option
@device_option
def predict(
    sections: tuple[Path, ...],
    *,
    model: Path,
    weights: Path | None,
    base: str | None,
    out: Path | None,
    overwrite: bool,
    table_key: str,
    device: str | None,
    **options: Any,
) -> Answer:
    """Predict gene expression from H&E alone (tl.predict).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. Embeddings that this model made
    before are used. Writes log1p-CP10k with named genes, and with --net pathway scores; without --out into the
    stores.
    """
    from sealst import tl

    work = Work(sections, out, overwrite, table_key)
    seal = load_model(model, weights=weights, base=base, device=device)
    given = stated(**options) | {"table_key": table_key}

    def run(sdata: Any) -> dict[str, Any]:
        tl.predict(sdata, seal, **given)
        table = sdata.tables[table_key]
        found = table.obsm[options["key_added"]]
        facts = {"n_obs": len(found), "n_predicted": int(found.iloc[:, 0].notna().sum()), "n_genes": found.shape[1]}
        return facts | (
            {} if options["net"] is None else {"n_pathways": table.obsm[Keys.pathways(options["key_added"])].shape[1]}
        )

    records = work.run(run)
    text = saved_text(records, "n_obs", "n_predicted", "n_genes", "n_pathways")
    return Answer({"key": options["key_added"], "model": seal.fingerprint, "sections": records}, text)


@click.command(
    cls=SealstCommand,
    epilog=f"Example: `sealst pathways s1.h5ad --net hallmark.gmt --out s1_pathways.h5ad`. {EXIT_CODES}",
)
@sections_argument
@click.option("--net", required=True, help=net_help)
@click.option("--source", type=click.Choice(["predicted", "measured"]), default="predicted", show_default=True,
              help="Expression to score.")  # fmt: skip
@method_option
@click.option("--expression-key", default=Keys.EXPRESSION, show_default=True, help="Slot of predicted expression.")
@click.option("--layer", default=Keys.LOGNORM, show_default=True, help="Layer of measured expression.")
@click.option("--tmin", type=click.IntRange(min=1), default=5, show_default=True,
              help="Smallest number of a set's genes at hand; smaller sets are left out.")  # fmt: skip
@click.option("--key-added", default=None, help="Slot in .obsm; default seal_pathways or measured_pathways.")
@table_out_options
@table_key_option
def pathways(
    sections: tuple[Path, ...], *, net: str, out: Path | None, overwrite: bool, table_key: str, **options: Any
) -> Answer:
    """Score pathways on predicted or measured expression.

    Calls tl.pathways. SECTIONS are zarr stores after `sealst predict`, a folder of them, a manifest, or h5ad tables
    that an --out wrote. Without --out the scores are saved where the tables came from.
    """
    from sealst import tl

    predicted = options["source"] == "predicted"
    key = options["key_added"] or (Keys.pathways(options["expression_key"]) if predicted else "measured_pathways")

    def run(data: Any) -> dict[str, Any]:
        tl.pathways(data, net, table_key=table_key, **stated(**options))
        table = data.tables[table_key] if hasattr(data, "tables") else data
        sets = table.uns[Keys.UNS]["pathways"][key]
        return {"n_obs": int(table.n_obs), "n_pathways": table.obsm[key].shape[1], "n_left_out": _unscored(sets)}

    records = Work(sections, out, overwrite, table_key, tables=True).run(run)
    return Answer({"key": key, "sections": records}, saved_text(records, "n_obs", "n_pathways", "n_left_out"))


def _unscored(entry: Any) -> int:
    return int(sum(not done for done in entry["scored"]))
