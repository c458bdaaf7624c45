"""The command ``sealst evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sealst._errors import DataError
from sealst._files import new_folder, write_json
from sealst._settings import settings
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand
from sealst.cli._options import (
    ANY_PATH,
    EXISTING,
    EXISTING_FILE,
    base_options,
    device_option,
    load_model,
    net_help,
    sections_argument,
    stated,
    table_key_option,
)
from sealst.cli._sections import check_new, open_sections
from sealst.cli._types import Several

#: what tells the folder of an evaluation
_MARKER = "facts.json"
#: what tells the folder of a task of HEST-bench
_BENCH = "var_50genes.json"


@dataclass(frozen=True)
class _Crops:
    """How sections without crops are paired."""

    um: float
    px: int


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst evaluate sections --model run --test held_out --out evaluation`; `sealst evaluate "
    "s1.zarr s2.zarr s3.zarr --recipe recipe.yaml --baselines st-net,bleep --out evaluation`. " + EXIT_CODES,
)
@sections_argument
@click.option("--out", type=ANY_PATH, required=True, help="Folder for tables and report; new.")
@click.option("--model", type=EXISTING, default=None,
              help="Folder of a SEAL model or of its run, not trained on these patients.")  # fmt: skip
@base_options
@click.option("--encoder", default=None, help="A frozen encoder: key, timm name, or local-dir:FOLDER.")
@click.option("--pool", default=None, help="With --encoder: cls, mean or cls+mean; default its own way.")
@click.option("--recipe", type=EXISTING_FILE, default=None,
              help="YAML file with arguments of tl.finetune: every fold trains its own model.")  # fmt: skip
@click.option("--test", type=EXISTING, multiple=True,
              help="Held-out sections; may be repeated. Without it SECTIONS are split into folds.")  # fmt: skip
@click.option("--preset", type=click.Choice(["cv", "hest"]), default="cv", show_default=True, help="Protocol.")
@click.option("--folds", default="patient", show_default=True, help="patient, section, block or a column of .obs.")
@click.option("--baselines", type=Several(click.Choice(["st-net", "bleep"])), default=None,
              help="Train these too in every fold, by commas (needs --recipe): st-net, bleep.")  # fmt: skip
@click.option("--net", default=None, help=f"Compare the activity of gene sets too. {net_help}")
@click.option("--n-genes", type=click.IntRange(min=1), default=None, help="Size of the gene sets; default 50.")
@click.option("--seeds", type=Several(click.INT), default=None,
              callback=lambda _context, _option, given: given or (settings.seed,),
              help="Seeds of training, by commas; each trains its own models. Default settings' seed (0).")  # fmt: skip
@click.option("--near-um", type=float, default=None,
              help="Also count spots within so many µm as found by a search.")  # fmt: skip
@click.option("--control", is_flag=True, help="Also score a probe of permuted expression; it must come out around 0.")
@click.option("--crop-um", type=float, default=112, show_default=True, help="Crops of sections that have none, in µm.")
@click.option("--crop-px", type=int, default=224, show_default=True, help="And in pixels.")
@click.option("--allow-shared-patients", is_flag=True, help="Let a patient stand on both sides (in-sample check).")
@table_key_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace an earlier evaluation in --out.")
def evaluate(
    sections: tuple[Path, ...],
    *,
    out: Path,
    model: Path | None,
    weights: Path | None,
    base: str | None,
    encoder: str | None,
    pool: str | None,
    recipe: Path | None,
    crop_um: float,
    crop_px: int,
    overwrite: bool,
    **options: Any,
) -> Answer:
    """Compare encoders on held-out tissue and write a report.

    SECTIONS are SpatialData zarr stores, a folder of them, a manifest (see io.read_collection), or one task of
    HEST-bench; sections without crops or log-normalised counts get them in memory, and nothing is written to them. Give
    one of --model, --encoder, --recipe. Writes OUT/report.html, evaluation.csv, genes.csv, pathways.csv (with --net)
    and facts.json.
    """
    if sum(given is not None for given in (model, encoder, recipe)) != 1:
        raise click.UsageError("Give one of --model, --encoder and --recipe.")
    if model is None and (weights or base):
        raise click.UsageError("--weights and --base belong to --model.")
    if encoder is None and pool:
        raise click.UsageError("--pool belongs to --encoder; a recipe has a line 'pool' of its own.")
    check_new(out, overwrite)
    if model is not None:
        subject = load_model(model, weights=weights, base=base, device=options["device"])
    else:
        subject = _untrained(encoder, recipe, pool)
    # A recipe trains where the settings say.
    with settings.override(**stated(device=options["device"])):
        found = _run(subject, sections, crops=_Crops(crop_um, crop_px), **options)
    _write(found, out, overwrite)
    summary = found.summary("all").round(4)
    text = f"{summary['pearson'].dropna(how='all').to_string()}\n\nReport: {out / 'report.html'}"
    return Answer({"facts": dict(found.facts), "summary": _rows(summary)}, text)


def _untrained(encoder: str | None, recipe: Path | None, pool: str | None) -> Any:
    from sealst._validate import from_yaml
    from sealst.models import build_encoder

    if encoder is not None:
        return build_encoder(encoder, pool=pool)
    given = from_yaml(recipe)
    if not isinstance(given, Mapping):
        raise DataError(f"{recipe} must hold arguments of `tl.finetune`, such as 'encoder: uni2-h'.")
    return given


def _run(subject: Any, sections: Sequence[Path], *, crops: _Crops, test: Sequence[Path], **options: Any) -> Any:
    from sealst.io import read_hest_bench
    from sealst.tl import evaluate as compare

    given = stated(**options)
    if bench := [path for path in sections if (path / _BENCH).is_file()]:
        if len(sections) > 1 or test:
            raise click.UsageError(f"{str(bench[0])!r} is a task of HEST-bench, with folds of its own; give it alone.")
        given.pop("folds")
        return compare(read_hest_bench(bench[0]), subject, **given)
    held = _prepared(test, crops, options["table_key"]) if test else None
    return compare(_prepared(sections, crops, options["table_key"]), subject, test=held, **given)


def _prepared(paths: Sequence[Path], crops: _Crops, table_key: str) -> Any:
    """Sections with crops and layers; those that lack them get them in memory, and nothing is written."""
    sections = open_sections(paths)
    held = {}
    for i, name in enumerate(sections.names):
        # A collection of its own: what is not saved is not missed.
        if (changed := _completed(sections[i : i + 1][0], crops, table_key)) is not None:
            held[name] = changed
    # Those that were complete are opened again when they are needed, one at a time.
    return sections.replaced(held)


def _completed(sdata: Any, crops: _Crops, table_key: str) -> Any:
    """The section with crops paired and counts normalised; None where it needed neither."""
    from sealst import pp
    from sealst._keys import Keys
    from sealst._section import get_table, recorded

    table = get_table(sdata, table_key)
    bare, raw = not recorded(table, "crops"), Keys.LOGNORM not in table.layers
    if bare:
        pp.pair_crops(sdata, crop_um=crops.um, crop_px=crops.px, table_key=table_key)
    if raw:
        pp.normalize(sdata, table_key=table_key)
    return sdata if bare or raw else None


def _write(found: Any, out: Path, overwrite: bool) -> None:
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
