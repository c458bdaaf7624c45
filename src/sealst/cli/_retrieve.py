"""The command ``sealst retrieve``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._text_table import read_text_table
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand
from sealst.cli._options import (
    ANY_PATH,
    EXISTING_FILE,
    device_option,
    load_model,
    model_options,
    net_help,
    region_option,
    sections_argument,
    stacked,
    stated,
    table_key_option,
    table_out_options,
)
from sealst.cli._sections import Work, check_ending, check_new, write_frame
from sealst.cli._types import Genes, KeyValue, YamlMapping, merged

if TYPE_CHECKING:
    import pandas as pd

_QUERIES = ("genes", "signature", "pathway", "profile", "image", "spot")

_query = stacked(
    click.option("--genes", type=Genes(), default=None, help="Gene, or several separated by commas, or a text file."),
    click.option("--signature", type=YamlMapping(), default=None,
                 help="Weights of genes, such as '{ERBB2: 1, VIM: -1}', or a YAML file."),
    click.option("--pathway", default=None, help="Name of a gene set of --net."),
    click.option("--net", default=None, help=f"With --pathway. {net_help}"),
    click.option("--profile", type=EXISTING_FILE, default=None,
                 help="CSV or TSV with a gene and its log1p-CP10k per line."),
    click.option("--image", type=EXISTING_FILE, default=None, help="Picture of the model's crop size in pixels."),
    click.option("--spot", default=None, help="Name of a spot: crops that look like its crop."),
)  # fmt: skip

_search = stacked(
    click.option("--n-hits", type=click.IntRange(min=1), default=10, show_default=True, help="Hits of each section."),
    click.option("--suppress-um", type=click.FloatRange(min=0), default=0.0, show_default=True,
                 help="Smallest distance in µm between two hits of a section."),
    click.option("--n-std", type=float, default=10.0, show_default=True,
                 help="Genes and signatures: how far the reference is moved, in standard deviations."),
    click.option("--reference", default=None, help="Genes and signatures: boolean column of .obs, from whose mean."),
    click.option("--where", multiple=True, type=KeyValue(),
                 help="Of an index: value of a column, such as organ=breast; may be repeated."),
    click.option("--key", default=Keys.EMBEDDING, show_default=True, help="Slot in .obsm with the embeddings."),
    click.option("--key-added", default=Keys.SIMILARITY, show_default=True,
                 help="Column of .obs with the similarities; that of the ranks ends in _rank."),
)  # fmt: skip


@click.command(
    cls=SealstCommand,
    epilog="Examples: `sealst retrieve s1.zarr --model run --genes ERBB2 --hits erbb2.csv`; `sealst retrieve library "
    f"--model run --pathway HALLMARK_HYPOXIA --net hallmark.gmt --where organ=breast`. {EXIT_CODES}",
)
@sections_argument
@model_options
@_query
@_search
@click.option("--hits", type=ANY_PATH, default=None, help="Write the hits here: .csv, .tsv or .json.")
@click.option("--save/--no-save", default=True, show_default=True, help="Write similarities and ranks into .obs.")
@table_out_options
@region_option
@table_key_option
@device_option
def retrieve(
    sections: tuple[Path, ...],
    *,
    model: Path,
    weights: Path | None,
    base: str | None,
    device: str | None,
    hits: Path | None,
    out: Path | None,
    overwrite: bool,
    save: bool,
    **options: Any,
) -> Answer:
    """Find spots whose picture fits a gene, pathway or spot.

    Calls tl.retrieve. SECTIONS are embedded zarr stores, a folder of them, a manifest, h5ad tables that an --out
    wrote, or one index of `sealst index`. Give one query. Of sections .obs gets similarity and rank of every spot,
    saved where the tables came from or in --out; the hits of each section are printed, and written to --hits.
    """
    _check(options, hits, overwrite)
    if out is not None and not save:
        raise click.UsageError("Give one of --out and --no-save.")
    is_index = len(sections) == 1 and (sections[0] / "config.json").is_file()
    if is_index and out is not None:
        raise click.UsageError("An index has no tables to write; name a file for the hits with --hits.")
    work = Work(sections, out, overwrite, options["table_key"], save=save, tables=True)
    seal = load_model(model, weights=weights, base=base, device=device)
    name, given = _call(options)
    found = _of_index(sections[0], seal, given) if is_index else _of_sections(work, seal, given)
    found.insert(0, "asked", name)
    if hits is not None:
        write_frame(found, hits)
    rows = found.to_dict(orient="records")
    return Answer({"query": name, "model": seal.fingerprint, "hits": rows}, found.to_string(index=False))


def _check(options: Mapping[str, Any], hits: Path | None, overwrite: bool) -> None:
    given = [name for name in _QUERIES if options[name] is not None]
    if len(given) != 1:
        raise click.UsageError(f"Give one of --{', --'.join(_QUERIES)}; found {', '.join(given) or 'none'}.")
    if (options["pathway"] is None) != (options["net"] is None):
        raise click.UsageError("--pathway and --net belong together.")
    if hits is not None:
        check_ending(hits, "--hits")
        check_new(hits, overwrite, option="--hits")


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
        query, name = _profile(value), value.name
    elif kind == "image":
        query, name = _picture(value), value.name
    else:
        query, name = value, value
    return name, {"query": query, "kind": kind} | stated(**rest)


def _of_index(path: Path, model: Any, given: Mapping[str, Any]) -> pd.DataFrame:
    from sealst.tl import SealIndex, retrieve

    rest = {n: v for n, v in given.items() if n not in ("key", "key_added", "table_key")}
    hits: pd.DataFrame = retrieve(SealIndex.load(path), model, **rest)
    return hits


def _of_sections(work: Work, model: Any, given: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    from sealst.tl import retrieve as search

    key, frames = given["key_added"], []

    def run(data: Any) -> dict[str, Any]:
        search(data, model, **given)
        table = data.tables[given["table_key"]] if hasattr(data, "tables") else data
        frames.append(_hits(table, key))
        return {}

    records = work.run(run)
    for frame, record in zip(frames, records, strict=True):
        frame.insert(0, "section", record["section"])
    return pd.concat(frames, ignore_index=True)


def _hits(table: Any, key: str) -> pd.DataFrame:
    import pandas as pd

    entry = table.uns[Keys.UNS]["retrieve"][key]
    names = [str(name) for name in entry["hits"]]
    frame = pd.DataFrame({"rank": range(1, len(names) + 1), "obs_name": names, "similarity": entry["similarities"]})
    if Keys.SPATIAL in table.obsm:
        xy = table.obsm[Keys.SPATIAL][table.obs_names.get_indexer(names)]
        frame["x_px"], frame["y_px"] = xy[:, 0], xy[:, 1]
    return frame


def _profile(path: Path) -> pd.Series:
    try:
        frame = read_text_table(path, index_col=0, keep_default_na=False)
        return frame.iloc[:, 0].astype(float)
    except (ValueError, IndexError, OSError) as error:
        raise DataError(
            f"--profile {str(path)!r} could not be read: {error}. Expected a header and lines of a gene and a number."
        ) from error


def _picture(path: Path) -> Any:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"--image {str(path)!r} could not be read as a picture: {error}") from error
