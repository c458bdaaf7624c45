"""The command ``sealst finetune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sealst._errors import DataError
from sealst._files import new_folder
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import check_new, open_sections

#: file that tells the folder of a run
_MARKER = "run.json"
#: options that are fields of `params`
_FIELDS = ("epochs", "batch_size", "lr", "patience", "num_workers")

_arguments = options_of(
    "tl.finetune", "encoder", "pretrained", "pool", "panel", "n_genes", "include", "crop_um", "adapter", "gene_encoder",
    "projection", "readout", "crossfit", "net", "validation", "allow_shared_patients", "warmup", "params",
    "trainer_kwargs",
    pretrained={"help": "Random weights are for tests and demonstrations only."},
    panel={"help": "Genes of the model (GenePanel TSV); default the --n-genes most variable of the sections."},
    adapter={"help": "lora, blocks, full, bottleneck, none; or settings such as '{kind: lora, r: 16}'."},
    gene_encoder={"help": "vae, mlp, mae, transformer; or settings such as '{kind: mlp, hidden: [512]}'."},
    projection={"help": "none, linear, mlp; or settings such as '{kind: mlp, dim: 256}'."},
    readout={"type": click.Choice(["auto", "head"]),
             "help": "What predicts in the end: the readout that held-out sections choose (auto), or the head alone."},
    crossfit={"type": click.Choice(["patient", "section"]),
              "help": "Hold these out in turn, to learn which genes can be believed; kept with the model."},
    net={"help": f"With --crossfit: gene sets whose activity is scored too. {opt.net_help}"},
    warmup={"help": "h5ad with expression without images for the warm-up; may be repeated."},
)  # fmt: skip

_fields = opt.stacked(
    click.option("--epochs", type=click.IntRange(min=1), default=None,
                 help="Field of params, over which it wins: passes over the spots."),
    click.option("--batch-size", type=click.IntRange(min=1), default=None, help="Field of params: spots per step."),
    click.option("--lr", type=float, default=None, help="Field of params: peak learning rate."),
    click.option("--patience", type=click.IntRange(min=1), default=None,
                 help="Field of params: epochs without a better held-out score before it stops."),
    click.option("--num-workers", type=click.IntRange(min=0), default=None,
                 help="Field of params: worker processes of the loader."),
)  # fmt: skip


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst finetune s1.zarr s2.zarr --encoder uni2-h --out run --resume`, and the same from a file: "
    "`sealst finetune sections --config finetune.yaml --out run`.",
)
@opt.sections_argument
@opt.out_option("Folder of the run: run.json, metrics.csv, training.png and model/.")
@click.option("--resume", is_flag=True,
              help="Go on with the run in --out, or start it; a finished one is left as it is.")  # fmt: skip
@_arguments
@_fields
@opt.seed_option
@opt.device_option
@opt.table_key_option
def finetune(sections: tuple[Path, ...], *, out: Path, resume: bool, overwrite: bool, **options: Any) -> Answer:
    """Align an image encoder with gene expression (tl.finetune).

    SECTIONS are zarr stores of `sealst prepare`, a folder of them, or a manifest. What is left out of --params is
    chosen from the number of spots. The model is OUT/model; every --model takes OUT too.
    """
    if overwrite and resume:
        raise click.UsageError("Give one of --overwrite and --resume.")
    if not resume:
        check_new(out, overwrite)
    opt.check_encoder(options["encoder"])
    # Arguments of `tl.finetune`; fields given by themselves win over `params`.
    given = dict(options)
    fields = opt.stated(**{name: given.pop(name) for name in _FIELDS})
    given["params"] = (dict(given["params"] or {}) | fields) or None
    arguments = opt.stated(**given)
    if overwrite and out.exists():
        from sealst._process.locks import hold_run

        # The earlier run stays until the new one is complete; one that is still going on is not replaced.
        with new_folder(out, overwrite=True, marker=_MARKER) as work, hold_run(out):
            model = _train(sections, work, resume=False, arguments=arguments)
    else:
        model = _train(sections, out, resume=resume, arguments=arguments)
    facts = {"run_dir": str(out), "model": str(out / "model"), "fingerprint": model.fingerprint}
    facts |= {"encoder": model.encoder.spec.key, "n_genes": len(model.panel), "dim": model.dim}
    facts["reliability"] = None if model.reliability is None else model.reliability.summary()
    last = model.history.iloc[-1].to_dict() if len(model.history) else {}
    return Answer(facts | {"last_epoch": last}, f"{model!r}\n\nModel: {out / 'model'}")


def _train(sections: Sequence[Path], folder: Path, *, resume: bool, arguments: Mapping[str, Any]) -> Any:
    from sealst import GenePanel
    from sealst.tl import finetune as train

    given = dict(arguments)
    if "validation" in given:
        given["validation"] = open_sections(given["validation"])
    if "panel" in given:
        given["panel"] = GenePanel.from_tsv(given["panel"])
    if "warmup" in given:
        from sealst._section import read_h5ad

        tables = []
        for path in given["warmup"]:
            try:
                tables.append(read_h5ad(path))
            except (OSError, KeyError, ValueError) as error:
                raise DataError(f"--warmup {str(path)!r} could not be read as an h5ad table: {error}") from error
        given["warmup"] = tables
    return train(open_sections(sections), run_dir=folder, resume=resume, **given)
