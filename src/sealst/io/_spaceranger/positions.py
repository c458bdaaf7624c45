"""Tables of tissue positions that Space Ranger writes, and which of their rows have counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sealst._errors import DataError
from sealst._files import visible
from sealst._logging import logger, warn
from sealst._text_table import first_lines, separator_of
from sealst._validate import check_counts, listed
from sealst.io._matrix10x import READ_ERRORS
from sealst.io._spaceranger.folders import Counts, Outs, read_counts, read_factors

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
#: other names by which converted files call the columns, in lower case and with underscores
_ALIASES = {
    "barcode": ("barcodes", "spot_id", "cell_id", "spot", "index", "", "unnamed:_0"),
    "in_tissue": ("tissue", "intissue"),
    "array_row": ("row", "arrayrow"),
    "array_col": ("col", "arraycol", "array_column", "column"),
    "pxl_row_in_fullres": ("pxl_row", "pixel_row", "imagerow", "image_row", "row_pxl", "pixel_y", "y"),
    "pxl_col_in_fullres": ("pxl_col", "pixel_col", "imagecol", "image_col", "col_pxl", "pixel_x", "x"),
}
#: what `spaceranger aggr` writes
_MERGED = "aggr_tissue_positions.csv"
_FILES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
# Barcodes of other slides share a few of their sequences, so a handful of matches proves nothing.
_MIN_FOUND = 0.5
# Space Ranger takes both the filtered matrix and the flag from one mask.
_MAX_OFF_TISSUE = 0.1


@dataclass(frozen=True, eq=False)
class Run:
    """Counts, positions and scale factors of one folder."""

    counts: Counts
    places: pd.DataFrame
    #: rows of the counts that have a position, and these positions, indexed by barcode
    rows: np.ndarray
    joined: pd.DataFrame
    factors: dict[str, float]
    provenance: dict[str, str | int]

    @property
    def x(self) -> sp.csr_matrix:
        """Counts of the joined rows."""
        return self.counts.x if len(self.rows) == self.counts.x.shape[0] else self.counts.x[self.rows]


def read_run(outs: Outs, *, kind: str, in_tissue: bool, section: str) -> Run:
    """Read the tables of a folder and join them by barcode."""
    counts = read_counts(outs, kind)
    places, path = read_positions(outs)
    rows, joined, dropped = match_barcodes(counts, places, kind=kind, in_tissue=in_tissue, section=section)
    provenance = {"counts": counts.path.name, "positions": path.name} | dropped
    run = Run(counts, places, rows, joined, read_factors(outs), provenance)
    check_counts(run.x, where=str(counts.path), kept="take the matrix as Space Ranger wrote it.")
    return run


def pixels(places: pd.DataFrame) -> np.ndarray:
    """Centres (x, y) in pixels of the full-resolution picture."""
    return places[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)


def read_positions(outs: Outs) -> tuple[pd.DataFrame, Path]:
    """Positions of all spots or bins, indexed by barcode, and the file they come from."""
    path = outs.find(*_FILES)
    if path is None:
        if merged := outs.find(_MERGED):
            raise DataError(
                f"{str(outs.folder)!r} is the output of `spaceranger aggr` ({merged.name}): its counts are of several "
                "sections under numbered barcodes. Read the `outs` folder of each section by itself; a model is "
                "trained on several with `sl.tl.finetune([first, second])`."
            )
        raise DataError(
            f"No table of positions in {str(outs.folder / 'spatial')!r} (looked for {listed(_FILES)}, also gzipped); "
            f"it holds {listed(visible(outs.folder / 'spatial'))}. Copy Space Ranger's whole `spatial` folder."
        )
    try:
        raw = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except READ_ERRORS as error:
        raise DataError(f"{path} could not be read as a table of positions: {error}") from error
    if raw.index.name in ("barcode", "barcodes") and "barcode" not in raw:
        raw = raw.reset_index()
    # Space Ranger's names; other names are taken where only one column can be meant.
    plain = [re.sub(r"[\s.\-]+", "_", str(c).strip().lower()) for c in raw.columns]
    chosen, renamed = {}, {}
    for column in COLUMNS:
        found = [i for i, name in enumerate(plain) if name == column]
        found = found or [i for i, name in enumerate(plain) if name in _ALIASES[column]]
        if len(found) != 1:
            raise DataError(
                f"{path.name}: {'no column' if not found else 'more than one column'} for {column!r} among "
                f"{listed(raw.columns, 12)}. Expected {', '.join(COLUMNS)}; rename the columns."
            )
        chosen[column] = raw.iloc[:, found[0]]
        if plain[found[0]] != column:
            renamed[str(raw.columns[found[0]])] = column
    if renamed:
        logger.info(f"{path.name}: took column(s) {', '.join(f'{a!r} as {b!r}' for a, b in renamed.items())}")
    table = pd.DataFrame(chosen)
    numbers = table[list(COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    for column in COLUMNS[1:4]:
        if bad := int((numbers[column].isna() | (numbers[column] % 1 != 0)).sum()):
            raise DataError(f"{path.name}: column {column!r} holds no whole number in {bad} of {len(numbers)} rows.")
    if not numbers["in_tissue"].isin([0, 1]).all():
        raise DataError(f"{path.name}: 'in_tissue' must be 0 or 1, found {listed(numbers['in_tissue'].unique())}.")
    numbers = numbers.astype(dict.fromkeys(COLUMNS[1:4], np.int32) | dict.fromkeys(COLUMNS[4:], float))
    numbers.index = pd.Index(table["barcode"].astype(str), name="barcode")
    if numbers.empty:
        raise DataError(f"{path.name} holds no positions.")
    if (twice := numbers.index.duplicated()).any():
        raise DataError(f"{path.name}: barcode(s) {listed(numbers.index[twice].unique())} occur more than once.")
    return numbers, path


def _read_csv(path: Path) -> pd.DataFrame:
    lines = first_lines(path)
    if not lines or not (first := lines[0].rstrip("\r\n")):
        raise DataError(f"{path} is empty.")
    separator = separator_of(lines)
    # The header is known by its words, as both file names come with and without it.
    header = any(re.search("[A-Za-z]", field) for field in first.split(separator)[1:])
    if not header and first.count(separator) + 1 != len(COLUMNS):
        raise DataError(
            f"{path.name} has {first.count(separator) + 1} columns and no header; expected the {len(COLUMNS)} columns "
            f"{', '.join(COLUMNS)}."
        )
    return pd.read_csv(
        path,
        sep=separator,
        header=0 if header else None,
        names=None if header else list(COLUMNS),
        encoding="utf-8-sig",
        dtype=object if header else {"barcode": str},
    )


def match_barcodes(
    counts: Counts, places: pd.DataFrame, *, kind: str, in_tissue: bool, section: str
) -> tuple[np.ndarray, pd.DataFrame, dict[str, int]]:
    """Rows of the counts with a position (and in tissue), these positions, and how many rows of either are left out."""
    at = places.index.get_indexer(pd.Index(counts.barcodes))
    found = at >= 0
    if not found.any() or (kind == "filtered" and found.mean() < _MIN_FOUND):
        raise DataError(
            f"{section}: {found.sum()} of {len(found)} barcodes of {counts.path.name} have a position. Counts: "
            f"{listed(counts.barcodes[~found][:2])}; positions: {listed(places.index[:2])}. "
            + _mismatch(counts.barcodes, places.index)
        )
    tissue = np.zeros(len(found), dtype=bool)
    tissue[found] = places["in_tissue"].to_numpy()[at[found]] == 1
    keep = found & tissue if in_tissue else found
    if not keep.any():
        raise DataError(
            f"{section}: none of the {found.sum()} barcodes with counts and a position has 'in_tissue' 1. Pass "
            "`in_tissue=False` to keep them."
        )
    off = int((found & ~tissue).sum())
    if kind == "filtered" and off > _MAX_OFF_TISSUE * found.sum():
        message = (
            f"{section}: {off} of {found.sum()} barcodes of the filtered counts lie outside the tissue by the "
            "positions, but Space Ranger takes both from one mask: are the two of different sections or runs?"
        )
        if in_tissue:
            raise DataError(f"{message} Pass `in_tissue=False` if they belong together.")
        warn(message)
    dropped = {
        "counts_without_position": int((~found).sum()),
        "outside_tissue": off if in_tissue else 0,
        "positions_without_counts": int(len(places) - found.sum()),
    }
    rows = np.flatnonzero(keep)
    chosen = places.iloc[at[rows]]
    xy = pixels(chosen)
    if bad := int((~np.isfinite(xy)).any(1).sum()):
        raise DataError(
            f"{section}: {bad} of {len(chosen)} barcodes have no finite pixel coordinates, e.g. "
            f"{listed(chosen.index[~np.isfinite(xy).all(1)], 3)}. Correct the positions, or drop these barcodes."
        )
    lost = dropped["counts_without_position"]
    logger.info(
        f"{section}: {len(rows)} barcodes with counts and position; dropped {lost} without a position and "
        f"{dropped['outside_tissue']} outside the tissue; {dropped['positions_without_counts']} positions have no "
        "counts"
    )
    if lost:
        warn(
            f"{section}: {lost} barcode(s) with counts have no position and were dropped; the positions are incomplete."
        )
    return rows, chosen, dropped


def _mismatch(barcodes: np.ndarray, positions: pd.Index) -> str:
    """Why the two share no barcode, as far as it can be told."""
    ours, theirs = pd.Index(barcodes[:5000].astype(str)), pd.Index(positions.astype(str))
    suffix = r"-\d+$"
    if ours.str.replace(suffix, "", regex=True).isin(theirs.str.replace(suffix, "", regex=True)).mean() > _MIN_FOUND:
        return "They differ by the suffix ('-1') alone: add it to the one that lacks it."
    if ours.str.upper().isin(theirs.str.upper()).mean() > _MIN_FOUND:
        return "They differ by upper and lower case alone."
    if ours.str.replace(r"^.*_", "", regex=True).isin(theirs).mean() > _MIN_FOUND:
        return "Those of the counts have a prefix: remove it."
    return "Take counts and positions from one run of Space Ranger."
