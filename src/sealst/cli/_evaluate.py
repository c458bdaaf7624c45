"""The command ``sealst evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sealst._errors import DataError
from sealst._settings import settings
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand
from sealst.cli._options import device_option, model_folder
from sealst.cli._sections import check_new, is_store

#: what tells the folder of an evaluation
_MARKER = "facts.json"


@dataclass(frozen=True)
class _Crops:
    """How sections without crops are paired."""

    um: float
    px: int


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst evaluate sections --model run --test held_out --out evaluation`. " + EXIT_CODES,
)
@click.argument("sections", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for tables and report; new.")
@click.option("--model", "model", type=click.Path(path_type=Path, exists=True), default=None,
              help="Folder of a SEAL model or of its run, not trained on these patients.")  # fmt: skip
@click.option("--encoder", default=None, help="A frozen encoder: key, timm name, or local-dir:FOLDER.")
@click.option("--recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=None,
              help="YAML file with arguments of tl.finetune: every fold trains its own model.")  # fmt: skip
@click.option("--test", type=click.Path(path_type=Path, exists=True), default=None,
              help="Held-out sections; without it SECTIONS are split into folds.")  # fmt: skip
@click.option("--preset", type=click.Choice(["cv", "hest"]), default="cv", show_default=True, help="Protocol.")
@click.option("--folds", default="patient", show_default=True, help="patient, section, block or a column of .obs.")
@click.option("--baseline", "baselines", multiple=True, type=click.Choice(["st-net", "bleep"]),
              help="Train this baseline too in every fold (needs --recipe); may be given twice.")  # fmt: skip
@click.option("--net", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=None,
              help="Gene sets (GMT or CSV) whose activity is compared.")  # fmt: skip
@click.option("--n-genes", type=click.IntRange(min=1), default=None, help="Size of the gene sets; default 50.")
@click.option("--seed", "seeds", multiple=True, type=int,
              callback=lambda _context, _option, given: given or (settings.seed,),
              help="Seed of training; may be given several times. Default settings' seed (0).")  # fmt: skip
@click.option("--pool", default=None, help="Pooling of --encoder: cls, mean, cls+mean.")
@click.option("--crop-um", type=float, default=112, show_default=True, help="Crops of sections that have none, in µm.")
@click.option("--crop-px", type=int, default=224, show_default=True, help="And in pixels.")
@click.option("--allow-shared-patients", is_flag=True, help="Let a patient stand on both sides (in-sample check).")
@device_option
@click.option("--overwrite", is_flag=True, help="Replace an earlier evaluation in --out.")
def evaluate(
    sections: Path,
    *,
    out: Path,
    model: Path | None,
    encoder: str | None,
    recipe: Path | None,
    test: Path | None,
    crop_um: float,
    crop_px: int,
    pool: str | None,
    overwrite: bool,
    **options: Any,
) -> Answer:
    """Compare encoders on held-out tissue and write a report.

    SECTIONS is a SpatialData zarr store, a folder of them, a manifest (see io.read_collection), or a task of
    HEST-bench. Give one of --model, --encoder, --recipe. Writes OUT/report.html, evaluation.csv, genes.csv,
    pathways.csv (with --net) and facts.json.
    """
    if sum(given is not None for given in (model, encoder, recipe)) != 1:
        raise click.UsageError("Give one of --model, --encoder and --recipe.")
    check_new(out, overwrite)
    found = _run(
        _subject(model, encoder, recipe, pool), sections, test, crops=_Crops(crop_um, crop_px), options=options
    )
    _write(found, out, overwrite)
    summary = found.summary("all").round(4)
    text = f"{summary['pearson'].to_string()}\n\nReport: {out / 'report.html'}"
    return Answer({"facts": dict(found.facts), "summary": _rows(summary)}, text)


def _subject(model: Path | None, encoder: str | None, recipe: Path | None, pool: str | None) -> Any:
    from sealst._validate import from_yaml
    from sealst.models import build_encoder, load

    if model is not None:
        return load(model_folder(model))
    if encoder is not None:
        return build_encoder(encoder, pool=pool)
    given = from_yaml(recipe)
    if not isinstance(given, Mapping):
        raise DataError(f"{recipe} must hold arguments of `tl.finetune`, such as 'encoder: uni2-h'.")
    return given


def _run(subject: Any, sections: Path, test: Path | None, *, crops: _Crops, options: Mapping[str, Any]) -> Any:
    from sealst.io import read_hest_bench
    from sealst.tl import evaluate as compare

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if (sections / "var_50genes.json").is_file():
        given.pop("folds")
        return compare(subject, read_hest_bench(sections), **given)
    held = None if test is None else _prepared(test, crops)
    return compare(subject, _prepared(sections, crops), test=held, **given)


def _prepared(path: Path, crops: _Crops) -> Any:
    """Sections with crops and layers; those that lack them get them here, and nothing is written."""
    from sealst import pp
    from sealst._keys import Keys
    from sealst._section import get_table
    from sealst.io import read, read_collection

    single = is_store(path)
    sections = [read(path)] if single else read_collection(path)
    ready, changed = [], False
    for sdata in sections:
        table = get_table(sdata)
        if "crops" not in table.uns.get(Keys.UNS, {}):
            pp.pair_crops(sdata, crop_um=crops.um, crop_px=crops.px)
            changed = True
        if Keys.LOGNORM not in table.layers:
            pp.normalize(sdata)
            changed = True
        ready.append(sdata)
    return ready if changed or single else sections


def _write(found: Any, out: Path, overwrite: bool) -> None:
    from sealst._files import new_folder, write_json
    from sealst.pl import report

    with new_folder(out, overwrite=overwrite, marker=_MARKER) as work:
        found.table.to_csv(work / "evaluation.csv", index=False)
        found.genes.to_csv(work / "genes.csv", index=False)
        if len(found.pathways):
            found.pathways.to_csv(work / "pathways.csv", index=False)
        report(found, work / "report.html")
        write_json(work / _MARKER, found.facts)


def _rows(summary: Any) -> list[dict[str, Any]]:
    return [
        {"method": method, "metric": metric, "genes": genes, "value": value}
        for (metric, genes), column in summary.items()
        for method, value in column.items()
    ]
