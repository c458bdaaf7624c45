"""Read Xenium runs with their H&E, pooled into squares."""

from __future__ import annotations

import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from sealst._core.space.geometry import TOLERANCE, agreed, apply_affine, similarity_scale
from sealst._core.space.pooling import SquareGrid
from sealst._errors import DataError, ScaleError
from sealst._files import expanded, read_json, visible
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import record
from sealst._section.arrays import from_arrays
from sealst._section.cells import add_cells, add_nuclei
from sealst._section.pyramid import SlideImage
from sealst._validate import as_numbers, check_choice, check_fraction, check_positive, listed, section_name
from sealst.io._images.files import open_image
from sealst.io._xenium.pooling import (
    DIRECTION,
    Frame,
    Pooled,
    find_file,
    outlined_cells,
    outlined_nuclei,
    pool_cells,
    pool_transcripts,
    read_cells,
    tally_text,
)

_MANIFEST = "experiment.xenium"
#: the matrix in what Xenium Explorer exports
_EXPORTED = "matrix.csv"
_IMAGE = re.compile(r"he_(unaligned_)?image\.(ome\.)?tiff?$", flags=re.IGNORECASE)
_ALIGNMENT = re.compile(r"he_(unaligned_)?imagealignment\.csv$", flags=re.IGNORECASE)


def recognise(path: Path) -> bool:
    """Whether a path is a Xenium output folder, by the names of its files."""
    return path.name.endswith(_MANIFEST) or any(name.endswith(_MANIFEST) for name in visible(path))


def read_xenium(
    path: str | PathLike[str],
    image: str | PathLike[str] | SlideImage | np.ndarray | None = None,
    alignment: str | PathLike[str] | np.ndarray | None = None,
    *,
    source: Literal["transcripts", "cells"] = "transcripts",
    pool_um: float = 100.0,
    min_qv: float = 20.0,
    min_counts: int = 1,
    max_outside: float = 0.5,
    cells: bool = False,
    nuclei: bool = False,
    section: str | None = None,
    patient: str | None = None,
    organ: str = "unknown",
    mpp: float | None = None,
) -> SpatialData:
    """Read a Xenium run with its H&E, pooled into squares of the H&E.

    The squares tile the H&E image from its top left corner, whatever the rotation or mirroring between the two images,
    so that a square is what an upright crop of the same side shows; a square with its centre beyond the right or bottom
    edge is left out. Transcripts are streamed: memory follows the number
    of squares and genes, not of transcripts.

    Parameters
    ----------
    path
        Output folder of the Xenium analyzer (versions 1 to 3), with ``experiment.xenium``; names may have the prefix of
        a download.
    image
        H&E of the same section; by default the only ``*he_image.ome.tif`` in the folder.
    alignment
        Affine from pixels of the H&E to pixels of the morphology image, 3 x 3: the csv file that Xenium Explorer
        exports (``matrix.csv``, its folder ``*_alignment_files`` or the zip of it), or an array. By default the only
        ``*he_imagealignment.csv`` or ``*_alignment_files`` beside the image. ``"identity"`` where the image lies in the
        frame of the morphology image already.
    source
        ``"transcripts"`` pools every transcript where it lies; ``"cells"`` sums the cell-by-gene matrix over the cells
        with their centroid in a square.
    pool_um
        Side of a square in µm.
    min_qv
        Lowest quality value (Phred) of a transcript. The cell-by-gene matrix holds those of 20 and above.
    min_counts
        Fewest counts of a square that is kept.
    max_outside
        Largest share of transcripts (or cells) that may lie outside the image before the call refuses.
    cells
        Whether to read the cells, too: outlines (``cell_boundaries``) and the cell-by-gene matrix.
    nuclei
        Whether to read the outlines of the nuclei, too (``nucleus_boundaries``).
    section, patient, organ
        Written to ``.obs``. `section` defaults to the name of the region in ``experiment.xenium``, `patient` to the
        name of the section.
    mpp
        µm per pixel of the H&E, to compare: the value used is that of the alignment. It settles the matter where the
        image file states another one.

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`, with squares ``"<section>_spots"``, and in ``tables["table"]``

    - ``.obs["n_transcripts"]``: int64, counts of genes in the square
    - ``.obs["n_cells"]``: int64, cells with their centroid in the square, where the folder has a cells file
    - ``.obs["array_row"]``, ``.obs["array_col"]``: int64, row and column of the square, from the image's top left
    - ``.uns["sealst"]["read_xenium"]``: scale, alignment, options, and how many transcripts were left out and why

    and with `cells` outlines ``shapes["<section>_cells"]`` (index = cell ids) in pixels of the H&E, and
    ``tables["<section>_cells_table"]``, a row a cell that has both outline and counts: raw counts in ``.X``, centres in
    ``.obsm["spatial"]``, ``.obs["cell_id"]``; cells beside the picture are kept. `sealst.tl.embed` and
    `sealst.tl.predict` take them as ``at="<section>_cells"``. With `nuclei` there are ``shapes["<section>_nuclei"]``,
    one shape a cell (several nuclei are joined) under the id of the cell, for ``at="<section>_nuclei"``.

    Raises
    ------
    DataError
        When a file is absent, damaged or lacks a column, or nothing is left to pool.
    ScaleError
        When the alignment is not a similarity (within 1 %), contradicts another scale by more than 5 %, is given in the
        wrong direction or puts most transcripts outside the image.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_xenium(
    ...     "outs", "run_he_image.ome.tif", "run_he_imagealignment.csv", patient="p1", organ="breast"
    ... )  # doctest: +SKIP

    References
    ----------
    Janesick et al., High resolution mapping of the tumor microenvironment using integrated single-cell, spatial and in
    situ analysis, Nature Communications 14, 8353 (2023).
    """
    check_choice("source", source, ("transcripts", "cells"))
    check_positive("pool_um", pool_um)
    check_positive("min_counts", min_counts)
    check_fraction("max_outside", max_outside)
    if mpp is not None:
        check_positive("mpp", mpp)
    if source == "cells" and min_qv != 20:
        raise DataError(
            f"`min_qv` is {min_qv:g}, but the cell-by-gene matrix was counted at 20. Use `source='transcripts'`."
        )
    folder = expanded(path)
    folder = folder.parent if folder.name.endswith(_MANIFEST) else folder
    manifest = find_file(folder, [_MANIFEST])
    if manifest is None:
        raise DataError(f"No {_MANIFEST} in {str(folder.absolute())!r}; `path` must be the output folder of a run.")
    facts = read_json(manifest, kind=DataError)
    size = facts.get("pixel_size") if isinstance(facts, dict) else None
    if not isinstance(size, int | float) or not 0 < size < 1e6:
        raise ScaleError(
            f"{_MANIFEST} has no usable 'pixel_size' (found {size!r}), so positions cannot be turned into pixels. "
            "Restore the file; the instrument's morphology image has 0.2125 µm per pixel."
        )
    pixel_um, region = float(size), str(facts.get("region_name") or folder.absolute().name)
    picture, file = _find_picture(folder, image)
    matrix = _read_alignment(folder, alignment, file)
    scale, scale_source = _resolve_mpp(matrix, pixel_um, picture, mpp)
    height, width = picture.shape[:2]
    per_um = np.diag([1 / pixel_um, 1 / pixel_um, 1.0])
    frame = Frame(SquareGrid(pool_um / scale, width, height), np.linalg.inv(matrix) @ per_um, matrix @ per_um)
    outlined = outlined_cells(folder, frame) if cells else None
    of_nuclei = outlined_nuclei(folder, frame) if nuclei else None
    if source == "cells":
        pooled = pool_cells(folder, frame, max_outside=max_outside)
    else:
        pooled = pool_transcripts(folder, frame, min_qv=min_qv, max_outside=max_outside)
    pooled, obs = _drop_sparse(folder, frame, pooled, min_counts)
    positions = frame.grid.positions(pooled.squares)
    sdata = from_arrays(
        picture,
        pooled.counts,
        frame.grid.centres(pooled.squares),
        genes=list(pooled.var.index),
        var=pooled.var,
        mpp=scale,
        spot_um=pool_um,
        section=section_name(region) if section is None else section,
        spot_ids=[f"r{row}c{col}" for row, col in positions],
        patient=patient,
        organ=organ,
        technology="Xenium",
        array=positions,
        obs=obs,
        spot_shape="square",
    )
    entry: dict[str, Any] = {"source": source, "pool_um": float(pool_um), "mpp": scale, "mpp_source": scale_source}
    entry |= {"min_qv": float(min_qv), "min_counts": int(min_counts), "pixel_size": pixel_um, "alignment": matrix}
    if outlined is not None:
        own = {"mpp": scale, "mpp_source": scale_source, "pixel_size": pixel_um, "alignment": matrix}
        add_cells(sdata, *outlined, call="read_xenium", entry=own)
    if of_nuclei is not None:
        add_nuclei(sdata, of_nuclei)
    table, tally = sdata.tables[Keys.TABLE], pooled.tally
    record(table, "read_xenium", entry | tally)
    section = table.obs[Keys.SECTION].iloc[0]
    logger.info(
        f"{section}: {table.n_obs} squares of {pool_um:g} µm, {table.n_vars} genes, {scale:.4g} µm per pixel "
        f"({tally_text(tally)})"
    )
    if lost := tally["without_position"]:
        warn(f"{section}: {lost} rows have no position and were left out; is the file damaged?")
    return sdata


def _find_picture(
    folder: Path, image: str | PathLike[str] | SlideImage | np.ndarray | None
) -> tuple[SlideImage | np.ndarray, Path | None]:
    if isinstance(image, np.ndarray):
        return image, None
    if isinstance(image, SlideImage):
        return image, Path(image.path) if image.path else None
    if image is None:
        found = [p for name, p in visible(folder).items() if _IMAGE.search(name)]
        if len(found) != 1:
            raise DataError(
                f"Expected one H&E image '*he_image.ome.tif' in {str(folder)!r}, found "
                f"{listed(p.name for p in found)}. Name it with `image=`: "
                "the instrument does not write it, it is often stored elsewhere."
            )
        image = found[0]
    return open_image(image), Path(image)


def _read_alignment(folder: Path, alignment: Any, image: Path | None) -> np.ndarray:
    """3 x 3 affine from pixels of the H&E to pixels of the morphology image."""
    if isinstance(alignment, str) and alignment == "identity":
        return np.eye(3)
    if alignment is not None and not isinstance(alignment, str | PathLike):
        return _checked(as_numbers("alignment", alignment), "`alignment`")
    path = _find_alignment(folder, image) if alignment is None else expanded(alignment)
    if path.is_dir() and (path / _EXPORTED).is_file():
        path = path / _EXPORTED
    if not path.is_file():
        raise DataError(f"`alignment`: no file at {str(path)!r} (looked for {str(path.absolute())!r}).")
    text = _alignment_text(path).strip()
    try:
        matrix = np.array([[float(v) for v in line.split(",")] for line in text.splitlines()])
    except ValueError as error:
        raise DataError(
            f"{path.name} is not an alignment: expected 3 lines of 3 numbers with commas and without a header, "
            f"but it begins {text.split(chr(10))[0][:80]!r}. In Xenium Explorer, export the alignment matrix, not the "
            "keypoints."
        ) from error
    return _checked(matrix, path.name)


def _alignment_text(path: Path) -> str:
    if path.suffix.lower() != ".zip":
        return path.read_text(encoding="utf-8-sig", errors="replace")
    try:
        with zipfile.ZipFile(path) as archive:
            inner = [name for name in archive.namelist() if Path(name).name == _EXPORTED]
            if len(inner) == 1:
                return archive.read(inner[0]).decode("utf-8-sig", errors="replace")
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path.name} could not be read as a zip: {error}. Copy it again.") from error
    raise DataError(
        f"{path.name} holds {len(inner)} files {_EXPORTED!r}, not one; in Xenium Explorer, export it again."
    )


def _find_alignment(folder: Path, image: Path | None) -> Path:
    if image is not None:
        # How the analyzer's public data are named: x_he_image.ome.tif and x_he_imagealignment.csv; and what Xenium
        # Explorer exports.
        stem = re.sub(r"(\.ome)?\.tiff?$", "", image.name, flags=re.IGNORECASE)
        for beside in (image.with_name(f"{stem}alignment.csv"), image.with_name(f"{stem}_alignment_files") / _EXPORTED):
            if beside.is_file():
                return beside
    folders = {folder.absolute(), *([image.absolute().parent] if image is not None else [])}
    held = [(name, path) for place in folders for name, path in visible(place).items()]
    found = sorted(path for name, path in held if _ALIGNMENT.search(name))
    exported = [path / _EXPORTED for name, path in held if name.endswith("_alignment_files")]
    found = found or sorted(path for path in exported if path.is_file())
    if len(found) != 1:
        names = [p.parent.name if p.name == _EXPORTED else p.name for p in found]
        raise DataError(
            "Expected one alignment '*he_imagealignment.csv' (or folder '*_alignment_files') beside the image, found "
            f"{listed(names)}. Name it with `alignment=`; if the H&E lies in the frame of the morphology image "
            "already, say so with `alignment='identity'`."
        )
    return found[0]


def _checked(matrix: np.ndarray, name: str) -> np.ndarray:
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise DataError(f"{name} must be a 3 x 3 matrix of finite numbers, found shape {matrix.shape}.")
    if not np.allclose(matrix[2], [0, 0, 1], rtol=0, atol=1e-9):
        raise DataError(f"{name} must be an affine with a last row of 0, 0, 1, found {matrix[2].tolist()}.")
    if similarity_scale(matrix) is None:
        large, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
        raise ScaleError(
            f"{name} stretches the image by {large:.4g} in one direction and {small:.4g} in the other; they must agree "
            "within 1 % (rotation and mirroring are fine). Align again without shear, or resample the image first."
        )
    return matrix


def _resolve_mpp(
    matrix: np.ndarray, pixel_um: float, picture: SlideImage | np.ndarray, mpp: float | None
) -> tuple[float, str]:
    """µm per pixel of the H&E from the alignment; refuses contradictions."""
    ratio = similarity_scale(matrix) or 1.0
    own, turned = pixel_um * ratio, pixel_um / ratio
    sources = {"the alignment": own} | ({} if mpp is None else {"`mpp`": float(mpp)})
    stated = picture.mpp if isinstance(picture, SlideImage) else None
    if stated is not None and mpp is not None and _differ(stated, own) and not _differ(mpp, own):
        # Scanners and converters often write a wrong value; the caller has confirmed that of the alignment.
        warn(f"The image file states {stated:.4g} µm per pixel, the alignment and `mpp` say {own:.4g}, which is used.")
    elif stated is not None:
        sources["the image file"] = float(stated)
    try:
        value, name = agreed(sources, what="the H&E image")
    except ScaleError as error:
        hint = f"If the alignment is right and the file's value is not, pass `mpp={own:.4g}`."
        if mpp is not None and _differ(mpp, own):
            hint = "Leave out `mpp` to use the alignment, or pass the alignment of this image."
        if any(_differ(v, own) and not _differ(v, turned) for v in sources.values()):
            hint = (
                f"The inverse of the alignment would give {turned:.4g}: is it given in the wrong direction? {DIRECTION}"
            )
        raise ScaleError(f"{error} {hint}") from error
    return value, name.removeprefix("the ")


def _differ(value: float, other: float) -> bool:
    return abs(value - other) > TOLERANCE * other


def _drop_sparse(folder: Path, frame: Frame, pooled: Pooled, min_counts: int) -> tuple[Pooled, pd.DataFrame]:
    """Squares with enough counts, and what is known of each."""
    total = np.asarray(pooled.counts.sum(axis=1)).ravel().astype(np.int64)
    # Less than half of a square with its centre beyond the edge is in the picture: it has no usable crop.
    inside = frame.grid.inside(frame.grid.centres(pooled.squares))
    keep = inside & (total >= min_counts)
    if not keep.any():
        raise DataError(
            f"No square within the image has {min_counts} counts (the fullest {total[inside].max(initial=0)}); lower "
            "`min_counts`, or use smaller squares with `pool_um=`."
        )
    squares = pooled.squares[keep]
    obs = pd.DataFrame({"n_transcripts": total[keep]})
    if (cells := read_cells(folder)) is not None:
        located = frame.grid.locate(apply_affine(frame.to_image, cells.to_numpy(dtype=float)))
        n_rows, n_cols = frame.grid.shape
        obs["n_cells"] = np.bincount(located[located >= 0], minlength=n_rows * n_cols)[squares]
    tally = {"beyond_edge": int(total[~inside].sum()), "squares_below_min_counts": int((inside & ~keep).sum())}
    return Pooled(squares, pooled.counts[keep], pooled.var, pooled.tally | tally), obs
