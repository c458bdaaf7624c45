"""Read sections of the legacy Spatial Transcriptomics array."""

from __future__ import annotations

import csv
import gzip
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from sealst._core.space.geometry import agreed
from sealst._core.space.lattice import pitch
from sealst._errors import DataError, ScaleError
from sealst._files import expanded
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import record
from sealst._section.arrays import from_arrays
from sealst._validate import check_counts, check_gene_names, check_positive, listed
from sealst.io._images.files import whole_picture

#: how far two values of the scale may be apart
_TOLERANCE = 0.05
#: median distance of the spots to the fitted line, in pitches, above which the line does not describe them; an array
#: that is tilted by a few degrees stays below
_MAX_RESIDUAL = 1.0
#: beyond any picture, in pixels or places of the array
_FAR = 1e9
#: how far adjusted array coordinates lie from the whole numbers that they adjust
_ADJUSTED = 0.6
#: columns and rows of which every other place is empty, so that it is no chance
_MIN_STAGGERED = 4
_LABEL = "label"


def read_st(
    counts: str | PathLike[str],
    spots: str | PathLike[str],
    image: str | PathLike[str] | np.ndarray,
    *,
    section: str,
    organ: str = "unknown",
    patient: str | None = None,
    technology: str = "Spatial Transcriptomics",
    mpp: float | None = None,
    pitch_um: float = 200.0,
    spot_um: float = 100.0,
    coordinate_scale: float = 1.0,
    annotations: str | PathLike[str] | pd.DataFrame | None = None,
) -> SpatialData:
    """Read a section of the legacy Spatial Transcriptomics array.

    Counts and spots are joined by the spot index ``<x>x<y>`` (array column and row, for example ``10x14``). Spots
    without counts and counts without a spot are dropped; the log says how many.

    The physical scale comes from the array: a robust straight line of the spots' pixel coordinates on their array
    coordinates gives the pitch in pixels, which is `pitch_um` µm.

    Parameters
    ----------
    counts
        Tab-separated raw counts, plain or gzipped, with the spot index in rows and genes in columns. A table with
        genes in rows is recognised by its spot index and transposed. Gene names are kept as they are.
    spots
        Tab-separated selection file of the ST spot detector with a header: `x`, `y` (array column and row), `pixel_x`,
        `pixel_y` (centres in pixels of the original image), and where present `new_x`, `new_y` (adjusted array
        coordinates) and `selected` (rows with 0 are dropped).
    image
        H&E as a file (jpg, png, tif; transparency is ignored) or as a uint8 array (height, width, 3).
    section, organ, patient, technology
        Written to ``.obs``. `patient` defaults to the name of the section.
    mpp
        µm per pixel of `image`. By default it is derived from `pitch_um`; a value that contradicts the pitch by more
        than 5 % is refused. Needed for staggered arrays (second generation, "diamond" pattern), whose pitch differs.
    pitch_um
        Distance of neighbouring spots, centre to centre, in µm.
    spot_um
        Diameter of a spot in µm.
    coordinate_scale
        Factor on `pixel_x` and `pixel_y`, for an image that was resized after spot detection: width of `image` divided
        by the width of the original.
    annotations
        Labels of spots, as a tab-separated file with a header or a data frame: a column `label`, and the spot either in
        columns `x`, `y` (rounded to whole numbers) or as the index (first column of a file).

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`, with image ``"<section>_he"``, circles ``"<section>_spots"``,
    and in ``tables["table"]``

    - ``.obs["array_row"]``, ``.obs["array_col"]``: int, `y` and `x` of the spots file
    - ``.obs["label"]``: categorical of str, where `annotations` is given; missing for spots without a label
    - ``.uns["sealst"]["read_st"]``: the scale, where it came from, and how many rows were dropped

    Raises
    ------
    DataError
        When a file is absent or cannot be read, a column is missing, the counts are not raw counts, names are empty or
        occur twice, or counts and spots share no spot.
    ScaleError
        When the scale cannot be derived, differs by more than 5 % between x and y, from `mpp` or from what the image
        file states, or spots lie outside the image.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_st(
    ...     "C2.tsv.gz", "C2_selection.tsv", "C2.jpg", section="C2", patient="C", organ="breast"
    ... )  # doctest: +SKIP

    References
    ----------
    Ståhl et al., Visualization and analysis of gene expression in tissue sections by spatial transcriptomics, Science
    353, 78-82 (2016).
    """
    for name, value in (("pitch_um", pitch_um), ("spot_um", spot_um), ("coordinate_scale", coordinate_scale)):
        check_positive(name, value)
    if mpp is not None:
        check_positive("mpp", mpp)
    places = _read_spots(_existing(spots, "spots"))
    places[["pixel_x", "pixel_y"]] *= coordinate_scale
    table = _read_counts(_existing(counts, "counts"), places.index)
    ids = table.index[table.index.isin(places.index)]
    opened = (image, {}) if isinstance(image, np.ndarray) else whole_picture(_existing(image, "image"))
    picture, stated = opened
    scale = _resolve_mpp(places, mpp, pitch_um, stated)
    dropped = {"counts_without_spot": len(table) - len(ids), "spots_without_counts": len(places) - len(ids)}
    table, places = table.loc[ids], places.loc[ids]
    check_counts(table.to_numpy(), where="`counts`", kept="pass the file that holds them.")
    if picture.ndim == 3:  # `from_arrays` says what an image must be
        x, y = places["pixel_x"], places["pixel_y"]
        height, width = picture.shape[:2]
        outside = (x < 0) | (y < 0) | (x > width) | (y > height)
        if outside.any():
            raise ScaleError(
                f"{outside.sum()} of {len(places)} spots lie outside the image: they span x {x.min():.0f} to "
                f"{x.max():.0f} and y {y.min():.0f} to {y.max():.0f}, the image is {width} x {height} pixels (width x "
                "height). The spots file counts pixels of the original image: for a picture that was made smaller pass "
                "`coordinate_scale=`, the picture's width divided by the original's (now "
                f"{coordinate_scale:.4g})."
            )
    sdata = from_arrays(
        picture,
        table.to_numpy(),
        places[["pixel_x", "pixel_y"]].to_numpy(),
        genes=list(table.columns),
        mpp=scale,
        spot_um=spot_um,
        section=section,
        spot_ids=list(ids),
        patient=patient,
        organ=organ,
        technology=technology,
        array=places[["y", "x"]].to_numpy(),
        obs=None if annotations is None else _read_labels(annotations, ids),
    )
    if _is_staggered(places):
        pitch_um = pitch(places[["pixel_x", "pixel_y"]].to_numpy()) * scale
    source = {"mpp": float(scale), "mpp_source": "pitch" if mpp is None else "argument", "pitch_um": float(pitch_um)}
    record(sdata.tables[Keys.TABLE], "read_st", source | {"coordinate_scale": float(coordinate_scale)} | dropped)
    joined = len(ids)
    orphans, unused = dropped["counts_without_spot"], dropped["spots_without_counts"]
    logger.info(
        f"{section}: {joined} spots with counts and coordinates; dropped {unused} spot(s) without counts and {orphans} "
        "row(s) of counts without a spot"
    )
    if orphans > joined:
        text = f"{section}: only {joined} of {joined + orphans} rows of counts have a spot"
        if unused > joined:
            raise DataError(
                f"{text}, and {unused} of {joined + unused} spots have no counts: counts and spots file are of "
                "different sections."
            )
        warn(f"{text}; the rest was dropped. Check that the counts and the spots file belong to the same section.")
    return sdata


def _existing(path: str | PathLike[str], name: str) -> Path:
    found = expanded(path, argument=name)
    if not found.is_file():
        raise DataError(f"`{name}`: no file at {str(found)!r} (looked for {str(found.absolute())!r}).")
    return found


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path.name} could not be read as a tab-separated table: {error}")


# What pandas and gzip raise for damaged, empty or binary files.
_READ_ERRORS = (ValueError, OSError, EOFError)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        # Labels are names, also where they look like numbers.
        return pd.read_csv(path, sep="\t", dtype={_LABEL: str})
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _read_spots(path: Path) -> pd.DataFrame:
    """Rows of the spots file that are selected, indexed by ``<x>x<y>``."""
    raw = _read_table(path)
    needed = ["x", "y", "pixel_x", "pixel_y"]
    if missing := [c for c in needed if c not in raw.columns]:
        raise DataError(
            f"{path.name} lacks the column(s) {listed(missing)}; found: {listed(raw.columns)}. Expected the spot "
            "detector's selection file, tab-separated with the header x, y, new_x, new_y, pixel_x, pixel_y."
        )
    adjusted = ["new_x", "new_y"] if {"new_x", "new_y"} <= set(raw.columns) else ["x", "y"]
    if "selected" in raw.columns:
        raw = raw[pd.to_numeric(raw["selected"], errors="coerce") != 0]
    if raw.empty:
        raise DataError(f"{path.name} holds no spots (rows with `selected` 0 are dropped).")
    frame = raw[needed].apply(pd.to_numeric, errors="coerce").astype(float)
    frame[["new_x", "new_y"]] = raw[adjusted].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    bad = ~(frame.abs() < _FAR).all(axis=1)
    if bad.any():
        raise DataError(
            f"{path.name}: {bad.sum()} row(s) hold text, nothing or numbers beyond {_FAR:g} where positions are "
            "expected; drop them."
        )
    if ((offgrid := frame[["x", "y"]] % 1) != 0).any(axis=None):
        example = frame.loc[offgrid.any(axis=1), "x"].iloc[0], frame.loc[offgrid.any(axis=1), "y"].iloc[0]
        raise DataError(
            f"{path.name}: `x` and `y` must be whole numbers, the array's column and row, found e.g. {example}. "
            "Adjusted array coordinates belong in `new_x` and `new_y`."
        )
    frame = frame.astype({"x": int, "y": int})
    frame.index = _spot_index(frame)
    if (twice := frame.index.duplicated()).any():
        raise DataError(f"{path.name}: spot(s) {listed(frame.index[twice].unique())} occur more than once.")
    # How far `x` and `y` lie from what adjusts them, as the columns are called and interchanged.
    near, crossed = (
        all((frame[f"new_{a}"] - frame[b]).abs().median() <= _ADJUSTED for a, b in pairs)
        for pairs in (("xx", "yy"), ("xy", "yx"))
    )
    if crossed and not near:
        raise DataError(
            f"{path.name}: `new_x` follows `y` and `new_y` follows `x`, so columns are interchanged and spots would "
            "get the counts of others. Take the file as the spot detector wrote it."
        )
    return frame


def _spot_index(frame: pd.DataFrame) -> pd.Index:
    return pd.Index(frame["x"].astype(str) + "x" + frame["y"].astype(str))


def _read_counts(path: Path, spots: pd.Index) -> pd.DataFrame:
    """Counts with the spot index in rows; gene names exactly as in the file."""
    try:
        # The names are read apart from the numbers, as pandas renames columns that occur twice.
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as lines:
            names = next(csv.reader(lines, delimiter="\t"), [])
        table = pd.read_csv(
            path, sep="\t", header=None, skiprows=1, index_col=0, keep_default_na=False, low_memory=False
        )
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if table.shape[1] < 1 or len(names) - table.shape[1] not in (0, 1):
        raise DataError(
            f"{path.name} has {len(names)} field(s) in its header and {table.shape[1] + 1} in its rows. Expected a "
            "tab-separated table with a header of names and one name in front of every row."
        )
    table.columns = pd.Index(names[-table.shape[1] :], dtype=object)
    if text := [n for n, t in zip(table.columns, table.dtypes, strict=True) if not pd.api.types.is_numeric_dtype(t)]:
        raise DataError(
            f"{path.name} holds text or empty fields where counts are expected, in column(s) {listed(text)}."
        )
    table.index = pd.Index(table.index.astype(str), name=None)
    if not table.index.isin(spots).any():
        if not table.columns.isin(spots).any():
            raise DataError(
                f"No spot of {path.name} is in the spots file. Its rows are {listed(table.index, 3)}, its columns "
                f"{listed(table.columns, 3)}; the spots file has {listed(spots, 3)}. Expected an index '<x>x<y>' of "
                "array column and row in one of the two."
            )
        table = table.T
    if (twice := table.index.duplicated()).any():
        raise DataError(f"{path.name}: spot(s) {listed(table.index[twice].unique())} occur more than once.")
    check_gene_names(list(table.columns), where=path.name)
    return table


def _resolve_mpp(places: pd.DataFrame, mpp: float | None, pitch_um: float, stated: dict[str, float]) -> float:
    """µm per pixel, from the pitch of the array unless given; refuses contradictions."""
    pitches = [_pitch_px(places[f"new_{a}"].to_numpy(), places[f"pixel_{a}"].to_numpy(), a) for a in ("x", "y")]
    known = [p for p in pitches if p is not None]
    if len(known) == 2 and _is_staggered(places):
        # Columns and rows of the second generation need not be equally far apart, and arrays differ in how far.
        if mpp is None:
            raise ScaleError(
                "The array is staggered: in every row only every other column has a spot, as on arrays of the second "
                f"generation, whose pitch is not {pitch_um:g} µm. Pass `mpp=`, in µm per pixel (columns are "
                f"{known[0]:.4g} and rows {known[1]:.4g} pixels apart)."
            )
        return agreed({"`mpp`": float(mpp)} | stated, what="the image")[0]
    if len(known) == 2 and abs(known[0] - known[1]) > _TOLERANCE * np.mean(known):
        raise ScaleError(
            f"The pitch of the array is {known[0]:.4g} pixels along x but {known[1]:.4g} along y "
            f"({pitch_um / known[0]:.4g} and {pitch_um / known[1]:.4g} µm per pixel); they must agree within "
            f"{_TOLERANCE:.0%}. Are the image's pixels square, and are these the coordinates of this array?"
        )
    if mpp is None and len(known) < 2:
        raise ScaleError(
            "The spots lie in one row or column, so the pitch gives no scale. Pass `mpp=`, in µm per pixel."
        )
    if not known:
        return agreed({"`mpp`": float(mpp)} | stated, what="the image")[0]  # type: ignore[arg-type]
    fitted = pitch_um / float(np.mean(known))
    if mpp is not None and abs(mpp - fitted) > _TOLERANCE * fitted:
        raise ScaleError(
            f"`mpp` is {mpp:.4g} µm per pixel, but the pitch of {np.mean(known):.4g} pixels for {pitch_um:g} µm gives "
            f"{fitted:.4g}. Leave out `mpp` to use the pitch, correct `pitch_um`, or pass `coordinate_scale=` when the "
            "image was resized after spot detection."
        )
    if mpp is None:
        return agreed({"the pitch of the array": fitted} | stated, what="the image")[0]
    # What the file states is settled by two who agree.
    return float(mpp)


def _is_staggered(places: pd.DataFrame) -> bool:
    """Whether spots lie on every other column of a row, shifted by one from row to row ("diamond" pattern)."""
    parity = (places["x"] + places["y"]) % 2
    columns, rows = places["x"].nunique(), places["y"].nunique()
    return min(columns, rows) >= _MIN_STAGGERED and parity.nunique() == 1


def _pitch_px(array: np.ndarray, pixel: np.ndarray, axis: str) -> float | None:
    """Pixels per unit of the array along one axis; None where all spots share one position."""
    # Adjusted coordinates scatter by a fraction of the pitch; below one unit of spread a slope means nothing.
    if np.ptp(array) < 0.9:
        return None
    from scipy.stats import theilslopes

    slope, intercept, *_ = theilslopes(pixel, array)
    residual = np.median(np.abs(pixel - slope * array - intercept))
    if not residual <= _MAX_RESIDUAL * abs(slope):
        raise ScaleError(
            f"`pixel_{axis}` does not follow the array coordinate along {axis}: the spots lie {residual:.4g} pixels "
            f"(median) off a line of {abs(slope):.4g} pixels per unit. Are x and y swapped, or the image turned?"
        )
    return abs(float(slope))


def _read_labels(annotations: str | PathLike[str] | pd.DataFrame, ids: pd.Index) -> pd.DataFrame:
    """Column `label` for every spot, in the order of `ids`."""
    frame = annotations
    if not isinstance(frame, pd.DataFrame):
        frame = _read_table(_existing(frame, "annotations"))
        if not {"x", "y"} <= set(frame.columns):
            frame = frame.set_index(frame.columns[0])
    if _LABEL not in frame.columns:
        raise DataError(f"`annotations` has no column {_LABEL!r}; found: {listed(frame.columns)}.")
    frame = frame.dropna(subset=_LABEL).astype({_LABEL: str})
    labels = pd.Series(frame[_LABEL].to_numpy(), index=frame.index.astype(str))
    if not labels.index.isin(ids).any() and {"x", "y"} <= set(frame.columns):
        frame = frame.dropna(subset=["x", "y"])
        labels = pd.Series(frame[_LABEL].to_numpy(), index=_spot_index(frame[["x", "y"]].round().astype(int)))
    shared = labels[labels.index.isin(ids)]
    if shared.empty:
        raise DataError(
            f"`annotations` names no spot of the section: its spots are {listed(labels.index, 3)}, the section has "
            f"{listed(ids, 3)}. Give them as `x` and `y` columns or as the index."
        )
    if (twice := shared.index.duplicated()).any():
        raise DataError(f"`annotations` labels spot(s) {listed(shared.index[twice].unique())} more than once.")
    return pd.DataFrame({_LABEL: pd.Categorical(shared.reindex(ids))}, index=ids)
