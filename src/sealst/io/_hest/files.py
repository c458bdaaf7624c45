"""Files of a HEST-1k sample: where they lie, and what of them can be checked before it is used."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from sealst._errors import DataError, ScaleError
from sealst._logging import logger, warn
from sealst._validate import listed

#: side of a patch in µm: 224 px at 0.5 µm per pixel
_PATCH_UM = 112.0
#: px by which a patch may lie off its place; corners are rounded to whole pixels
_ROUNDING = 2.0
_EMPTY = ("", "nan", "none", "null")
# What h5py, anndata, pandas and json raise for damaged files.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Sample:
    """One sample, with the paths of its files."""

    id: str
    root: Path
    slide: Path

    @property
    def table(self) -> Path:
        """Counts and positions."""
        return self.root / "st" / f"{self.id}.h5ad"

    @property
    def patches(self) -> Path:
        """Ready-made crops; they may be absent."""
        return self.root / "patches" / f"{self.id}.h5"


def find_sample(path: str | PathLike[str], sample_id: str | None) -> Sample:
    """Find a sample by the folder of the data set and its id, or by its table."""
    given = Path(path).expanduser()
    if given.suffix == ".h5ad":
        if sample_id not in (None, given.stem):
            raise DataError(f"`path` is the table of {given.stem!r}, but `sample_id` is {sample_id!r}; give only one.")
        given, sample_id = given.absolute().parent.parent, given.stem
    ids = sorted(p.stem for p in (given / "st").glob("*.h5ad"))
    if not ids:
        raise DataError(
            f"No table 'st/<id>.h5ad' in {str(given.absolute())!r}. `path` must be the folder of HEST-1k, with the "
            "folders st, wsis and metadata."
        )
    if sample_id is None and len(ids) == 1:
        sample_id = ids[0]
    if sample_id not in ids:
        raise DataError(f"`sample_id` is {sample_id!r}; {str(given / 'st')!r} holds {listed(ids, 12)}.")
    slides = [given / "wsis" / f"{sample_id}{suffix}" for suffix in (".tif", ".tiff")]
    slide = next((p for p in slides if p.is_file()), None)
    if slide is None:
        others = sorted(p.name for p in (given / "wsis").glob("*")) if (given / "wsis").is_dir() else []
        raise DataError(
            f"The slide of {sample_id} is missing: no {str(slides[0])!r} (the folder holds {listed(others)}). Download "
            f"wsis/{sample_id}.tif; thumbnails and patches are no replacement for it."
        )
    return Sample(str(sample_id), given, slide)


def read_facts(sample: Sample) -> dict[str, Any]:
    """Metadata that are stated; from the table of all samples where the sample's own file is absent."""
    path = sample.root / "metadata" / f"{sample.id}.json"
    if path.is_file():
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise DataError(f"metadata/{path.name} could not be read as JSON: {error}. Download it again.") from error
        if not isinstance(facts, dict):
            raise DataError(f"metadata/{path.name} must hold a JSON object, found {type(facts).__name__}.")
        return _known_facts(facts)
    tables = sorted(sample.root.glob("HEST_v*.csv"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])
    for table in reversed(tables):
        try:
            rows = pd.read_csv(table, dtype={"id": str})
            row = rows[rows["id"] == sample.id]
        except _READ_ERRORS as error:
            raise DataError(f"{table.name} could not be read: {error}. Download it again.") from error
        if len(row):
            logger.info(f"{sample.id}: no metadata/{path.name}; the metadata come from {table.name}")
            return _known_facts(row.iloc[0].to_dict())
    warn(
        f"No metadata of {sample.id}: neither metadata/{path.name} nor a row in a table 'HEST_v*.csv' (found "
        f"{listed(p.name for p in tables)}). Patient and organ are unknown."
    )
    return {}


def _known_facts(facts: dict[str, Any]) -> dict[str, Any]:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in facts.items()}
    return {
        k: v
        for k, v in plain.items()
        if not (v is None or (isinstance(v, float) and not np.isfinite(v)) or str(v).strip().lower() in _EMPTY)
    }


def read_table(sample: Sample) -> AnnData:
    """Table of a sample, with finite positions (x, y) in pixels of the slide in ``.obsm["spatial"]``."""
    name = sample.table.name
    try:
        with warnings.catch_warnings():
            # Names that occur twice are summed.
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            table = anndata.read_h5ad(sample.table)
    except _READ_ERRORS as error:
        raise DataError(f"st/{name} could not be read, it is damaged or incomplete: {error}. Copy it again.") from error
    if "spatial" not in table.obsm:
        columns = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
        if not set(columns) <= set(table.obs.columns):
            raise DataError(
                f"st/{name} has no `.obsm['spatial']` (found {listed(table.obsm)}) and no columns {listed(columns)} in "
                "`.obs`, so the spots have no place on the slide."
            )
        table.obsm["spatial"] = table.obs[columns].to_numpy(dtype=float)
    xy = np.asarray(table.obsm["spatial"])
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise DataError(f"st/{name}: `.obsm['spatial']` must be (spots, 2), found {xy.shape}.")
    lost = ~np.isfinite(xy.astype(float)).all(axis=1)
    if lost.all():
        raise DataError(f"st/{name}: none of the {len(xy)} spots has finite coordinates.")
    if lost.any():
        warn(f"{sample.id}: {lost.sum()} of {len(xy)} spots have no finite coordinates and were left out.")
        table = table[~lost].copy()
    return table


def in_patches(path: Path, ids: Sequence[str], xy: np.ndarray, mpp: float) -> tuple[np.ndarray, dict[str, Any]]:
    """Which spots have a patch, after checking that the patches lie where the spots do.

    Corners of patches are the spots' centres less half a patch; some versions hold the centres themselves.
    """
    barcodes, corners = _read_patches(path)
    rows = pd.Index(ids).get_indexer(barcodes)
    found = rows >= 0
    if not found.any():
        raise DataError(
            f"patches/{path.name} has none of the spots: its barcodes begin {listed(barcodes[:3])}, the spots "
            f"{listed(ids[:3])}. It belongs to another sample; pass `patches=False` to read without it."
        )
    entry: dict[str, Any] = {"patches": len(barcodes), "patches_without_spot": int((~found).sum())}
    mask = np.zeros(len(ids), dtype=bool)
    mask[rows[found]] = True
    if corners is None:
        return mask, entry
    offset = xy[rows[found]] - corners[found]
    middle = np.median(offset, axis=0)
    off = np.abs(offset - middle).max(axis=1) > _ROUNDING
    if off.mean() > 0.05:
        swapped = xy[rows[found]][:, ::-1] - corners[found]
        if (np.abs(swapped - np.median(swapped, axis=0)).max(axis=1) > _ROUNDING).mean() <= 0.05:
            raise DataError(
                f"patches/{path.name} fits the spots only with x and y interchanged: `.obsm['spatial']` of the table "
                "must hold (x, y), pixels to the right first. Interchange its columns in the h5ad."
            )
        raise DataError(
            f"patches/{path.name}: {off.sum()} of {len(off)} patches lie elsewhere than the spots of the same barcode. "
            "It belongs to another sample or version; pass `patches=False` to read without it."
        )
    half = _PATCH_UM / mpp / 2
    if np.abs(middle - half).max() <= _ROUNDING + 0.05 * half:
        entry["patch_coordinates"] = "top left"
    elif np.abs(middle).max() <= _ROUNDING:
        entry["patch_coordinates"] = "centre"
    else:
        raise ScaleError(
            f"patches/{path.name}: patches begin {middle[0]:.4g}, {middle[1]:.4g} px left of and above the centre of "
            f"their spot; half of {_PATCH_UM:g} µm is {half:.4g} px at {mpp:.4g} µm per pixel. They were cut at "
            "another scale; pass `patches=False` to read without them."
        )
    return mask, entry


def _read_patches(path: Path) -> tuple[list[str], np.ndarray | None]:
    try:
        with h5py.File(path) as file:
            barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(file["barcode"][:])]
            corners = np.asarray(file["coords"][:], dtype=float) if "coords" in file else None
    except _READ_ERRORS as error:
        raise DataError(
            f"patches/{path.name} could not be read: {error}. Download it again, or pass `patches=False`."
        ) from error
    if corners is not None and corners.shape != (len(barcodes), 2):
        raise DataError(f"patches/{path.name} has {len(barcodes)} barcodes, but coords of shape {corners.shape}.")
    return barcodes, corners
