"""Pictures of a section: which belongs to a region, its levels, its scale, and frames of elements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import xarray as xr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, get_transformation, set_transformation

from sealst._core.space.geometry import apply_affine, similarity_scale
from sealst._core.space.lattice import pitch
from sealst._errors import DataError, MissingKeyError, ScaleError
from sealst._keys import Keys
from sealst._section.colour import check_colours
from sealst._section.regions import Region
from sealst._validate import check_key, listed


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
    """An H&E image element, checked: uint8 with red, green and blue, in a store that is there."""
    check_key(sdata.images, name, where="`sdata.images`", hint="Run `sl.pp.pair_crops` again, or restore the image.")
    check_pixels(sdata, name)
    element = sdata.images[name]
    finest = image_levels(element)[0]
    if finest.dtype != np.uint8 or finest.shape[0] not in (3, 4):
        raise DataError(
            f"Image {name!r} is {finest.dtype} with {finest.shape[0]} channel(s); H&E must be uint8 with red, green "
            "and blue. Convert it, e.g. `(image * 255).astype('uint8')` for values from 0 to 1."
        )
    if "c" in finest.coords:
        check_colours(finest.coords["c"].values, what=f"image {name!r}")
    return element


def check_pixels(sdata: SpatialData, name: str) -> None:
    """Raise when the store that an image is read from is gone: zarr would read it as black, without an error.

    The image itself is asked, as a SpatialData may have no path (after `sdata.subset`) or that of another store.
    """
    for folder in _lost_folders(sdata.images[name]):
        gone = next((one for one in reversed([folder, *folder.parents]) if not one.exists()), folder)
        raise DataError(
            f"Image {name!r} is read from {str(gone)!r}, which is not there any more. Read the section again "
            "from where it is now (`spatialdata.read_zarr`); a relative path holds in the working folder only."
        )


def has_pixels(sdata: SpatialData, name: str) -> bool:
    """Whether an image is there, and the store that it is read from."""
    return name in sdata.images and not _lost_folders(sdata.images[name])


def _lost_folders(element: Any) -> list[Path]:
    """Folders of an image's arrays that hold none any more."""
    folders = [folder for level in image_levels(element) for folder in _folders_of(level)]
    return [f for f in folders if not any((f / file).exists() for file in ("zarr.json", ".zarray"))]


def _folders_of(level: Any) -> list[Path]:
    """Folders of the zarr arrays on disk that a lazy level is read from."""
    graph = getattr(level.data, "dask", {})
    # Layers that hold a source; the others hold one task for every chunk, too many to look at.
    sources = [layer for key, layer in getattr(graph, "layers", {}).items() if key.startswith("original-from-zarr")]
    arrays = [array for layer in sources for array in layer.values() if hasattr(array, "store")]
    roots = [(getattr(array.store, "root", None), array.path) for array in arrays]
    return [root / path for root, path in roots if isinstance(root, Path)]


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


def stated_scales(
    element: Any,
    spots: gpd.GeoDataFrame,
    system: str,
    *,
    name: str,
    mpp: float | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
) -> dict[str, float]:
    """µm per pixel of an image by every statement of it, the most trusted first.

    Parameters
    ----------
    element
        Image.
    spots
        Shapes of a region.
    system
        Coordinate system in which image and spots meet.
    name
        Name of the region, for messages.
    mpp, pitch_um, spot_um
        What is stated: µm per pixel, distance between the centres of neighbouring spots, diameter of a spot.

    Raises
    ------
    ScaleError
        When image and spots are stretched against each other, or the spots do not tell what is needed of them.
    """
    sources: dict[str, float] = {}
    if (own := mpp_of(element)) is not None:
        sources["the image's 'um' coordinate system"] = own
    if mpp is not None:
        sources["`mpp`"] = float(mpp)
    if pitch_um is not None:
        try:
            sources["`pitch_um`"] = float(pitch_um) / pitch(spot_centres(element, spots, system))
        except DataError as error:
            raise ScaleError(f"`pitch_um` gives no scale for {name!r}: {error}") from error
    if spot_um is not None:
        ratio = similarity_scale(between(spots, element, system))
        radius = float(spots["radius"].median()) if "radius" in spots else np.nan
        if "radius" in spots and not (np.isfinite(spots["radius"]) & (spots["radius"] > 0)).all():
            raise ScaleError(
                f"`spot_um` gives no scale for {name!r}: some of its circles have no radius above 0 (lowest "
                f"{spots['radius'].min():.4g})."
            )
        if "radius" not in spots or ratio is None:
            why = "they are stretched against the image" if "radius" in spots else "they are no circles"
            raise ScaleError(f"`spot_um` gives no scale for {name!r}: its shapes have no diameter, {why}.")
        sources["`spot_um`"] = float(spot_um) / (2 * radius * ratio)
    return sources


def spot_centres(element: Any, spots: gpd.GeoDataFrame, system: str) -> np.ndarray:
    """Centres of spots in pixels of an image, (n, 2)."""
    points = spots.geometry.centroid
    return apply_affine(between(spots, element, system), np.column_stack([points.x, points.y]))
