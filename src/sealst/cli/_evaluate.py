"""The command ``sealst evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sealst._errors import DataError
from sealst._files import new_folder, write_json
from sealst._given.yaml import from_yaml
from sealst._settings import settings
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import check_new, open_sections
from sealst.cli._types import EXISTING_FILE, Several

#: what tells the folder of an evaluation
_MARKER = "facts.json"
#: what tells the folder of a task of HEST-bench
_BENCH = "var_50genes.json"


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst evaluate sections --model run --test held_out --out evaluation`; `sealst evaluate "
    "s1.zarr s2.zarr s3.zarr --recipe recipe.yaml --baselines st-net,bleep --out evaluation`.",
)
@opt.sections_argument
@opt.out_option("Folder for tables and report; new.")
@opt.model_options(required=False, help="Folder of a SEAL model or of its run, not trained on these patients.")
@opt.encoder_option
@click.option("--pool", default=None, help="With --encoder: cls, mean or cls+mean; default its own way.")
@click.option("--recipe", type=EXISTING_FILE, default=None,
              help="YAML file with arguments of tl.finetune: every fold trains its own model.")  # fmt: skip
@options_of(
    "tl.evaluate", "test", "preset", "folds", "baselines", "net", "n_genes", "near_um", "labels", "confounder",
    "control", "train_fractions", "n_draws", "allow_shared_patients",
    test={"help": "Held-out sections; may be repeated. Without it SECTIONS are split into folds."},
    preset={"type": click.Choice(["cv", "plain", "hest"]), "sentences": 2},
    baselines={"type": Several(click.Choice(["st-net", "bleep"])),
               "help": "Train these too in every fold, by commas (needs --recipe): st-net, bleep."},
    net={"help": f"Compare the activity of gene sets too. {opt.net_help}"},
    control={"sentences": 2},
    train_fractions={"type": Several(click.FLOAT),
                     "help": "Learn from these shares of the training side too, by commas, such as 0.25,0.5: would "
                     "more data help?"},
)  # fmt: skip
@click.option("--seeds", type=Several(click.INT), default=None,
              callback=lambda _context, _option, given: given or (settings.seed,),
              help="Seeds of training, by commas; each trains its own models. Default settings' seed (0).")  # fmt: skip
@options_of(
    "pp.pair_crops",
    crop_um={"type": click.FLOAT, "help": "Crops of sections that have none, in µm."},
    crop_px={"help": "And in pixels."},
)
@opt.table_key_option
@opt.device_option
def evaluate(
    sections: tuple[Path, ...],
    *,
    out: Path,
    overwrite: bool,
    model: opt.Stored | None,
    encoder: str | None,
    pool: str | None,
    recipe: Path | None,
    **options: Any,
) -> Answer:
    """Compare encoders on held-out tissue and write a report.

    SECTIONS are SpatialData zarr stores, a folder of them, a manifest (see io.read_collection), or one task of
    HEST-bench; sections without crops or log-normalised counts get them in memory, and nothing is written to them. Give
    one of --model, --encoder, --recipe. Writes OUT/report.html, evaluation.csv, genes.csv, pathways.csv (with --net),
    curve.csv (with --train-fractions) and facts.json.
    """
    if sum(given is not None for given in (model, encoder, recipe)) != 1:
        raise click.UsageError("Give one of --model, --encoder and --recipe.")
    if encoder is None and pool:
        raise click.UsageError("--pool belongs to --encoder; a recipe has a line 'pool' of its own.")
    check_new(out, overwrite)
    if encoder is not None:
        opt.check_encoder(encoder)
    if model is not None:
        model.check()
    from sealst.models import build_encoder
    from sealst.pl import report

    if model is not None:
        subject = model.load(options["device"])
    elif encoder is not None:
        subject = build_encoder(encoder, pool=pool)
    else:
        subject = from_yaml(recipe)
        if not isinstance(subject, Mapping):
            raise DataError(f"{recipe} must hold arguments of `tl.finetune`, such as 'encoder: uni2-h'.")
    crops = {name: options.pop(name) for name in ("crop_um", "crop_px")}
    # A recipe trains where the settings say.
    with settings.override(**opt.stated(device=options["device"])):
        found = _run(subject, sections, crops=crops, **options)
    with new_folder(out, overwrite=overwrite, marker=_MARKER) as work:
        found.table.to_csv(work / "evaluation.csv", index=False)
        found.genes.to_csv(work / "genes.csv", index=False)
        for name in ("pathways", "curve"):
            if len(frame := getattr(found, name)):
                frame.to_csv(work / f"{name}.csv", index=False)
        report(found, work / "report.html")
        write_json(work / _MARKER, found.facts)
    summary = found.summary("all").round(4)
    # The first line says what was evaluated, the others what a learning curve says.
    said = "".join(f"{line}\n" for line in repr(found).splitlines()[1:])
    text = f"{summary['pearson'].dropna(how='all').to_string()}\n\n{said}Report: {out / 'report.html'}"
    rows = [
        {"method": method, "metric": metric, "genes": genes, "value": value}
        for (metric, genes), column in summary.items()
        for method, value in column.items()
    ]
    return Answer({"facts": dict(found.facts), "summary": rows}, text)


def _run(
    subject: Any, sections: Sequence[Path], *, crops: Mapping[str, Any], test: Sequence[Path], **options: Any
) -> Any:
    from sealst.io import read_hest_bench
    from sealst.tl import evaluate as compare

    given = opt.stated(**options)
    if bench := [path for path in sections if (path / _BENCH).is_file()]:
        if len(sections) > 1 or test:
            raise click.UsageError(f"{str(bench[0])!r} is a task of HEST-bench, with folds of its own; give it alone.")
        given.pop("folds")
        return compare(read_hest_bench(bench[0]), subject, **given)
    held = _prepared(test, crops, options["table_key"]) if test else None
    return compare(_prepared(sections, crops, options["table_key"]), subject, test=held, **given)


def _prepared(paths: Sequence[Path], crops: Mapping[str, Any], table_key: str) -> Any:
    """Sections with crops and layers; those that lack them get them in memory, and nothing is written."""
    sections = open_sections(paths)
    held = {}
    for i, name in enumerate(sections.names):
        # A collection of its own: what is not saved is not missed.
        if (changed := _completed(sections[i : i + 1][0], crops, table_key)) is not None:
            held[name] = changed
    # Those that were complete are opened again when they are needed, one at a time.
    return sections.replaced(held)


def _completed(sdata: Any, crops: Mapping[str, Any], table_key: str) -> Any:
    """The section with crops paired and counts normalised; None where it needed neither."""
    from sealst import pp
    from sealst._keys import Keys
    from sealst._section import get_table, recorded

    table = get_table(sdata, table_key)
    bare, raw = not recorded(table, "crops"), Keys.LOGNORM not in table.layers
    if bare:
        pp.pair_crops(sdata, table_key=table_key, **crops)
    if raw:
        pp.normalize(sdata, table_key=table_key)
    return sdata if bare or raw else None
