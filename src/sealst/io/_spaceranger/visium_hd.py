"""Read Visium HD sections from the folder that Space Ranger writes."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from spatialdata import SpatialData

from sealst._core.space.lattice import ArrayFit
from sealst._core.space.pooling import block_centres, mean_by_bin, merge_bins, sum_rows
from sealst._docs import documented
from sealst._errors import DataError, ScaleError
from sealst._files import visible
from sealst._keys import Keys
from sealst._section import record
from sealst._section.arrays import from_arrays
from sealst._section.cells import add_cells, add_nuclei
from sealst._section.pyramid import SlideImage
from sealst._validate import check_choice, listed, section_name
from sealst.io._spaceranger.folders import BINS, KINDS, Outs, bin_folders, prefixes, starting_folder
from sealst.io._spaceranger.picture import check_picture, choose_picture, fit_scale
from sealst.io._spaceranger.positions import Run, pixels, read_run
from sealst.io._spaceranger.segmented import is_segmented, read_cells, read_nuclei, read_without_bins, segmented_mpp

#: side of the smallest bins in µm
_FINEST = 2
# Registration to the microscope's picture bends the array by a few µm; a wrong position is farther off.
_TOLERANCE_UM = 50.0
_BARCODE = re.compile(r"^s_(\d{3})um_(\d{5})_(\d{5})")
_CHECKED = 2000


def recognise(path: Path) -> bool:
    """Whether a folder looks like a Visium HD section of Space Ranger, by names of files alone."""
    return path.is_dir() and any(bin_folders(p) or is_segmented(p) for p in (path, path / "outs"))


@documented
def read_visium_hd(
    path: str | PathLike[str],
    image: str | PathLike[str] | np.ndarray | SlideImage | None = None,
    *,
    bin_um: int = 16,
    section: str | None = None,
    patient: str | None = None,
    organ: str = "unknown",
    mpp: float | None = None,
    counts: Literal["filtered", "raw"] = "filtered",
    in_tissue: bool = True,
    coordinate_scale: float = 1.0,
    cells: bool = False,
    nuclei: bool = False,
) -> SpatialData:
    """Read a Visium HD section as square bins of any even size.

    The largest bins that Space Ranger wrote and that divide `bin_um` are read; where they are smaller than `bin_um`,
    blocks of them are summed, starting at row 0 and column 0 as Space Ranger's own larger bins do. The centre of a
    merged bin is the centre of the whole block, also where only some of its bins are in tissue.

    The physical scale comes from the lattice of the bins; it must agree within 5 % with `mpp`, with what the image file
    states, and with ``microns_per_pixel`` and ``spot_diameter_fullres`` of Space Ranger.

    Parameters
    ----------
    path
        Folder ``outs``, its parent, ``binned_outputs``, one folder of bins (``square_008um``), or with `cells`
        ``segmented_outputs``.
    %(spaceranger.image)s
    bin_um
        Side of the bins in µm, a multiple of 2.
    section
        Name of the section; default the name of the folder.
    patient, organ
        Written to ``.obs``. `patient` defaults to the name of the section.
    mpp
        µm per pixel of the image that is used. By default from the lattice of the bins.
    counts
        ``"filtered"``, bins under tissue, or ``"raw"``, all bins.
    in_tissue
        Whether to leave out bins that are not ``in_tissue`` by the table of positions, before merging.
    %(spaceranger.coordinate_scale)s
    cells
        Whether to read the cells that Space Ranger 4 segmented, too: the folder ``segmented_outputs`` beside the bins,
        with ``cell_segmentations.geojson`` and ``filtered_feature_cell_matrix.h5``. That folder may be all there is.
        Then the squares hold the sums of the cells with their centre inside, as transcripts between cells are not in
        it, and the scale comes from `mpp` or Space Ranger's ``microns_per_pixel``.
    nuclei
        Whether to read the outlines of the nuclei, too: ``nucleus_segmentations.geojson`` in the same folder.

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`, with image ``"<section>_he"``, squares of `bin_um`
    ``"<section>_spots"`` (index = barcodes as Space Ranger forms them, ``s_016um_00012_00034-1``), and in
    ``tables["table"]``

    - ``.X``: counts of genes; other features are left out, genes with one symbol are summed
    - ``.var["gene_ids"]``: str, Ensembl id (of the first gene with the symbol)
    - ``.obs["array_row"]``, ``.obs["array_col"]``: int, in bins of `bin_um`
    - ``.obs["n_bins"]``: int, bins of Space Ranger that were summed; ``.obs["in_tissue"]``: bool, whether any is
    - ``.uns["sealst"]["read_visium_hd"]``: sizes of bins, the scale, which picture, where they came from, and how many
      rows were dropped

    Without bins `.obs` has ``n_cells`` (int) for ``n_bins`` and ``in_tissue``, rows and columns are counted from the
    picture's top left, and ids are ``r12c34``.

    With `cells` there are outlines ``shapes["<section>_cells"]`` (index = ``cellid_000000001-1``) in pixels of the
    picture, and ``tables["<section>_cells_table"]``, a row a cell that has both outline and counts: raw counts in
    ``.X``, centres in ``.obsm["spatial"]``, ``.obs["cell_id"]``. `sealst.tl.embed` and `sealst.tl.predict` take them as
    ``at="<section>_cells"``. With `nuclei` there are ``shapes["<section>_nuclei"]``, one shape a cell under the id of
    the cell, for ``at="<section>_nuclei"``.

    Raises
    ------
    DataError
        When files are missing, damaged or of different runs, no bins divide `bin_um`, or barcodes occur twice.
    ScaleError
        When the scale is unknown or contradictory, or the image is not the one the coordinates belong to.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_visium_hd("run/outs", "slide.btf", bin_um=32, section="P1_hd")  # doctest: +SKIP

    References
    ----------
    10x Genomics, Space Ranger documentation, "Visium HD outputs".
    """
    check_choice("counts", counts, KINDS)
    if not isinstance(bin_um, int | np.integer) or bin_um < _FINEST or bin_um % _FINEST:
        raise DataError(f"`bin_um` must be a positive multiple of {_FINEST} (µm), found {bin_um!r}.")
    root, folders = _bins_at(start := starting_folder(path).absolute())
    if cells and not folders and is_segmented(root):
        if counts != "filtered":
            raise DataError(f"`counts` is {counts!r}, but without bins the filtered cells are read; leave it out.")
        return read_without_bins(
            root, image, bin_um=bin_um, section=section, patient=patient, organ=organ, mpp=mpp,
            coordinate_scale=coordinate_scale, nuclei=nuclei,
        )  # fmt: skip
    outs, source_um = _choose_bins(start, root, folders, bin_um, counts)
    section = section or section_name(Outs(outs.others[0]).sample)
    run = read_run(outs, kind=counts, in_tissue=in_tissue, section=section)
    # Rows and columns of the positions must be those that the barcodes spell out.
    some = run.joined.iloc[:: max(1, len(run.joined) // _CHECKED)]
    spelt = [_BARCODE.match(b) for b in some.index]
    at = some[[Keys.ARRAY_ROW, Keys.ARRAY_COL]].to_numpy()
    wrong = [
        f"{m.string} at row {row}, column {col}"
        for m, (row, col) in zip(spelt, at, strict=True)
        if m and (int(m[1]), int(m[2]), int(m[3])) != (source_um, row, col)
    ]
    if wrong:
        raise DataError(
            f"{section}: barcodes of {source_um} µm bins contradict the table of positions, e.g. {wrong[0]}. Take all "
            "files from one folder of bins, as Space Ranger wrote them."
        )
    picture = choose_picture(outs, image, factors=run.factors, coordinate_scale=coordinate_scale, section=section)
    if (stated := run.factors.get("bin_size_um", source_um)) != source_um:
        raise DataError(f"{section}: scale factors for bins of {stated:g} µm in a folder of {source_um} µm.")
    nominal = {}
    if "microns_per_pixel" in run.factors:
        nominal["microns_per_pixel"] = run.factors["microns_per_pixel"] / picture.scale
    if "spot_diameter_fullres" in run.factors:
        nominal["spot_diameter_fullres"] = source_um / run.factors["spot_diameter_fullres"] / picture.scale
    beside = segmented_mpp(outs.others[0], cells=cells) if cells or nuclei else None
    if beside is not None:
        nominal["microns_per_pixel of the cells"] = beside / picture.scale
    fit, scale, source = fit_scale(
        run, picture, float(source_um), tolerance_um=_TOLERANCE_UM, mpp=mpp, nominal=nominal, section=section
    )
    segmented = read_cells(outs.others[0], picture.scale) if cells else None
    outlined = read_nuclei(outs.others[0], picture.scale) if nuclei else None
    x, xy, array, obs = _merge(run, fit, picture.scale, source_um, bin_um)
    check_picture(picture, xy, mpp=scale, section=section)
    sdata = from_arrays(
        picture.image,
        x,
        xy,
        genes=list(run.counts.var.index),
        mpp=scale,
        spot_um=bin_um,
        section=section,
        spot_ids=list(obs.index),
        patient=patient,
        organ=organ,
        technology="Visium HD",
        array=array,
        obs=obs,
        var=run.counts.var,
        spot_shape="square",
    )
    entry = run.provenance | picture.provenance | {"mpp": scale, "mpp_source": source}
    record(sdata.tables[Keys.TABLE], "read_visium_hd", entry | {"bin_um": int(bin_um), "source_bin_um": source_um})
    if segmented is not None:
        outlines, own = segmented
        facts = picture.provenance | {"mpp": scale, "mpp_source": source, "counts": own.path.name}
        add_cells(sdata, outlines, own.x, own.barcodes, own.var, call="read_visium_hd", entry=facts)
    if outlined is not None:
        add_nuclei(sdata, outlined)
    return sdata


def _bins_at(start: Path) -> tuple[Path, dict[int, Path]]:
    """Folder that holds those of bins, or of cells where there are none, and the folders of bins by side in µm."""
    if BINS.match(start.name):
        return _root(start.parent), {int(start.name[7:10]): start}
    places = (start, start / "outs")
    for place in places:
        if found := bin_folders(place):
            return _root(place), found
    return next((place for place in places if is_segmented(place)), start), {}


def _choose_bins(start: Path, root: Path, found: dict[int, Path], bin_um: int, kind: str) -> tuple[Outs, int]:
    """Folder of the largest bins that divide `bin_um`, and their side in µm."""
    if not found and is_segmented(root):
        raise DataError(
            f"{str(start)!r} holds segmented outputs of Visium HD, counts of cells, and no bins. Pass `cells=True` to "
            "read the cells alone; or add the folder 'binned_outputs' of the same run (in a download an archive of its "
            "own), and give the folder of both."
        )
    if not found:
        hint = "It holds Visium spots: use `sl.io.read_visium`." if prefixes(start) or prefixes(start / "outs") else ""
        raise DataError(
            f"No folder of bins ('binned_outputs/square_008um') or of cells ('segmented_outputs') in {str(start)!r}; "
            f"it holds {listed(visible(start))}. Give the `outs` folder of Space Ranger. {hint}".rstrip()
        )
    usable = {um: folder for um, folder in found.items() if prefixes(folder, [kind])}
    if not (dividing := [um for um in usable if bin_um % um == 0]):
        raise DataError(
            f"No bins with '{kind}_feature_bc_matrix.h5' divide `bin_um` {bin_um}: there are {listed(sorted(usable))} "
            f"µm (folders: {listed(sorted(found))}). Choose a multiple of one of them, or copy 'square_002um' too."
        )
    folder = usable[max(dividing)]
    return Outs(folder, prefixes(folder, [kind])[0], (root,)), max(dividing)


def _root(folder: Path) -> Path:
    return folder.parent if folder.name.endswith("binned_outputs") else folder


def _merge(
    run: Run, fit: ArrayFit | None, scale: float, source_um: int, bin_um: int
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray, pd.DataFrame]:
    """Counts, centres, places on the array and `.obs` of the bins that are asked for."""
    places, factor = run.joined, bin_um // source_um
    xy, array = pixels(places) * scale, places[[Keys.ARRAY_ROW, Keys.ARRAY_COL]].to_numpy()
    tissue = places["in_tissue"].to_numpy() == 1
    if factor == 1:
        obs = pd.DataFrame({"n_bins": np.ones(len(places), np.int32), "in_tissue": tissue}, index=places.index)
        return run.x, xy, array, obs
    if fit is None:
        raise ScaleError(
            f"The bins lie in one line, so the centres of bins of {bin_um} µm are unknown; read smaller ones."
        )
    bins = merge_bins(array[:, 0], array[:, 1], factor)
    # What registration bent is the same for all bins of a block; the fit puts it at the block's own centre.
    bent = mean_by_bin(xy - fit(array[:, ::-1] * float(source_um)), bins)
    centres = fit(block_centres(bins, factor) * source_um) + bent
    names = [f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(bins.row, bins.col, strict=True)]
    obs = pd.DataFrame(
        {"n_bins": bins.n.astype(np.int32), "in_tissue": np.bincount(bins.member, weights=tissue) > 0}, index=names
    )
    return sum_rows(run.x, bins.member, len(bins.n)), centres, np.column_stack([bins.row, bins.col]), obs
