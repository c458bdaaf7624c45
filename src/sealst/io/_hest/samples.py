"""Read samples of HEST-1k from their folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst._core.genes.names import is_control
from sealst._core.space.geometry import TOLERANCE, agreed
from sealst._core.space.lattice import pitch
from sealst._core.space.pooling import sum_columns
from sealst._errors import DataError, ScaleError
from sealst._files import expanded, read_json, visible
from sealst._given.schema import Text, check_type
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import layer_names, read_h5ad, record
from sealst._section.arrays import from_arrays
from sealst._section.pyramid import SlideImage
from sealst._validate import as_numbers, check_counts, check_key, check_positive, listed, section_name
from sealst.io._hest.donors import donor_of
from sealst.io._images.files import open_image

#: what of the metadata goes into the provenance
_KEPT = ("dataset_title", "species", "disease_state", "oncotree_code", "preservation_method", "pixel_size_um_embedded")
#: side of a patch in µm: 224 px at 0.5 µm per pixel
_PATCH_UM = 112.0
#: px by which a patch may lie off its place; corners are rounded to whole pixels
_ROUNDING = 2.0
#: what h5py, anndata, pandas and json raise for damaged files
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class _Array:
    """What one technology's spots look like in HEST-1k, in µm."""

    pitch: float
    spot: float
    shape: Literal["circle", "square"]
    #: whether the metadata's `inter_spot_dist` and `spot_diameter` describe the spots of the table; for Visium HD they
    #: describe the bins of the instrument, before pooling
    stated: bool = True


_ARRAYS = {
    "visium": _Array(100.0, 55.0, "circle"),
    "spatial transcriptomics": _Array(200.0, 100.0, "circle"),
    "visium hd": _Array(128.0, 128.0, "square", stated=False),
    "xenium": _Array(100.0, 100.0, "square"),
}


def recognise(path: Path) -> bool:
    """Whether a path is the folder of HEST-1k or one of its tables, by the names of its files."""
    if path.suffix == ".h5ad":
        return path.absolute().parent.name == "st"
    return path.is_dir() and any(name.endswith(".h5ad") for name in visible(path / "st"))


def read_hest(
    path: str | PathLike[str],
    sample_id: str | None = None,
    *,
    section: str | None = None,
    patient: str | None = None,
    organ: str | None = None,
    mpp: float | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
    layer: str | None = None,
    patches: bool = True,
) -> SpatialData:
    """Read a sample of HEST-1k: counts, slide, metadata.

    Spots come from the table, crops later from the slide (`sealst.pp.pair_crops`); the ready-made patches are compared
    but not used. The physical scale is that of the metadata (``pixel_size_um_estimated``), and the pitch of the spots
    must confirm it: Visium 100 µm, legacy Spatial Transcriptomics 200 µm or as stated, squares of Xenium 100 µm and of
    Visium HD 128 µm.

    Parameters
    ----------
    path
        Folder of the data set, with ``st``, ``wsis`` and ``metadata``; or one table in ``st``.
    sample_id
        Id of the sample, such as ``"TENX99"``; may be left out where the folder holds one sample.
    section, patient, organ
        Written to ``.obs``. `section` defaults to the id, `organ` to the metadata in lower case, and `patient` to
        ``"<title of the study>: <patient>"``: patients are numbered within a study, and where the metadata name none
        the whole study counts as one patient, so that splits stay leak-proof. Data sets of 10x Genomics, which number
        donors across titles, go by organ and number; samples that are known to be of one donor have one name.
    mpp
        µm per pixel of the slide, instead of the metadata's; the pitch of the spots must confirm it.
    pitch_um
        Distance of neighbouring spots in µm, instead of the technology's. For pooled squares also their side.
    spot_um
        Diameter of a spot, or side of a square, in µm, instead of the technology's.
    layer
        Layer with the raw counts; by default ``.X``.
    patches
        Whether to compare ``patches/<id>.h5``, where it exists, with the spots.

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`; spots are circles for Visium and legacy arrays and squares for Xenium
    and Visium HD. In ``tables["table"]``

    - ``.obs["in_patches"]``: bool, whether HEST-1k has a patch of the spot (those under tissue), where the file exists
    - ``.obs["array_row"]``, ``.obs["array_col"]``: numbers, where the table has them
    - ``.uns["sealst"]["read_hest"]``: scale, pitch, metadata and what was left out. Control probes are left out, genes
      that occur twice are summed.

    Raises
    ------
    DataError
        When the sample or its slide is absent, a file is damaged, the values are not raw counts, or patches and spots
        belong to different samples.
    ScaleError
        When the scale is unknown, or the pitch of the spots contradicts it by more than 5 %.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.io.read_hest("hest_data", "TENX99")  # doctest: +SKIP

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.
    """
    for name, value in (("mpp", mpp), ("pitch_um", pitch_um), ("spot_um", spot_um)):
        if value is not None:
            check_positive(name, value)
    sample = find_sample(path, sample_id)
    facts = read_facts(sample)
    table = read_table(sample)
    if layer is not None:
        where = f"the layers of {sample.table.name}"
        check_key(layer_names(table), layer, where=where, hint="Leave out `layer` for `.X`.")
    values = table.X if layer is None else table.layers[layer]
    if values is None:
        raise DataError(f"{sample.table.name} has no `.X`; name the layer with the raw counts with `layer=`.")
    check_counts(values, where=sample.table.name)
    names = [str(n) for n in table.var_names]
    is_gene = np.array([not is_control(n) for n in names], dtype=bool)
    genes = [n for n, g in zip(names, is_gene, strict=True) if g]
    if not genes:
        raise DataError(f"{sample.table.name} holds no genes; its {len(names)} features begin {listed(names[:3])}.")
    counts, first = sum_columns(values[:, is_gene], genes)
    var = table.var.loc[is_gene].iloc[first]
    tally = {"control_features": int((~is_gene).sum()), "genes_summed": len(genes) - len(first)}
    columns = {"gene_ids": var["gene_ids"].astype(str).to_numpy()} if "gene_ids" in var else {}
    var = pd.DataFrame(columns, index=pd.Index([genes[i] for i in first]))
    xy = np.asarray(table.obsm["spatial"], dtype=float)
    array = _array(facts, pitch_um, spot_um)
    picture = open_image(sample.slide)
    size = [facts.get(k) for k in ("fullres_px_height", "fullres_px_width")]
    stated = [v for v in size if isinstance(v, int | float) and v > 0]
    if len(stated) == 2 and any(abs(n - v) > 0.01 * v for n, v in zip(picture.shape, stated, strict=True)):
        raise ScaleError(
            f"{sample.slide.name} has {picture.shape[1]} x {picture.shape[0]} px, the metadata say {stated[1]:.0f} x "
            f"{stated[0]:.0f}: it is a resized copy or the slide of another sample. Download it again."
        )
    scale, entry = _resolve_mpp(facts, array, xy, picture, mpp)
    ids = [str(i) for i in table.obs_names]
    obs = pd.DataFrame(index=pd.Index(ids))
    if patches and sample.patches.is_file():
        obs["in_patches"], compared = in_patches(sample.patches, ids, xy, scale)
        tally |= compared
    patient = donor_of(sample.id, facts) if patient is None else patient
    sdata = from_arrays(
        picture,
        counts,
        xy,
        genes=list(var.index),
        var=var,
        mpp=scale,
        spot_um=array.spot,
        section=section_name(sample.id) if section is None else section,
        spot_ids=ids,
        patient=patient,
        organ=str(facts.get("organ", "unknown")).lower() if organ is None else organ,
        technology=str(facts.get("st_technology", "unknown")),
        array=_positions(table),
        obs=obs,
        spot_shape=array.shape,
    )
    entry |= {"sample_id": sample.id} | tally | {k: facts[k] for k in _KEPT if k in facts}
    record(sdata.tables[Keys.TABLE], "read_hest", entry)
    logger.info(f"{sample.id}: {len(ids)} spots, {len(var)} genes, {scale:.4g} µm per pixel; {tally}")
    return sdata


def _array(facts: dict[str, Any], pitch_um: float | None, spot_um: float | None) -> _Array:
    """Spots of the technology, corrected by the metadata and the caller."""
    technology = str(facts.get("st_technology", "")).lower()
    known = _ARRAYS.get(technology)
    if known is None:
        if pitch_um is None and spot_um is None:
            raise ScaleError(
                f"The technology of the sample is {technology or 'not stated'!r}, so the size of a spot is unknown "
                f"(known: {listed(_ARRAYS)}). Pass `spot_um=` (Visium 55, legacy ST 100) and `pitch_um=` (100, 200)."
            )
        # The pitch is not compared where it is not known.
        return _Array(pitch_um or np.nan, float(spot_um or pitch_um or 0), "circle")
    size = [facts.get(k) for k in ("inter_spot_dist", "spot_diameter")] if known.stated else [None, None]
    stated = [float(v) for v in size if isinstance(v, int | float) and v > 0]
    # Spots do not overlap: where the diameter is larger than the pitch, the two were exchanged.
    between, across = (max(stated), min(stated)) if len(stated) == 2 else (known.pitch, known.spot)
    if pitch_um is not None:
        between, across = pitch_um, pitch_um if known.shape == "square" else across
    return _Array(between, across if spot_um is None else spot_um, known.shape)


def _resolve_mpp(
    facts: dict[str, Any], array: _Array, xy: np.ndarray, picture: SlideImage, mpp: float | None
) -> tuple[float, dict[str, Any]]:
    """µm per pixel and where it comes from; refuses a scale that the pitch of the spots contradicts."""
    sources = {"`mpp`": mpp, "the metadata": facts.get("pixel_size_um_estimated")}
    named = {k: float(v) for k, v in sources.items() if isinstance(v, int | float) and v > 0}
    lattice = pitch(xy) if len(xy) > 1 and np.isfinite(array.pitch) else None
    by_pitch = (
        {} if lattice is None else {f"the pitch of {lattice:.4g} px for {array.pitch:g} µm": array.pitch / lattice}
    )
    by_file = {} if picture.mpp is None else {"the image file": picture.mpp}
    what, hint = "the slide", "Pass `mpp=`, in µm per pixel, or `pitch_um=`, the distance of neighbouring spots in µm."
    if lattice is None:
        value, source = agreed(named | by_file, what=what, hint=hint)
    else:
        first = dict(list(named.items())[:1])
        try:
            value, source = agreed(first | by_pitch, what=what, hint=hint)
        except ScaleError as error:
            used = next(iter(first.values()))
            raise ScaleError(
                f"{error} At {used:.4g} µm per pixel the spots are {used * lattice:.4g} µm apart, not {array.pitch:g}: "
                f"pass `pitch_um={used * lattice:.4g}` if that is how they lie (were pooled), or "
                f"`mpp={array.pitch / lattice:.4g}` if the scale is wrong."
            ) from error
        for name, other in (named | by_file).items():
            if abs(other - value) > TOLERANCE * value:
                warn(f"{name} states {other:.4g} µm per pixel; {source} and the pitch of the spots say {value:.4g}.")
    entry = {"mpp": value, "mpp_source": source.strip("`").removeprefix("the "), "spot_um": float(array.spot)}
    return value, entry | ({"pitch_px": lattice, "pitch_um": float(array.pitch)} if lattice is not None else {})


def _positions(table: AnnData) -> np.ndarray | None:
    columns = [Keys.ARRAY_ROW, Keys.ARRAY_COL]
    if not set(columns) <= set(table.obs.columns):
        return None
    values = table.obs[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(values).all():
        return None
    return values.astype(int) if (values == values.astype(int)).all() else values


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
    given = expanded(path)
    if given.suffix == ".h5ad":
        if sample_id not in (None, given.stem):
            raise DataError(f"`path` is the table of {given.stem!r}, but `sample_id` is {sample_id!r}; give only one.")
        given, sample_id = given.absolute().parent.parent, given.stem
    ids = [p.stem for p in visible(given / "st").values() if p.suffix == ".h5ad"]
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
        others = list(visible(given / "wsis"))
        raise DataError(
            f"The slide of {sample_id} is missing: no {str(slides[0])!r} (the folder holds {listed(others)}). Download "
            f"wsis/{sample_id}.tif; thumbnails and patches are no replacement for it."
        )
    return Sample(str(sample_id), given, slide)


def read_facts(sample: Sample) -> dict[str, Any]:
    """Metadata that are stated; from the table of all samples where the sample's own file is absent."""
    path = sample.root / "metadata" / f"{sample.id}.json"
    if path.is_file():
        facts = read_json(path, kind=DataError)
        check_type(dict[Text, Any], facts, where=f"metadata/{path.name}")
        return _known_facts(facts)
    tables = sorted(sample.root.glob("HEST_v*.csv"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.stem)])
    for table in reversed(tables):
        try:
            rows = pd.read_csv(table, dtype={"id": str})
            row = rows[rows["id"] == sample.id]
        except READ_ERRORS as error:
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
    # An infinite number is no statement either.
    empty = ("", "nan", "inf", "-inf", "none", "null")
    return {k: v for k, v in plain.items() if str(v).strip().lower() not in empty}


def read_table(sample: Sample) -> AnnData:
    """Table of a sample, with finite positions (x, y) in pixels of the slide in ``.obsm["spatial"]``."""
    name = sample.table.name
    try:
        with warnings.catch_warnings():
            # Names that occur twice are summed.
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            table = read_h5ad(sample.table)
    except READ_ERRORS as error:
        raise DataError(f"st/{name} could not be read, it is damaged or incomplete: {error}. Copy it again.") from error
    if "spatial" not in table.obsm:
        columns = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
        if not set(columns) <= set(table.obs.columns):
            raise DataError(
                f"st/{name} has no `.obsm['spatial']` (found {listed(table.obsm)}) and no columns {listed(columns)} in "
                "`.obs`, so the spots have no place on the slide."
            )
        table.obsm["spatial"] = table.obs[columns].to_numpy(dtype=float)
    xy = as_numbers("obsm['spatial']", table.obsm["spatial"])
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise DataError(f"st/{name}: `.obsm['spatial']` must be (spots, 2), found {xy.shape}.")
    lost = ~np.isfinite(xy).all(axis=1)
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
    try:
        with h5py.File(path) as file:
            barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in np.ravel(file["barcode"][:])]
            corners = np.asarray(file["coords"][:], dtype=float) if "coords" in file else None
    except READ_ERRORS as error:
        raise DataError(
            f"patches/{path.name} could not be read: {error}. Download it again, or pass `patches=False`."
        ) from error
    if corners is not None and corners.shape != (len(barcodes), 2):
        raise DataError(f"patches/{path.name} has {len(barcodes)} barcodes, but coords of shape {corners.shape}.")
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
