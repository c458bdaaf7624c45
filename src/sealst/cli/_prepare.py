"""The command ``sealst prepare``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from sealst._errors import DataError, SealstError
from sealst._files import is_store, new_folder
from sealst._keys import Keys
from sealst._logging import logger, quiet_writing
from sealst._validate import listed
from sealst.cli import _options as opt
from sealst.cli._common import EXIT_CODES, EXIT_DATA, Answer, SealstCommand, as_json
from sealst.cli._from_signature import options_of
from sealst.cli._sections import check_new, is_several, saved_text
from sealst.cli._types import EXISTING, Limits, merged

_ZARR = ".zarr"
_METRICS = ["tenengrad", "var_of_laplacian", "variance", "fft_high_freq_energy", "haar_wavelet_energy"]
_METRICS += ["brightness_mean", "brightness_std", "entropy", "hematoxylin_mean", "hematoxylin_std"]
_METRICS += ["eosin_mean", "eosin_std", "he_ratio", "fold_fraction"]

_reading = opt.stacked(
    opt.format_option,
    click.option("--image", type=EXISTING, default=None,
                 help="Full-resolution image, where it lies outside the folder."),
    click.option("--section", default=None, help="Name of the section; default as the reader names it."),
    click.option("--patient", default=None, help="Patient; default the section."),
    click.option("--organ", default=None, help="Organ."),
    opt.reader_option,
)  # fmt: skip

_pictures = opt.stacked(
    options_of("pp.pair_crops", "crop_px",
               crop_um={"help": "Side of a crop in µm; repeat it for several magnifications."}),
    options_of("pp.tile",
               step_um={"help": "Slides without spots: distance of tiles in µm, whose side is the first --crop-um; "
                                "default: they touch."}),
    click.option("--min-tissue", type=click.FloatRange(0, 1), default=None,
                 help="Find the tissue and set aside crops with a smaller share of it (HEST-1k 0.15). For slides "
                      "without spots: smallest share of a tile, default 0.5."),
    options_of("pp.quality",
               metrics={"flag": "--quality", "type": click.Choice(_METRICS), "multiple": True, "default": None,
                        "help": "Measure this of every crop; may be repeated."},
               thresholds={"flag": "--threshold", "type": Limits(), "multiple": True,
                           "help": "Set aside crops outside the limits, e.g. fold_fraction=:0.1; may be repeated."}),
)  # fmt: skip

_genes = opt.stacked(
    click.option("--harmonize/--no-harmonize", default=True, show_default=True, help="Give genes their current names."),
    options_of("pp.harmonize_genes", "species", "sum_aliases",
               gene_table={"help": "Names of genes (symbol, ensembl, previous, aliases); default HGNC for human."}),
    click.option("--normalize/--no-normalize", default=True, show_default=True,
                 help="Log-normalise counts and mix them with the neighbours'."),
    options_of("pp.normalize", "target_sum", "context_weight", "grid",
               context_weight={"type": click.FloatRange(0, 1)}),
)  # fmt: skip


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst prepare outs --image slide.tif --patient A --out s1.zarr`; `sealst prepare cohort.csv "
    f"--out sections --min-tissue 0.15 --resume`. {EXIT_CODES} 3 also where some sections of a manifest failed.",
)
@click.argument("source", metavar="INPUT", type=EXISTING)
@opt.out_option("New store that ends in .zarr, or a folder for <section>.zarr of each section.")
@click.option("--resume", is_flag=True, help="Leave stores in --out that this call with these options made already.")
@_reading
@opt.scale_options
@opt.table_key_option
@_pictures
@_genes
def prepare(source: Path, *, out: Path, overwrite: bool, resume: bool, **options: Any) -> Answer:
    """Make sections ready, from a vendor's output or any format.

    INPUT is one section in any format that io.read knows (Space Ranger, Xenium, HEST-1k, legacy Spatial
    Transcriptomics, a slide image, a SpatialData zarr store), a folder of zarr stores, or a manifest (csv, tsv)
    with one section per line, see io.read_collection. Genes get their current names, spots are paired with crops of
    the H&E, counts are normalised, and OUT holds SpatialData; slides without spots are cut into tiles. INPUT is
    left as it is; crops and layers that it holds already are made anew in the copy.
    """
    if overwrite and resume:
        raise click.UsageError("Give one of --overwrite and --resume.")
    if out.suffix == _ZARR and is_several(source):
        raise click.UsageError(f"{str(source)!r} stands for several sections; --out must be a folder for them.")
    options["thresholds"], options["options"] = merged(options["thresholds"]), merged(options["options"])
    records = list(_all(source, out, overwrite=overwrite, resume=resume, options=options))
    failed = [r["section"] for r in records if r["status"] == "failed"]
    for record in records:
        if record["status"] == "failed":
            logger.error("Section %s: %s", record["section"], record["error"])
    text = saved_text(records, "status", "n_obs", "n_usable", "n_genes", "mpp")
    text += f"\n\n{len(failed)} section(s) failed: {listed(failed)}." if failed else ""
    return Answer({"sections": records, "failed": failed}, text, EXIT_DATA if failed else 0)


def _all(
    source: Path, out: Path, *, overwrite: bool, resume: bool, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Prepare every section; of several, one that fails does not stop the others."""
    if not is_several(source):
        yield _one(lambda: _read(source, options), out, None, overwrite=overwrite, resume=resume, options=options)
        return
    from sealst.io import read_collection

    given = sorted(opt.stated(**{n: options[n] for n in ("format", "image", "section", "patient", "organ")}))
    if given or options["options"]:
        raise DataError(f"--{', --'.join(given or ['option'])}: of several sections a manifest says this, in columns.")
    sections = read_collection(source)
    if not (overwrite or resume):
        for name in sections.names:
            check_new(out / f"{name}{_ZARR}", overwrite)
    for i, name in enumerate(sections.names):
        part = sections[i : i + 1]
        logger.info("Section %s (%d of %d)", name, i + 1, len(sections))
        try:
            yield _one(lambda p=part: p[0], out, name, overwrite=overwrite, resume=resume, options=options)
        except (SealstError, OSError, ValueError, KeyError) as error:
            logger.debug("Section %s", name, exc_info=True)
            yield {"section": name, "status": "failed", "error": f"{error}", "path": None}


def _one(
    read: Any, out: Path, name: str | None, *, overwrite: bool, resume: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Prepare one section; `name` is known beforehand where a manifest says it."""
    facts = as_json(options)
    path = out if out.suffix == _ZARR else None if name is None else out / f"{name}{_ZARR}"
    if path is not None and (done := _kept(path, facts, overwrite=overwrite, resume=resume)):
        return done
    sdata = read()
    name = prepare_section(sdata, options, facts)
    if path is None:
        path = out / f"{name}{_ZARR}"
        if done := _kept(path, facts, overwrite=overwrite, resume=resume):
            return done
    with new_folder(path, overwrite=overwrite, marker="zarr.json") as work:
        # The store makes its own folder.
        work.rmdir()
        with quiet_writing():
            sdata.write(work, update_sdata_path=False)
    logger.info("Wrote %s", path)
    return {"section": name, "status": "done", "path": str(path)} | summary(sdata, options["table_key"])


def _kept(path: Path, facts: str, *, overwrite: bool, resume: bool) -> dict[str, Any] | None:
    """Record of a store that stays: what is there was made by this call before."""
    if not resume or not path.exists():
        check_new(path, overwrite)
        return None
    from sealst._section import recorded
    from sealst.io import read

    sdata = read(path, format="zarr")
    tables = [t for t in sdata.tables.values() if recorded(t, "prepare")]
    if not tables or tables[0].uns[Keys.UNS]["prepare"]["options"] != facts:
        raise DataError(
            f"{str(path)!r} was not made by this call with these options, so --resume cannot keep it. Name another "
            "--out, or replace it with --overwrite."
        )
    key = next(k for k, t in sdata.tables.items() if t is tables[0])
    name = path.name.removesuffix(_ZARR)
    return {"section": name, "status": "kept", "path": str(path)} | summary(sdata, key)


def _read(source: Path, options: Mapping[str, Any]) -> Any:
    from sealst.io import read

    given = opt.stated(**{n: options[n] for n in ("image", "section", "patient", "organ")}) | options["options"]
    if is_store(source):
        if given:
            raise DataError(f"--{', --'.join(sorted(given))}: a zarr store says this itself; leave it out.")
        return read(source, format=options["format"])
    return read(source, format=options["format"], **given, **opt.stated(mpp=options["mpp"]))


# -- what is done to one section ---------------------------------------------------------------------------------------
def prepare_section(sdata: Any, options: Mapping[str, Any], facts: str) -> str:
    """Tile, name genes, pair crops, measure, normalise; returns the section's name."""
    from sealst import _section, pp

    key, min_tissue = options["table_key"], options["min_tissue"]
    tiled = key not in sdata.tables
    if tiled:
        if not sdata.images:
            raise DataError(
                f"There is no table {key!r} and no image; found tables {listed(sdata.tables)}. Name the table with "
                "--table-key."
            )
        if sdata.tables:
            raise DataError(f"There is no table {key!r}; found {listed(sdata.tables)}. Use --table-key.")
        given = {n: options[n] for n in ("step_um", "min_tissue", "image_key", "table_key")}
        pp.tile(sdata, crop_um=options["crop_um"][0], **opt.stated(**given))
    elif options["harmonize"] and sdata.tables[key].n_vars:
        pp.harmonize_genes(sdata, **fitting(pp.harmonize_genes, options))
    # Crops, measures and layers go, whoever made them: they are made anew in this copy.
    table = _section.get_table(sdata, key)
    for one in _section.regions_of(table):
        for shapes in [Keys.crops(one.name), *(Keys.crop_size(one.name, f"{um:g}") for um in options["crop_um"])]:
            if shapes in sdata.shapes:
                del sdata.shapes[shapes]
    measured = [Keys.quality(metric) for metric in {*options["metrics"], *options["thresholds"]}]
    table.obs = table.obs.drop(columns=measured, errors="ignore")
    if options["normalize"] and table.n_vars:
        for layer in (Keys.COUNTS, Keys.LOGNORM, Keys.CONTEXT):
            table.layers.pop(layer, None)
    sizes = list(options["crop_um"])
    scale = fitting(pp.pair_crops, options) | {"crop_um": sizes if len(sizes) > 1 else sizes[0]}
    pp.pair_crops(sdata, **scale)
    if min_tissue is not None and not tiled:
        pp.tissue(sdata, min_tissue=min_tissue, table_key=key)
    if metrics := list(dict.fromkeys([*options["metrics"], *options["thresholds"]])):
        limits = options["thresholds"] or None
        pp.quality(sdata, metrics=metrics, thresholds=limits, table_key=key)
    table = _section.get_table(sdata, key)
    if options["normalize"] and table.n_vars:
        pp.normalize(sdata, **fitting(pp.normalize, options))
    _section.record(table, "prepare", {"options": facts})
    names = table.obs[Keys.SECTION].astype(str).unique() if Keys.SECTION in table.obs else []
    return str(names[0] if len(names) == 1 else _section.regions_of(table)[0].name)


def fitting(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are arguments of a function."""
    return opt.stated(**{name: options[name] for name in inspect.signature(function).parameters if name in options})


def summary(sdata: Any, table_key: str) -> dict[str, Any]:
    """What a prepared section holds."""
    from sealst import _section

    table = _section.get_table(sdata, table_key)
    crops = next(iter(table.uns[Keys.UNS]["crops"].values()))
    facts = {name: _section.patients_of(table) for name in (Keys.PATIENT,) if name in table.obs}
    return {
        "n_obs": int(table.n_obs),
        "n_usable": int(table.obs[Keys.CROP_OK].sum()),
        "n_genes": int(table.n_vars),
        "mpp": round(float(crops["mpp"]), 6),
        "crop_um": [float(um) for um in crops["sizes"]],
        "crop_px": int(crops["crop_px"]),
        "layers": sorted(_section.layer_names(table)),
    } | facts
