"""The commands ``sealst predict`` and ``sealst pathways``."""

from __future__ import annotations

from typing import Any

import click

from sealst._keys import Keys
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import Work, saved_text
from sealst.cli._types import AutoNumber


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst predict s1.zarr --model run --genes ERBB2,COL1A1 --net hallmark.gmt --out s1.h5ad`.",
)
@opt.model_options()
@options_of(
    "tl.predict", "genes", "net", "method", "readout", "min_reliability", "intervals", "views", "key_added",
    net={"help": f"Score pathways on the predicted panel too. {opt.net_help}"},
    readout={"help": "head, or what was fitted behind the encoder; default what held-out sections chose."},
    views={"type": AutoNumber(), "sentences": 2},
)  # fmt: skip
@opt.region_option
@opt.work_options()
@opt.device_option
def predict(work: Work, *, model: opt.Stored, device: str | None, **options: Any) -> Answer:
    """Predict gene expression from H&E alone (tl.predict).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. Embeddings that this model made
    before are used. Writes log1p-CP10k with named genes, and with --net pathway scores; without --out into the
    stores.
    """
    model.check(options["genes"])
    work.check()
    from sealst import tl

    seal = model.load(device)

    def run(sdata: Any) -> dict[str, Any]:
        tl.predict(sdata, seal, table_key=work.table_key, **opt.stated(**options))
        slots = work.table(sdata).obsm
        found = slots[options["key_added"]]
        facts = {"n_obs": len(found), "n_predicted": int(found.iloc[:, 0].notna().sum()), "n_genes": found.shape[1]}
        scores = Keys.pathways(options["key_added"])
        return facts | ({} if options["net"] is None else {"n_pathways": slots[scores].shape[1]})

    records = work.run(run)
    text = saved_text(records, "n_obs", "n_predicted", "n_genes", "n_pathways")
    return Answer({"key": options["key_added"], "model": seal.fingerprint, "sections": records}, text)


@click.command(
    cls=SealstCommand, epilog="Example: `sealst pathways s1.h5ad --net hallmark.gmt --out s1_pathways.h5ad`."
)
@options_of(
    "tl.pathways", "net", "source", "method", "expression_key", "layer", "tmin", "key_added",
    net={"help": opt.net_help},
    source={"type": click.Choice(["predicted", "measured"])},
)  # fmt: skip
@opt.work_options(tables=True)
def pathways(work: Work, *, net: str, **options: Any) -> Answer:
    """Score pathways on predicted or measured expression.

    Calls tl.pathways. SECTIONS are zarr stores after `sealst predict`, a folder of them, a manifest, or h5ad tables
    that an --out wrote. Without --out the scores are saved where the tables came from.
    """
    work.check()
    from sealst import tl

    predicted = options["source"] == "predicted"
    key = options["key_added"] or (Keys.pathways(options["expression_key"]) if predicted else "measured_pathways")

    def run(data: Any) -> dict[str, Any]:
        tl.pathways(data, net, table_key=work.table_key, **opt.stated(**options))
        table = work.table(data)
        left_out = sum(not done for done in table.uns[Keys.UNS]["pathways"][key]["scored"])
        return {"n_obs": int(table.n_obs), "n_pathways": table.obsm[key].shape[1], "n_left_out": int(left_out)}

    records = work.run(run)
    return Answer({"key": key, "sections": records}, saved_text(records, "n_obs", "n_pathways", "n_left_out"))
