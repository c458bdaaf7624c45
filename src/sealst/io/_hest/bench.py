"""Tasks of HEST-bench, in the layout in which they are published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from pydantic import Field

from sealst._errors import DataError
from sealst._files import absolute, read_json
from sealst._given.schema import Names, Stored
from sealst._html import as_html
from sealst._keys import Keys
from sealst._section import read_h5ad
from sealst._validate import listed
from sealst.io._hest.samples import READ_ERRORS

#: crops that are read at a time
_BATCH = 64


class _Genes(Stored):
    """``var_50genes.json``."""

    genes: Annotated[Names, Field(min_length=1)]


@dataclass(frozen=True)
class HestBench:
    """A task of HEST-bench: patches, counts, folds and genes; see `read_hest_bench`.

    Attributes
    ----------
    path
        Folder of the task.
    samples
        Ids of its samples.
    folds
        Ids to train on and to test on, of every published fold.
    genes
        Its genes (``var_50genes.json``).
    """

    path: Path
    samples: tuple[str, ...]
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    genes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the task, such as ``"IDC"``."""
        return self.path.name

    @cached_property
    def crop_px(self) -> int:
        """Side of a patch in pixels."""
        with h5py.File(_patches(self.path, self.samples[0])) as file:
            return int(file["img"].shape[1])

    def table(self, sample: str) -> AnnData:
        """Raw counts of the spots that have a patch, in the order of the patches."""
        path = self.path / "adata" / f"{sample}.h5ad"
        try:
            table = read_h5ad(path)
        except READ_ERRORS as error:
            raise DataError(f"adata/{path.name} could not be read: {error}. Download it again.") from error
        table.obs_names = table.obs_names.astype(str)
        if not table.obs_names.is_unique:
            raise DataError(f"adata/{path.name} has barcodes that occur twice.")
        patches = _patches(self.path, sample)
        try:
            with h5py.File(patches) as file:
                img, names = file["img"], file["barcode"]
                if img.ndim != 4 or img.dtype != np.uint8 or len(img) != len(names):
                    raise ValueError(f"img is {img.dtype} {img.shape}, barcode {names.shape}")
                barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(names[:])]
        except READ_ERRORS as error:
            raise DataError(f"patches/{patches.name} could not be read: {error}. Download it again.") from error
        rows = table.obs_names.get_indexer(barcodes)
        if (rows < 0).any():
            raise DataError(
                f"{(rows < 0).sum()} of {len(rows)} patches of {sample} belong to no spot of adata/{sample}.h5ad (e.g. "
                f"{listed([b for b, r in zip(barcodes, rows, strict=True) if r < 0], 3)})."
            )
        table = table[rows].copy()
        table.obs[Keys.SECTION] = sample
        return table

    def crops(self, sample: str) -> Iterator[np.ndarray]:
        """Patches of a sample in batches, uint8 (n, px, px, 3)."""
        with h5py.File(_patches(self.path, sample)) as file:
            images = file["img"]
            for start in range(0, len(images), _BATCH):
                yield np.asarray(images[start : start + _BATCH])

    def positions(self, sample: str) -> np.ndarray:
        """Corners of the patches in pixels of the slide, (n, 2); NaN where the file does not say."""
        with h5py.File(_patches(self.path, sample)) as file:
            n = len(file["img"])
            return np.asarray(file["coords"][:], dtype=float) if "coords" in file else np.full((n, 2), np.nan)

    def __repr__(self) -> str:
        return f"HestBench {self.name!r}: {len(self.samples)} samples, {len(self.folds)} folds, {len(self.genes)} genes"

    def _repr_html_(self) -> str:
        return as_html(repr(self), {"samples": listed(self.samples), "genes": listed(self.genes)})


def read_hest_bench(path: str | PathLike[str]) -> HestBench:
    """Read a task of HEST-bench, to be evaluated with ``sealst.tl.evaluate(task, model, preset="hest")``.

    Parameters
    ----------
    path
        Folder of one task: ``adata/<id>.h5ad`` (raw counts), ``patches/<id>.h5`` (``img``, ``barcode``, ``coords``),
        ``splits/train_<k>.csv`` and ``test_<k>.csv`` (column ``sample_id``), ``var_50genes.json``.

    Returns
    -------
    `HestBench`. Patches are read when they are needed.

    Raises
    ------
    DataError
        When files are missing or damaged; or a sample stands on both sides of a fold.

    Examples
    --------
    >>> task = sl.io.read_hest_bench("bench_data/IDC")  # doctest: +SKIP
    >>> sl.tl.evaluate(task, "uni2-h", preset="hest").summary()  # doctest: +SKIP

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.
    """
    folder = absolute(path)
    source = folder / "var_50genes.json"
    if not source.is_file():
        raise DataError(
            f"No 'var_50genes.json' in {str(folder)!r}. `path` must be the folder of one task of HEST-bench, with the "
            "folders adata, patches and splits."
        )
    content = read_json(source, kind=DataError)
    # Earlier tasks are the list alone.
    genes = _Genes.of(content if isinstance(content, dict) else {"genes": content}, where=source.name, kind=DataError)
    found = {}
    for one in (folder / "splits").glob("test_*.csv"):
        if match := re.fullmatch(r"test_(\d+)", one.stem):
            found[int(match[1])] = one
    if not found:
        raise DataError(f"No 'splits/test_<k>.csv' in {str(folder)!r}.")
    sides = [(_samples(one.with_name(f"train_{k}.csv")), _samples(one)) for k, one in sorted(found.items())]
    samples = tuple(dict.fromkeys(s for pair in sides for side in pair for s in side))
    for sample in samples:
        for file in (folder / "adata" / f"{sample}.h5ad", _patches(folder, sample)):
            if not file.is_file():
                raise DataError(f"The splits name sample {sample!r}, but there is no {file.relative_to(folder)}.")
    for k, (train, test) in enumerate(sides):
        if both := sorted(set(train) & set(test)):
            raise DataError(f"Sample(s) {listed(both)} stand on both sides of split {k}.")
    return HestBench(folder, samples, tuple(sides), genes.genes)


def _samples(path: Path) -> tuple[str, ...]:
    try:
        return tuple(pd.read_csv(path, dtype=str)["sample_id"])
    except READ_ERRORS as error:
        raise DataError(f"splits/{path.name} must be a table with a column 'sample_id': {error}.") from error


def _patches(folder: Path, sample: str) -> Path:
    return folder / "patches" / f"{sample}.h5"
