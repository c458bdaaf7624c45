"""Give an AnnData its picture: the table of an analysis that went on without one becomes a section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData, sanitize_table
from spatialdata.models import TableModel

from sealst import _section
from sealst._core.space.geometry import TOLERANCE, agreed
from sealst._core.space.lattice import KNOWN_ARRAYS, KnownArray, detect_grid, known_array, pitch
from sealst._core.sparse import check_table
from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError, ScaleError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section.arrays import from_arrays
from sealst._section.pyramid import SlideImage
from sealst._validate import (
    as_numbers,
    check_counts,
    check_gene_names,
    check_key,
    check_labels,
    check_positive,
    check_section,
    listed,
    patient_text,
    section_name,
)
from sealst.io._images.files import open_image
from sealst.io._spaceranger.picture import SMALL, Picture, check_content, check_picture, check_size

#: columns of `.obs` that name sections in the habit of sealst and of squidpy
_SECTIONS = (Keys.SECTION, "library_id")


@documented
def from_anndata(
    data: AnnData,
    image: str | PathLike[str] | np.ndarray | SlideImage | None = None,
    *,
    mpp: float | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
    layer: str | None = None,
    section: str | None = None,
    section_key: str | None = None,
    patient: str | None = None,
    organ: str | None = None,
    technology: str | None = None,
    spatial_key: str = Keys.SPATIAL,
    coordinate_scale: float | None = None,
    spot_shape: Literal["circle", "square"] = "circle",
) -> SpatialData:
    """Build a section from an AnnData and the picture that its coordinates belong to.

    All that the AnnData holds is kept under its names: ``.obs`` and ``.var`` with their indices, layers, ``.obsm``,
    ``.obsp``, ``.uns``, ``.raw``. The AnnData itself is left as it is, and pixels of a file stay on disk.

    What ``scanpy.read_visium`` and `squidpy.read.visium` leave in ``.uns["spatial"]`` is understood: scale factors and
    small pictures tell whether `image` is the full-resolution picture, the hires or the lowres one, and coordinates are
    brought to its pixels. The physical scale is `mpp`, follows from `pitch_um`, is stated by the file, or is that of a
    Visium array, which hexagonal spots of its proportions are; all that are known must agree within 5 %.

    Parameters
    ----------
    data
        Table of one section; rows are spots, ``.obsm[spatial_key]`` holds their centres as (x, y) in pixels.
    image
        H&E at full resolution: a file, a `SlideImage`, or uint8 (height, width, 3). Without it the small picture in
        ``.uns["spatial"]`` is used, with a warning, as its pixels are large.
    mpp
        µm per pixel of `image`.
    %(pitch_um)s
    spot_um
        Diameter of a spot (side of a square one) in µm; default that of the array where it is a known one, else
        ``spot_diameter_fullres`` of ``.uns["spatial"]``.
    layer
        Layer with the raw counts; None is ``.X``.
    section
        Name of the section, or with `section_key` the value that its rows have; default ``.obs["section"]``,
        ``.obs["library_id"]`` or the library of ``.uns["spatial"]``.
    section_key
        Name of the column in ``.obs`` that tells sections apart: the rows of `section` are taken.
    patient, organ, technology
        Written to ``.obs``; default what is there, else the name of the section for `patient`, the name of the array
        for `technology`, and ``"unknown"``.
    spatial_key
        Slot in ``.obsm`` with the centres.
    coordinate_scale
        Factor from the coordinates to pixels of `image`; default what ``.uns["spatial"]`` says, else 1.
    spot_shape
        ``"circle"``, or ``"square"`` for bins and pseudo-spots.

    Returns
    -------
    SpatialData as from `sealst.io.from_arrays`, with image ``"<section>_he"``, spots ``"<section>_spots"`` (index =
    ``obs_names``), and ``tables["table"]``: the AnnData, with

    - ``.X``: raw counts, CSR float32; where `layer` was given, ``.layers["X_given"]`` is what ``.X`` was
    - ``.obs``: columns for region, spot id, section, patient, organ, technology
    - ``.obsm["spatial"]``: centres in pixels of the image; ``.uns["spatial"]``: the picture and its scale factors
    - ``.uns["sealst"]["from_anndata"]``: the scale, where it came from, and which picture it is

    Raises
    ------
    DataError
        When the AnnData holds several sections, no raw counts, or names that occur twice.
    MissingKeyError
        When coordinates, layer or section are absent.
    ScaleError
        When the scale is unknown or contradictory, or the picture is not the one that the coordinates belong to.

    Examples
    --------
    >>> drawn = sl.datasets.synthetic(size_um=600, mpp=1.0, n_genes=144)
    >>> adata = drawn.tables["table"]
    >>> picture = drawn.images["P1_S1_he"]["scale0"]["image"].to_numpy().transpose(1, 2, 0)  # (y, x, 3)
    >>> sdata = sl.io.from_anndata(adata, picture, mpp=1.0, section="mine")
    >>> sdata.tables["table"].obs_names.equals(adata.obs_names)
    True
    """
    if not isinstance(data, AnnData):
        raise TypeError(
            f"Expected an AnnData, found {type(data).__name__}. A SpatialData goes to `sl.io.from_spatialdata`, a file "
            "to `sl.io.read(path)`."
        )
    check_labels(patient=patient, organ=organ, technology=technology)
    for argument, value in {
        "mpp": mpp, "pitch_um": pitch_um, "spot_um": spot_um, "coordinate_scale": coordinate_scale
    }.items():  # fmt: skip
        if value is not None:
            check_positive(argument, value)
    given = data if section_key is None else _rows_of(data, section, section_key)
    _refuse_several(given, section_key)
    library, held = _library(given, section)
    # A value of a column may be any text, and elements are called by it.
    name = (section_name(section) if section and section_key else section) or _named(given, section_key)
    name = name or section_name(library)
    check_section(name)
    table = given.to_memory() if given.isbacked else given.copy()
    check_table(table, where="`data`")
    _set_counts(table, layer)
    check_gene_names(list(table.var_names), where="`data.var_names`")
    if not table.obs_names.is_unique:
        raise DataError("Names of spots occur twice in `data.obs_names`; run `adata.obs_names_make_unique()`.")
    xy = _centres(table, spatial_key)
    picture = _picture(image, held, coordinate_scale, name)
    xy = xy * picture.scale
    stated = technology or _one_value(table, Keys.TECHNOLOGY)
    known = _Spots(xy, held.diameter and held.diameter * picture.scale, stated)
    scale, source = agreed(
        known.scales(mpp=mpp, pitch_um=pitch_um, picture=picture),
        what=f"section {name!r}",
        hint="Pass `mpp=`, in µm per pixel of `image`, or `pitch_um=` (Visium 100, legacy ST 200).",
    )
    check_picture(picture, xy, mpp=scale, section=name)
    array = known.array(scale)
    built = from_arrays(
        picture.image,
        sp.csr_matrix((table.n_obs, 0)),
        xy,
        genes=[],
        mpp=scale,
        spot_um=spot_um or known.spot_um(scale, array),
        section=name,
        spot_ids=[str(n) for n in table.obs_names],
        spot_shape=spot_shape,
    )
    facts = {
        Keys.SECTION: name,
        Keys.PATIENT: patient_text(patient) or (None if Keys.PATIENT in table.obs else name),
        Keys.ORGAN: organ,
        Keys.TECHNOLOGY: technology or (None if stated or array is None else array.name),
    }
    region_key, instance_key = _complete(table, facts)
    table.obsm[Keys.SPATIAL] = xy
    table.uns["spatial"] = built.tables[Keys.TABLE].uns["spatial"]
    entry = picture.provenance | {"mpp": scale, "mpp_source": source.strip("`"), "layer": layer or "X"}
    _section.record(table, "from_anndata", entry)
    built.tables[Keys.TABLE] = TableModel.parse(
        table, region=Keys.spots(name), region_key=region_key, instance_key=instance_key
    )
    logger.info(
        f"{name}: {table.n_obs} spots, {table.n_vars} genes, {scale:.4g} µm per pixel by {source.strip('`')}; "
        f"image: {picture.kind}"
    )
    return built


def read_h5ad_with_image(path: Path, **options: Any) -> SpatialData:
    """Section of a table in a file and its picture, for `sealst.io.read`."""
    return from_anndata(_section.read_h5ad(path), **options)


# -- which rows -------------------------------------------------------------------------------------------------------
def _rows_of(data: AnnData, section: str | None, section_key: str) -> AnnData:
    """Rows of one section, by a column that tells sections apart."""
    check_key(data.obs.columns, section_key, where="`data.obs`", hint="Name the column with `section_key=`.")
    column = data.obs[section_key].astype(str)
    names = list(column.unique())
    if section is None and len(names) > 1:
        raise DataError(
            f"`data.obs[{section_key!r}]` names {len(names)} sections: {listed(names)}. A picture belongs to one of "
            f"them: say which with `section=`, one call for each."
        )
    wanted = names[0] if section is None else section
    check_key(names, wanted, where=f"`data.obs[{section_key!r}]`", hint="Name one of them with `section=`.")
    return data[(column == wanted).to_numpy()]


def _refuse_several(data: AnnData, section_key: str | None) -> None:
    for column in _SECTIONS:
        if column in data.obs and column != section_key and len(names := data.obs[column].astype(str).unique()) > 1:
            raise DataError(
                f"`data` holds {len(names)} sections by `.obs[{column!r}]`: {listed(names)}. A picture belongs to one "
                "of them: bring them in one by one, as in `[sl.io.from_anndata(adata, pictures[name], section=name, "
                f"section_key={column!r}) for name in pictures]`."
            )


def _named(data: AnnData, section_key: str | None) -> str | None:
    """Name of the section by the columns of the table."""
    names = (_one_value(data, column) for column in (section_key, *_SECTIONS) if column is not None)
    return next((section_name(name) for name in names if name), None)


def _one_value(data: AnnData, column: str) -> str | None:
    values = data.obs[column].dropna().astype(str).unique() if column in data.obs else []
    return str(values[0]) if len(values) == 1 else None


# -- what `.uns["spatial"]` says --------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Library:
    """An entry of ``.uns["spatial"]``, as far as it holds what it should."""

    images: Mapping[str, np.ndarray]
    #: positive numbers of Space Ranger's ``scalefactors_json.json``
    factors: Mapping[str, float]

    @property
    def diameter(self) -> float | None:
        """Diameter of a spot in units of the coordinates."""
        return self.factors.get("spot_diameter_fullres")


def _library(data: AnnData, section: str | None) -> tuple[str, _Library]:
    """Name and content of the library that belongs to the section."""
    held = data.uns.get("spatial", {})
    held = {str(k): v for k, v in held.items() if isinstance(v, Mapping)} if isinstance(held, Mapping) else {}
    wanted = {section, _one_value(data, "library_id"), _one_value(data, Keys.SECTION)}
    fitting = [name for name in held if name in wanted] or list(held)
    if len(fitting) > 1:
        raise DataError(
            f"`data.uns['spatial']` holds {len(fitting)} libraries: {listed(fitting)}. Name the one of this section "
            "with `section=`, or tell several sections apart with `section_key=`."
        )
    if not fitting:
        return "section", _Library({}, {})
    one = held[fitting[0]]
    pictures, factors = one.get("images", {}), one.get("scalefactors", {})
    images = {kind: p for kind in SMALL if np.ndim(p := pictures.get(kind, 0)) == 3 and np.shape(p)[2] in (3, 4)}
    numbers = {str(k): float(v) for k, v in factors.items() if isinstance(v, int | float | np.number)}
    return fitting[0], _Library(images, {k: v for k, v in numbers.items() if np.isfinite(v) and v > 0})


def _picture(
    image: str | PathLike[str] | np.ndarray | SlideImage | None,
    held: _Library,
    coordinate_scale: float | None,
    section: str,
) -> Picture:
    """The picture given, with the factor from coordinates to its pixels; else the largest small one that is held."""
    known = {
        kind: held.factors[f"tissue_{kind}_scalef"] for kind in held.images if f"tissue_{kind}_scalef" in held.factors
    }
    if image is None:
        if not known:
            raise DataError(
                "No picture: `image` was not given, and `data.uns['spatial']` holds none with its scale factor. Pass "
                "the H&E that the coordinates belong to: `sl.io.from_anndata(adata, 'slide.tif', mpp=...)`."
            )
        kind = next(iter(known))
        return Picture(_as_uint8(held.images[kind]), known[kind], kind, "")
    opened = open_image(image) if isinstance(image, str | PathLike) else image
    if not isinstance(opened, np.ndarray | SlideImage) or len(opened.shape) < 2:
        raise TypeError(
            f"`image` must be a file, a numpy array or a SlideImage, found {type(image).__name__}; pass "
            "`np.asarray(image)` or `sl.io.open_image(path)`."
        )
    sizes = {kind: (np.shape(p)[1], np.shape(p)[0]) for kind, p in held.images.items()}
    size = (int(opened.shape[1]), int(opened.shape[0]))
    kind = next((kind for kind in known if sizes[kind] == size and known[kind] < 1), "full resolution")
    scale = known.get(kind, 1.0) if coordinate_scale is None else coordinate_scale
    if kind == "full resolution":
        check_size(size, sizes, held.factors, scale)
    if held.images:
        check_content(opened, lambda: _as_uint8(held.images[next(iter(held.images))]), kind=next(iter(held.images)),
                      section=section)  # fmt: skip
    path = fspath(image) if isinstance(image, str | PathLike) else ""
    if isinstance(opened, SlideImage):
        return Picture(opened, scale, kind, opened.path or path, opened.mpp, opened.mpp_source or "the image")
    return Picture(opened, scale, kind, path)


def _as_uint8(picture: Any) -> np.ndarray:
    """Small picture as red, green and blue; scanpy reads a png as numbers from 0 to 1."""
    pixels = np.asarray(picture)[..., :3]
    if pixels.dtype == np.uint8:
        return pixels
    scaled = pixels * (255.0 if pixels.max() <= 1 else 1.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


# -- scale ------------------------------------------------------------------------------------------------------------
class _Spots:
    """What positions and size of the spots tell about the scale, in pixels of the picture."""

    def __init__(self, xy: np.ndarray, diameter: float | None, technology: str | None) -> None:
        self.pitch = pitch(xy)
        self.diameter = diameter
        try:
            grid = detect_grid(xy)
        except DataError:
            grid = "none"
        self.like = [one for one in KNOWN_ARRAYS if one.grid == grid]
        named = known_array(technology or "")
        #: array that is named, or has spots of these proportions
        self.printed = named or next((one for one in self.like if self._proportions(one)), None)

    def _proportions(self, array: KnownArray) -> bool:
        return self.diameter is not None and array.has_spots(self.diameter / self.pitch * array.pitch_um, TOLERANCE)

    def scales(self, *, mpp: float | None, pitch_um: float | None, picture: Picture) -> dict[str, float]:
        """µm per pixel by every statement, the most trusted first."""
        found = {}
        if mpp is not None:
            found["`mpp`"] = float(mpp)
        if pitch_um is not None:
            found["`pitch_um`"] = pitch_um / self.pitch
        if self.printed is not None and pitch_um is None:
            found[f"the pitch of {self.printed.name} ({self.printed.pitch_um:g} µm)"] = (
                self.printed.pitch_um / self.pitch
            )
        if picture.stated is not None:
            found[f"the image file ({picture.stated_source})"] = picture.stated
        return found

    def array(self, mpp: float) -> KnownArray | None:
        """Array of the spots, once the scale is known."""
        if self.printed is not None:
            return self.printed
        return next((a for a in self.like if abs(self.pitch * mpp - a.pitch_um) <= TOLERANCE * a.pitch_um), None)

    def spot_um(self, mpp: float, array: KnownArray | None) -> float:
        """Diameter of a spot in µm."""
        if array is not None:
            return array.spots_um[0]
        if self.diameter is not None:
            return self.diameter * mpp
        arrays = ", ".join(f"{a.name} {a.pitch_um:g}" for a in KNOWN_ARRAYS)
        raise ScaleError(
            f"The size of a spot is unknown: at {mpp:.4g} µm per pixel spots lie {self.pitch * mpp:.4g} µm apart, as "
            f"on no array known here ({arrays} µm). Pass `spot_um=`, their diameter in µm, or correct `mpp=`."
        )


# -- the table --------------------------------------------------------------------------------------------------------
def _set_counts(table: AnnData, layer: str | None) -> None:
    """Raw counts into ``.X``; an AnnData without genes may be embedded and predicted on."""
    names = _section.layer_names(table)
    if layer is not None:
        check_key(names, layer, where="`data.layers`", hint="Leave out `layer` for `.X`.")
    values = table.X if layer is None else table.layers[layer]
    if table.n_vars and not _is_counts(values):
        where = "`data.X`" if layer is None else f"`data.layers[{layer!r}]`"
        check_counts(np.zeros(0) if values is None else values, where=where, kept=_elsewhere(table, layer))
    if layer is not None and table.X is not None:
        table.layers[Keys.GIVEN] = table.X
    table.X = sp.csr_matrix((table.n_obs, 0) if values is None else values, dtype=np.float32)


def _elsewhere(table: AnnData, layer: str | None) -> str:
    """Where else an AnnData holds raw counts, as the end of a message."""
    names = [n for n in _section.layer_names(table) if n != layer and _is_counts(table.layers[n])]
    if names:
        return f"`data.layers[{names[0]!r}]` holds some: pass `layer={names[0]!r}`."
    if layer is not None and _is_counts(table.X):
        return "`.X` holds some: leave out `layer`."
    if table.raw is not None and _is_counts(table.raw.X):
        return "`.raw` holds some: pass `adata.raw.to_adata()`."
    return (
        "no layer holds them, nor `.raw`. Read them again from where they came; for embedding and prediction alone, "
        "which need none, pass `adata[:, []]`."
    )


def _is_counts(values: Any) -> bool:
    if values is None:
        return False
    try:
        check_counts(values, where="")
    except DataError:
        return False
    return True


def _centres(table: AnnData, spatial_key: str) -> np.ndarray:
    if spatial_key not in table.obsm:
        others = [c for c in table.obs if "pxl" in c.lower() or c.lower() in ("x", "y", "x_pixel", "y_pixel")]
        columns = f" (`.obs` has {listed(others)})" if others else ""
        raise MissingKeyError(
            f"{spatial_key!r} not found in `data.obsm`; found: {listed(table.obsm)}. Add the centres of the spots as "
            "(x, y) in pixels of the picture, `adata.obsm['spatial'] = adata.obs[[x, y]].to_numpy()` by the columns "
            f"that hold them{columns}, or name another slot with `spatial_key=`."
        )
    xy = as_numbers(f"data.obsm[{spatial_key!r}]", table.obsm[spatial_key])
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise DataError(f"`data.obsm[{spatial_key!r}]` must be (spots, 2), found {xy.shape}.")
    return xy[:, :2].copy()


def _complete(table: AnnData, facts: Mapping[str, str | None]) -> tuple[str, str]:
    """Columns of the canonical layout; returns the names of those that join table and spots."""
    # What names elements of another SpatialData, or belongs to its crops, would be wrong from here on.
    attrs = table.uns.pop(TableModel.ATTRS_KEY, {})
    own = [attrs.get("region_key"), attrs.get("instance_key"), Keys.CROP_OK, Keys.CROP_REASON]
    table.obs = table.obs.drop(columns=[c for c in own if c is not None], errors="ignore")
    for key in ("spatial", Keys.UNS):
        table.uns.pop(key, None)
    before = _slots(table)
    sanitize_table(table)
    if renamed := [f"{old!r} is {new!r}" for old, new in zip(before, _slots(table), strict=True) if old != new]:
        warn(f"Names that cannot be stored were changed: {', '.join(renamed)}.")
    # A column of that name may be the user's own, such as the region of a brain.
    region_key, instance_key = (n if n not in table.obs else f"sealst_{n}" for n in ("region", "spot_id"))
    table.obs[region_key] = pd.Categorical([Keys.spots(str(facts[Keys.SECTION]))] * table.n_obs)
    table.obs[instance_key] = np.asarray([str(n) for n in table.obs_names], dtype=object)
    for key, value in facts.items():
        if value is not None or key not in table.obs:
            table.obs[key] = pd.Categorical([str(value or "unknown")] * table.n_obs)
    return region_key, instance_key


def _slots(table: AnnData) -> list[str]:
    """Names of all that a table holds, in the order in which `sanitize_table` keeps them."""
    mappings = (table.obsm, table.obsp, table.varm, table.varp, table.uns)
    names = [*table.obs, *table.var, *(n for m in mappings for n in m), *_section.layer_names(table)]
    return [str(n) for n in names]
