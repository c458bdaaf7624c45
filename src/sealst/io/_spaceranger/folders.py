"""Folders that 10x Genomics' Space Ranger writes, whichever its version: where files lie and what they hold.

The files are read directly and not through `spatialdata_io`, for three reasons. That reader loads every picture of the
folder and takes whatever is passed for the full-resolution one, while here the slide stays on disk until a crop is cut,
and its size is checked. It needs the exact names of one version of the layout, while downloads come with prefixes,
compressed, flattened into one folder or with a header added. And it joins what it finds, while a section is only of use
when counts, positions and picture surely belong together. The tests compare what is read here with what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sealst._core.space.pooling import sum_columns
from sealst._errors import DataError
from sealst._files import expanded, read_json, visible
from sealst._given.schema import Positive, Text, check_type
from sealst._logging import logger
from sealst._validate import listed
from sealst.io._matrix10x import GENES, read_h5, read_mtx

KINDS = ("filtered", "raw")
_MATRIX = re.compile(r"^(?P<prefix>.*?)(?P<kind>filtered|raw)_feature_bc_matrix(?P<suffix>\.h5)?$")
_MTX = re.compile(r"^(?P<prefix>.*?)matrix\.mtx(\.gz)?$")
BINS = re.compile(r"^square_(\d{3})um$")


@dataclass(frozen=True)
class Outs:
    """A folder with counts, and the prefix of its files (``""`` as Space Ranger writes them)."""

    folder: Path
    prefix: str = ""
    #: further folders with a `spatial` folder, asked when the first has not got the file
    others: tuple[Path, ...] = ()

    @property
    def sample(self) -> str:
        """Prefix without its separator, or the name of the folder."""
        folder = self.folder.absolute()
        named = folder.parent if folder.name == "outs" else folder
        return self.prefix.rstrip("_.-") or named.name

    def find(self, *names: str) -> Path | None:
        """First of the files `names`, plain or gzipped, in the `spatial` folder or beside the counts."""
        for folder in (self.folder, *self.others):
            for place in (folder / "spatial", folder / f"{self.prefix}spatial", folder):
                held = visible(place)
                for name in names:
                    wanted = {f"{p}{name}{z}" for p in ("", self.prefix) for z in ("", ".gz")}
                    if found := sorted(wanted & held.keys(), key=len):
                        return held[found[0]]
        return None


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of genes as Space Ranger's matrix holds them."""

    x: sp.csr_matrix
    barcodes: np.ndarray
    var: pd.DataFrame
    path: Path


def bin_folders(folder: Path) -> dict[int, Path]:
    """Folders of square bins by the side of a bin in µm."""
    held = visible(folder)
    # A download has its name in front.
    named = [path for name, path in held.items() if name.endswith("binned_outputs")]
    for place in (*named, folder):
        found = {int(m[1]): path for name, path in visible(place).items() if (m := BINS.match(name)) and path.is_dir()}
        if found:
            return found
    return {}


def prefixes(folder: Path, kinds: Iterable[str] = KINDS) -> list[str]:
    """Prefixes of the count matrices that lie in a folder."""
    names = visible(folder)
    found = {m["prefix"] for name in names if (m := _MATRIX.match(name)) and m["kind"] in kinds}
    return sorted(found or {m["prefix"] for name in names if (m := _MTX.match(name))})


def starting_folder(path: str | PathLike[str]) -> Path:
    """Folder to look in: `path`, the folder of the file at `path`, or the parent of a `spatial` folder."""
    given = expanded(path)
    if not given.exists():
        raise DataError(f"`path`: nothing at {str(given)!r} (looked for {str(given.absolute())!r}).")
    folder = given if given.is_dir() else given.parent
    return folder.absolute().parent if folder.absolute().name == "spatial" and not prefixes(folder) else folder


def locate(path: str | PathLike[str], *, kind: str, sample: str | None) -> Outs:
    """Find the folder with the count matrix, from the folder itself, its parent or one of its parts."""
    start = starting_folder(path)
    # A folder of `matrix.mtx` is a part of the one that has the positions.
    first = [start.parent] if _MATRIX.match(start.name) else []
    for folder in (*first, start, start / "outs"):
        if found := prefixes(folder, [kind]):
            named = [p for p in found if sample is None or p.rstrip("_.-") == sample.rstrip("_.-")]
            if len(named) == 1:
                return Outs(folder, named[0])
            if sample is not None and not named and found == [""]:
                raise DataError(f"{str(folder)!r} holds one sample without a prefix; leave out `sample={sample!r}`.")
            raise DataError(
                f"{str(folder)!r} holds several samples, or none of the name asked for: {listed(found)}. Name one with "
                f"`sample=` (now {sample!r})."
            )
    below = [n for n, p in visible(start).items() if p.is_dir() and (prefixes(p) or prefixes(p / "outs"))]
    other = prefixes(start) or prefixes(start / "outs")
    hint = f"Name the folder of one sample: {listed(below)}." if below else "Give the `outs` folder of Space Ranger."
    if other:
        hint = f"It has another matrix: pass `counts={next(k for k in KINDS if k != kind)!r}`."
    raise DataError(
        f"No '{kind}_feature_bc_matrix.h5' (or folder '{kind}_feature_bc_matrix') in {str(start)!r}; it holds "
        f"{listed(visible(start))}. {hint}"
    )


def read_counts(outs: Outs, kind: str) -> Counts:
    """Counts of genes by barcode, see `gene_counts`."""
    stem = f"{outs.prefix}{kind}_feature_bc_matrix"
    path = outs.folder / f"{stem}.h5"
    if path.is_file():
        return gene_counts(path, *read_h5(path))
    path = outs.folder / stem
    return gene_counts(path, *(read_mtx(path, "") if path.is_dir() else read_mtx(outs.folder, outs.prefix)))


def gene_counts(path: Path, x: sp.csr_matrix, barcodes: np.ndarray, features: pd.DataFrame) -> Counts:
    """What a matrix holds of genes; other features are left out, genes of one symbol are summed."""
    genes = (
        (features["feature_types"] == GENES).to_numpy() if "feature_types" in features else np.ones(x.shape[1], bool)
    )
    if not genes.any() or not len(barcodes):
        raise DataError(
            f"{path.name} holds no counts of genes: {len(barcodes)} barcode(s), features of type "
            f"{listed(features.get('feature_types', pd.Series(dtype=str)).unique())}; expected {GENES!r}."
        )
    if (twice := pd.Index(barcodes).duplicated()).any():
        raise DataError(f"{path.name}: barcode(s) {listed(np.unique(barcodes[twice]))} occur more than once.")
    # Genes of one symbol are summed, in the order of the first of each; one without a symbol is called by its id.
    x = x if genes.all() else x[:, genes]
    features = features[genes].astype(str)
    ids = features["gene_ids" if "gene_ids" in features else "symbol"]
    symbols = features["symbol"].str.strip()
    symbols = symbols.where(~symbols.isin(["", "nan"]), ids)
    shared = symbols[symbols.duplicated()].unique()
    counts, first = sum_columns(x, list(symbols)) if len(shared) else (x, np.arange(len(symbols)))
    var = pd.DataFrame({"gene_ids": ids.to_numpy()[first]}, index=pd.Index(symbols.to_numpy()[first]))
    if "genome" in features:
        var["genome"] = features["genome"].to_numpy()[first]
    if len(shared):
        logger.info(
            f"{path.name}: {len(symbols)} genes have {len(var)} symbols; counts of one symbol were summed "
            f"({listed(shared, 4)}), `.var['gene_ids']` names the first gene of each"
        )
    return Counts(sp.csr_matrix(counts, dtype=np.float32), barcodes, var, path)


def read_factors(outs: Outs) -> dict[str, float]:
    """Positive numbers of ``scalefactors_json.json``; empty where there is no such file."""
    path = outs.find("scalefactors_json.json")
    if path is None:
        return {}
    held = read_json(path, kind=DataError)
    check_type(dict[Text, Any], held, where=str(path))
    numbers = {k: v for k, v in held.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    check_type(dict[Text, Positive], numbers, where=str(path))
    return {name: float(value) for name, value in numbers.items()}
