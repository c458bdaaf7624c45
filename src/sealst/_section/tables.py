"""The canonical layout of a section in SpatialData, and how adapters look things up in it.

A section has an H&E image, a shapes element of circles (one per spot) that is a *region* of the table, and, after
`pp.pair_crops`, a shapes element of squares. Shapes and image share the coordinate system ``"global"`` (pixels of the
full-resolution image, x to the right, y down; pixel 0 covers [0, 1)). The system ``"um"`` carries the physical scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Identity, get_transformation, set_transformation

from sealst._core.genes.panel import GenePanel
from sealst._core.space.geometry import apply_affine, inside_fraction, similarity_scale, square_boxes
from sealst._data.crops.source import CropSource
from sealst._errors import DataError, MissingKeyError, OrderError, PanelError, ScaleError
from sealst._keys import Keys
from sealst._validate import check_key, listed, patient_text
from sealst._version import __version__

#: what calls that need no pixels accept
Data: TypeAlias = SpatialData | AnnData


@dataclass(frozen=True)
class Region:
    """One region (spots element) of a table."""

    name: str
    #: name of the section, for users and for file names
    section: str
    #: row positions in the table, in table order
    rows: np.ndarray
    #: instance ids of these rows
    ids: np.ndarray


def get_table(data: Data, table_key: str = Keys.TABLE) -> AnnData:
    """Return the table of a SpatialData, or the AnnData itself."""
    if isinstance(data, AnnData):
        return data
    if not isinstance(data, SpatialData):
        raise TypeError(f"Expected a SpatialData (or AnnData), found {type(data).__name__}.")
    check_key(
        data.tables,
        table_key,
        where="`sdata.tables`",
        hint="Name the table with `table_key=`, or build a section with `sl.io.from_arrays(...)`.",
    )
    table = data.tables[table_key]
    if table.n_obs < 2:
        raise DataError(f"The table {table_key!r} has {table.n_obs} spot(s); at least 2 are needed.")
    return table


def needs_pixels(sdata: Any) -> None:
    """Raise unless the first argument is one section with its images."""
    if isinstance(sdata, SpatialData):
        return
    hint = "The picture is needed: pass the SpatialData, not its table."
    if not isinstance(sdata, AnnData):
        hint = "Several sections go one by one: `for sdata in sections: ...`, or `sections.apply(function)`."
    raise TypeError(f"Expected a SpatialData, found {type(sdata).__name__}. {hint}")


def regions_of(table: AnnData, region: str | Sequence[str] | None = None) -> list[Region]:
    """Split a table's rows by region, in the order of the table's own region list."""
    attrs = table.uns.get(TableModel.ATTRS_KEY)
    if attrs is None:
        # A bare AnnData: its rows are one region.
        section = str(table.obs[Keys.SECTION].iloc[0]) if Keys.SECTION in table.obs else "section"
        return [Region(Keys.spots(section), section, np.arange(table.n_obs), table.obs_names.to_numpy())]
    # `anndata.concat` keeps what its tables share, which the name of the region is not; the rows say it as well.
    column = table.obs[attrs["region_key"]].astype(str)
    named = attrs.get("region", list(column.unique()))
    known = [named] if isinstance(named, str) else list(named)
    wanted = known if region is None else [region] if isinstance(region, str) else list(region)
    for name in wanted:
        check_key(known, name, where="the table's regions", hint="Name one of them with `region=`.")
    ids, found = table.obs[attrs["instance_key"]].to_numpy(), []
    for name in wanted:
        rows = np.flatnonzero(column.to_numpy() == name)
        if rows.size:
            found.append(Region(name, _section_name(table, rows, name), rows, ids[rows]))
    if not found:
        raise DataError(f"No row of the table belongs to region(s) {listed(wanted)}.")
    return found


def _section_name(table: AnnData, rows: np.ndarray, region: str) -> str:
    if Keys.SECTION in table.obs:
        return str(table.obs[Keys.SECTION].iloc[rows[0]])
    return region


def find_image(sdata: SpatialData, region: Region, image_key: str | None = None) -> str:
    """Name of the H&E image that belongs to a region."""
    images = list(sdata.images)
    if not images:
        raise MissingKeyError(
            "The SpatialData holds no image; crops need the H&E. Add it with `sdata.images['he'] = "
            "Image2DModel.parse(...)`, or build a section with `sl.io.from_arrays(image, ...)`."
        )
    if image_key is not None:
        check_key(images, image_key, where="`sdata.images`", hint="Name one of them with `image_key=`.")
        return image_key
    if (own := Keys.image(region.section)) in images:
        return own
    if len(images) == 1:
        return images[0]
    raise MissingKeyError(f"Several images ({listed(images)}) for region {region.name!r}: name one with `image_key=`.")


def he_image(sdata: SpatialData, name: str) -> Any:
    """An H&E image element, checked: uint8 with red, green and blue."""
    check_key(sdata.images, name, where="`sdata.images`", hint="Run `sl.pp.pair_crops` again, or restore the image.")
    element = sdata.images[name]
    finest = image_levels(element)[0]
    if finest.dtype != np.uint8 or finest.shape[0] not in (3, 4):
        raise DataError(
            f"Image {name!r} is {finest.dtype} with {finest.shape[0]} channel(s); H&E must be uint8 with red, green "
            "and blue. Convert it, e.g. `(image * 255).astype('uint8')` for values from 0 to 1."
        )
    names = [str(c).lower()[:1] for c in finest.coords["c"].values[:3]] if "c" in finest.coords else list("rgb")
    if set(names) == set("rgb") and names != list("rgb"):
        raise DataError(
            f"The channels of image {name!r} are {listed(finest.coords['c'].values)}, not red, green, blue. Write it "
            "anew with the channels in that order (`image.sel(c=['r', 'g', 'b'])`)."
        )
    return element


def check_pixels(sdata: SpatialData, name: str) -> None:
    """Raise when the store that an image is read from is gone: zarr would read it as black, without an error."""
    path: Any = sdata.path
    path = Path(path) if isinstance(path, str) else path
    if path is None or path.exists():
        return
    alone = SpatialData(images={"image": sdata.images[name]})
    # An image in memory needs no files, wherever it is said to be stored.
    alone.path = path.with_name("elsewhere")
    if not alone.elements_are_self_contained()["image"]:
        raise DataError(
            f"Image {name!r} is read from {str(path)!r}, which is not there any more. Read the section again "
            "from where it is now (`spatialdata.read_zarr`)."
        )


def image_levels(element: Any) -> list[xr.DataArray]:
    """Levels of an image as (c, y, x) arrays, finest first."""
    if isinstance(element, xr.DataTree):
        return [next(iter(element[name].data_vars.values())) for name in element.children]
    return [element]


def multiscale(levels: Sequence[Any], transforms: dict[str, Any] | None = None) -> xr.DataTree:
    """Image (c, y, x) or labels (y, x) with these levels, finest first, in their coordinate systems.

    Pixels of a level are centred where SpatialData takes them to be: every level spans the whole picture.
    """
    model, dims = (Image2DModel, "cyx") if levels[0].ndim == 3 else (Labels2DModel, "yx")
    full = levels[0].shape[-2:]
    nodes = {}
    for i, data in enumerate(levels):
        coords: dict[str, Any] = {"c": ["r", "g", "b"]} if dims == "cyx" else {}
        for axis, size, whole in zip("yx", data.shape[-2:], full, strict=True):
            coords[axis] = (np.arange(size) + 0.5) * (whole / size)
        nodes[f"scale{i}"] = xr.Dataset({"image": xr.DataArray(data, dims=tuple(dims), coords=coords)})
    tree = xr.DataTree.from_dict(nodes)
    set_transformation(tree, transforms or {"global": Identity()}, set_all=True)
    model().validate(tree)
    return tree


def spot_table(sdata: SpatialData, region: Region) -> gpd.GeoDataFrame:
    """Spots element of a region, in the order of the table's rows; joined by id."""
    check_key(
        sdata.shapes,
        region.name,
        where="`sdata.shapes`",
        hint="The table names it as its region; add the spots as circles, see `sl.io.from_arrays`.",
    )
    spots = sdata.shapes[region.name]
    missing = pd.Index(region.ids).difference(spots.index)
    if len(missing):
        raise DataError(
            f"{len(missing)} of {len(region.ids)} spots of the table have no shape in `sdata.shapes[{region.name!r}]` "
            f"(e.g. {listed(missing, 3)}). Drop them: `sdata.tables['table'] = table[kept]`."
        )
    return spots.loc[region.ids]


def affine(element: Any, system: str) -> np.ndarray:
    """3 x 3 affine from an element's own (x, y) coordinates to a coordinate system."""
    systems = get_transformation(element, get_all=True)
    check_key(systems, system, where="the element's coordinate systems", hint="Name one with `coordinate_system=`.")
    return np.asarray(systems[system].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y")), dtype=float)


def between(source: Any, target: Any, system: str) -> np.ndarray:
    """3 x 3 affine from an element's own (x, y) coordinates to another's, through a coordinate system of both."""
    return np.linalg.inv(affine(target, system)) @ affine(source, system)


def mpp_of(element: Any) -> float | None:
    """µm per pixel of an image from its ``"um"`` coordinate system, or None where it has none.

    Raises
    ------
    ScaleError
        When the transformation to ``"um"`` is not a similarity (pixels that are not square).
    """
    if Keys.UM not in get_transformation(element, get_all=True):
        return None
    scales = np.linalg.svd(affine(element, Keys.UM)[:2, :2], compute_uv=False)
    if scales[-1] <= 0 or scales[0] / scales[-1] > 1.01:
        raise ScaleError(
            f"The image's pixels are not square: {scales[0]:.4g} by {scales[-1]:.4g} µm by its 'um' coordinate system. "
            "Resample the image to square pixels first."
        )
    return float(scales.mean())


def crop_definition(table: AnnData, region: Region, crop_um: float | None = None) -> dict[str, Any]:
    """What `pp.pair_crops` decided for a region, for one of its crop sizes (the first unless named)."""
    stored = table.uns.get(Keys.UNS, {}).get("crops", {})
    if region.name not in stored:
        raise OrderError(
            f"Region {region.name!r} has no crops (found in `.uns['sealst']['crops']`: {listed(stored)}). "
            "Run `sl.pp.pair_crops(sdata)` first."
        )
    entry = dict(stored[region.name])
    # Tables written before several sizes could be paired.
    entry.setdefault("sizes", {f"{entry['crop_um']:g}": entry["shapes_key"]})
    if crop_um is None:
        return entry
    if (key := f"{crop_um:g}") not in entry["sizes"]:
        raise DataError(
            f"Region {region.name!r} has crops of {', '.join(entry['sizes'])} µm, not of {key} µm. Pair them with "
            f"`sl.pp.pair_crops(sdata, crop_um=[{key}, ...])`."
        )
    return entry | {"crop_um": float(crop_um), "shapes_key": entry["sizes"][key]}


def same_crops(table: AnnData, region: Region, made_from: dict[str, Any] | None) -> bool:
    """Whether a region still has the crops that a result was made from."""
    if made_from is None or region.name not in table.uns.get(Keys.UNS, {}).get("crops", {}):
        return False
    now = crop_definition(table, region)
    if f"{made_from['crop_um']:g}" not in now["sizes"]:
        return False
    # Sizes that were paired beside the one in use do not matter, nor do distances between spots.
    now = crop_definition(table, region, float(made_from["crop_um"]))
    ignored = ("sizes", "shapes_key", "um_per_unit")
    return all(now.get(key) == value for key, value in made_from.items() if key not in ignored)


def crop_boxes(
    sdata: SpatialData, table: AnnData, region: Region, crop_um: float | None = None, *, every: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Row positions with a usable crop (or `every` one) and their boxes (x0, y0, x1, y1) in full-resolution pixels."""
    definition = crop_definition(table, region, crop_um)
    check_key(
        sdata.shapes,
        definition["shapes_key"],
        where="`sdata.shapes`",
        hint="Run `sl.pp.pair_crops(sdata)` again.",
    )
    shapes = sdata.shapes[definition["shapes_key"]]
    image = he_image(sdata, definition["image_key"])
    ok = np.ones(len(region.rows), bool) if every else table.obs[Keys.CROP_OK].to_numpy(dtype=bool)[region.rows]
    x0, y0, x1, y1 = shapes.loc[region.ids[ok]].bounds.to_numpy(dtype=float).T
    # Image and squares may have got different transformations since pairing, as after `sdata.query.bounding_box`.
    system = definition["coordinate_system"]
    to_image = between(shapes, image, system)
    scale = similarity_scale(to_image)
    if scale is None:
        raise ScaleError(f"Crops and image of {region.name!r} no longer share a frame; run `sl.pp.pair_crops` again.")
    centres = apply_affine(to_image, np.column_stack([x0 + x1, y0 + y1]) / 2)
    rows, boxes = region.rows[ok], square_boxes(centres, (x1 - x0) * scale)
    if every:
        return rows, boxes
    # The image may have been cut since pairing.
    height, width = image_levels(image)[0].shape[1:]
    kept = inside_fraction(boxes, width, height) >= definition["min_inside"] - 1e-9
    return rows[kept], boxes[kept]


def crop_source(
    sdata: SpatialData, table: AnnData, region: Region, crop_um: float | None = None
) -> tuple[np.ndarray, CropSource]:
    """Rows of a region that have a crop, and where to read them."""
    definition = crop_definition(table, region, crop_um)
    rows, boxes = crop_boxes(sdata, table, region, crop_um)
    caches = table.uns[Keys.UNS].get("crop_caches", {}).get(region.name, {})
    image, cache = he_image(sdata, definition["image_key"]), caches.get(f"{definition['crop_um']:g}")
    if cache is None:
        check_pixels(sdata, definition["image_key"])
    return rows, CropSource(image_levels(image), boxes, cache)


def layer_names(table: AnnData) -> list[str]:
    """Names of the layers; from 0.13 on, anndata lists ``.X`` among them, as None."""
    return [name for name in table.layers if name is not None]


def lognorm(table: AnnData, layer: str = Keys.LOGNORM) -> Any:
    """Return an expression layer that `pp.normalize` wrote."""
    if layer not in table.layers:
        raise OrderError(
            f"Layer {layer!r} not found in `.layers`; found: {listed(layer_names(table))}. "
            "Run `sl.pp.normalize(sdata)` first (with `context=True` if it ran without context)."
        )
    return table.layers[layer]


def target_sum(table: AnnData) -> float | None:
    """Counts per spot that `pp.normalize` scaled to; None where it has not run."""
    used = table.uns.get(Keys.UNS, {}).get("normalize", {}).get("target_sum")
    return None if used is None else float(used)


def expression(
    table: AnnData, panel: GenePanel, rows: np.ndarray, layer: str | None = None, *, masked: bool = False
) -> np.ndarray:
    """Expression of some rows in panel order, (rows, genes), from the panel's layer or the one named.

    Genes that the table lacks hold the panel's mean. With `masked` the caller leaves these out by `panel.measured`:
    there is no warning, and of a panel joined from sections that measure different genes a single one suffices.
    """
    values = lognorm(table, layer or panel.layer)
    used = target_sum(table)
    if used is not None and not np.isclose(used, panel.target_sum):
        raise PanelError(
            f"Expression was normalised to {used:g} counts per spot, the panel's is {panel.target_sum:g}. Run "
            f"`sl.pp.normalize(sdata, target_sum={panel.target_sum:g})`."
        )
    joined = masked and panel.availability is not None
    min_shared = 0.0 if joined else 0.5
    found = panel.extract(values[rows], table.var_names, min_shared=min_shared, warn_missing=not masked)
    if masked:
        # Also a gene in two spellings, of which neither is known to be the one.
        absent = ~panel.measured(table.var_names)
        found[:, absent] = panel.mean[absent]
    return found


def record(table: AnnData, name: str, entry: dict[str, Any]) -> None:
    """Write provenance to ``.uns["sealst"][name]``, keeping what other calls wrote."""
    uns = dict(table.uns.get(Keys.UNS, {}))
    uns[name] = entry
    uns["version"] = __version__
    table.uns[Keys.UNS] = uns


def patients(table: AnnData, rows: np.ndarray | None = None) -> np.ndarray:
    """Patient of each of a table's rows, as `patient_text` names it; without the column, the section stands for it."""
    column = Keys.PATIENT if Keys.PATIENT in table.obs else Keys.SECTION
    check_key(
        table.obs.columns,
        column,
        where="`table.obs`",
        hint="Splits are by patient: add `table.obs['patient']`.",
    )
    values = table.obs[column] if rows is None else table.obs[column].iloc[rows]
    codes, found = pd.factorize(values, use_na_sentinel=False)
    names = [patient_text(value) for value in found]
    if unknown := np.isin(codes, [i for i, name in enumerate(names) if name in (None, "nan", "None")]).sum():
        first = 0 if rows is None else rows[0]
        where = f"section {table.obs[Keys.SECTION].iloc[first]!r}" if Keys.SECTION in table.obs else "the table"
        raise DataError(f"`.obs[{column!r}]` is empty for {unknown} spots of {where}; fill it in.")
    return np.array(names, dtype=str)[codes]


def patients_of(table: AnnData, rows: np.ndarray | None = None) -> list[str]:
    """Names of the patients of a table's rows."""
    return sorted(set(patients(table, rows).tolist()))
