"""The command ``sealst retrieve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._text_table import read_text_table
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import Work, check_ending, check_new, write_frame
from sealst.cli._types import ANY_PATH, EXISTING_FILE, Genes, KeyValue, YamlMapping, merged

if TYPE_CHECKING:
    import pandas as pd

_QUERIES = ("genes", "signature", "pathway", "profile", "image", "spot")

_query = opt.stacked(
    click.option("--genes", type=Genes(), default=None, help="Gene, or several separated by commas, or a text file."),
    click.option("--signature", type=YamlMapping(), default=None,
                 help="Weights of genes, such as '{ERBB2: 1, VIM: -1}', or a YAML file."),
    click.option("--pathway", default=None, help="Name of a gene set of --net."),
    click.option("--net", default=None, help=f"With --pathway. {opt.net_help}"),
    click.option("--profile", type=EXISTING_FILE, default=None,
                 help="CSV or TSV with a gene and its log1p-CP10k per line."),
    click.option("--image", type=EXISTING_FILE, default=None, help="Picture of the model's crop size in pixels."),
    click.option("--spot", default=None, help="Name of a spot: crops that look like its crop."),
)  # fmt: skip

_search = options_of(
    "tl.retrieve", "n_hits", "by", "suppress_um", "n_std", "reference", "where", "key", "key_added",
    n_hits={"help": "Hits of each section."},
    suppress_um={"type": click.FloatRange(min=0)},
    by={"type": click.Choice(["expression", "embedding"]),
        "help": "Compare genes and profiles with what is predicted of crops, or with their embeddings."},
    n_std={"help": "By embedding: how far genes are raised, in standard deviations; by default 10."},
    reference={"help": "Boolean column of .obs, from whose mean a profile deviates; by embedding genes are raised."},
    key_added={"help": "Column of .obs with the similarities; that of the ranks ends in _rank."},
    where={"multiple": True, "type": KeyValue(),
           "help": "Of an index: value of a column, such as organ=breast; may be repeated."},
)  # fmt: skip


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst retrieve s1.zarr --model run --genes ERBB2 --hits erbb2.csv`; `sealst retrieve library "
    "--model run --pathway HALLMARK_HYPOXIA --net hallmark.gmt --where organ=breast`.",
)
@opt.model_options()
@_query
@_search
@click.option("--hits", type=ANY_PATH, default=None, help="Write the hits here: .csv, .tsv or .json.")
@click.option("--save/--no-save", default=True, show_default=True, help="Write similarities and ranks into .obs.")
@opt.region_option
@opt.work_options(tables=True)
@opt.device_option
def retrieve(
    work: Work, *, model: opt.Stored, device: str | None, hits: Path | None, save: bool, **options: Any
) -> Answer:
    """Find spots whose picture fits a gene, pathway or spot.

    Calls tl.retrieve. SECTIONS are embedded zarr stores, a folder of them, a manifest, h5ad tables that an --out
    wrote, or one index of `sealst index`. Give one query. Of sections .obs gets similarity and rank of every spot,
    saved where the tables came from or in --out; the hits of each section are printed, and written to --hits.
    """
    asked = [name for name in _QUERIES if options[name] is not None]
    if len(asked) != 1:
        raise click.UsageError(f"Give one of --{', --'.join(_QUERIES)}; found {', '.join(asked) or 'none'}.")
    if (options["pathway"] is None) != (options["net"] is None):
        raise click.UsageError("--pathway and --net belong together.")
    if hits is not None:
        check_ending(hits, "--hits")
        check_new(hits, work.overwrite, option="--hits")
    if work.out is not None and not save:
        raise click.UsageError("Give one of --out and --no-save.")
    is_index = len(work.paths) == 1 and (work.paths[0] / "config.json").is_file()
    if is_index and work.out is not None:
        raise click.UsageError("An index has no tables to write; name a file for the hits with --hits.")
    model.check(options["genes"] or options["signature"], query=True)
    work.check()
    name, given = _call(options)
    seal = model.load(device)
    given["table_key"] = work.table_key
    if is_index:
        from sealst.tl import SealIndex
        from sealst.tl import retrieve as search

        rest = {n: v for n, v in given.items() if n not in ("key", "key_added", "table_key")}
        found: pd.DataFrame = search(SealIndex.load(work.paths[0]), seal, **rest)
    else:
        found = _of_sections(replace(work, save=save), seal, given)
    found.insert(0, "asked", name)
    if hits is not None:
        write_frame(found, hits)
    rows = found.to_dict(orient="records")
    return Answer({"query": name, "model": seal.fingerprint, "hits": rows}, found.to_string(index=False))


def _call(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The query in words, and the arguments of `tl.retrieve`."""
    rest = {n: v for n, v in options.items() if n not in _QUERIES}
    rest["where"] = merged(rest["where"]) or None
    kind = next(name for name in _QUERIES if options[name] is not None)
    value = options[kind]
    if kind == "genes":
        query, name, kind = (value[0] if len(value) == 1 else value), ", ".join(value), "gene"
    elif kind == "signature":
        query, name = value, ", ".join(value)
    elif kind == "profile":
        name = value.name
        try:
            query = read_text_table(value, index_col=0, keep_default_na=False).iloc[:, 0].astype(float)
        except (ValueError, IndexError, OSError) as error:
            raise DataError(
                f"--profile {str(value)!r} could not be read: {error}. Expected a header and lines of a gene and a "
                "number."
            ) from error
    elif kind == "image":
        query, name = _picture(value), value.name
    else:
        query, name = value, value
    return name, {"query": query, "kind": kind} | opt.stated(**rest)


def _of_sections(work: Work, model: Any, given: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    from sealst import _section
    from sealst.tl import retrieve as search

    key, frames = given["key_added"], []

    def run(data: Any) -> dict[str, Any]:
        search(data, model, **given)
        table = work.table(data)
        entry = table.uns[Keys.UNS]["retrieve"][key]
        names = [str(name) for name in entry["hits"]]
        frame = pd.DataFrame({"rank": range(1, len(names) + 1), "obs_name": names, "similarity": entry["similarities"]})
        if Keys.SPATIAL in table.obsm:
            sections = {one.section: one for one in _section.sections_of(table)}
            owners = [sections[str(name)] for name in entry["sections"]]
            rows = [_section.row_of(table, name, [one]) for name, one in zip(names, owners, strict=True)]
            xy = table.obsm[Keys.SPATIAL][rows]
            frame["x_px"], frame["y_px"] = xy[:, 0], xy[:, 1]
        frames.append(frame)
        return {}

    records = work.run(run)
    for frame, record in zip(frames, records, strict=True):
        frame.insert(0, "section", record["section"])
    return pd.concat(frames, ignore_index=True)


def _picture(path: Path) -> Any:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"--image {str(path)!r} could not be read as a picture: {error}") from error
