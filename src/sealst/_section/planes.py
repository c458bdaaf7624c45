"""A picture as a plane that crops may be cut from anywhere, and what else lies on it: tissue, cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from sealst._core.space.geometry import CropSpec, apply_affine, similarity_scale
from sealst._core.space.token_grid import TokenGrid
from sealst._errors import DataError, MissingKeyError, ScaleError
from sealst._keys import Keys
from sealst._section.crops import has_crops, region_crops
from sealst._section.images import affine, between, find_image, he_image, image_levels, mpp_of
from sealst._section.pyramid import touch_lost
from sealst._section.regions import Region, regions_of
from sealst._section.tables import get_table
from sealst._validate import listed

#: pixels of labels that are held in memory at once
MAX_LABEL_PIXELS = 16_000_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Plane:
    """An H&E picture and the side of a crop on it."""

    sdata: SpatialData
    image_key: str
    #: of the crops that a model takes
    crop: CropSpec
    #: side of such a crop in pixels of the full-resolution picture
    side_px: float

    @property
    def image(self) -> Any:
        """The image element."""
        return he_image(self.sdata, self.image_key)

    @property
    def levels(self) -> list[Any]:
        """Levels of the image, finest first; the store they lie in is known to be there."""
        return image_levels(self.image)

    @property
    def mpp(self) -> float:
        """µm per pixel of the full-resolution picture."""
        return self.crop.crop_um / self.side_px

    def grid(self, side: int, overlap: int) -> TokenGrid:
        """Where crops of `side` by `side` tokens lie on it."""
        height, width = self.levels[0].shape[1:]
        return TokenGrid(side, overlap, self.side_px / side, int(height), int(width))

    def readable(self, boxes: np.ndarray) -> np.ndarray:
        """Which of the boxes touch no place that the picture's file does not hold, (n,)."""
        return ~touch_lost(boxes, self.sdata.attrs.get(self.image_key, {}))


def plane_of(
    sdata: SpatialData,
    crop: CropSpec,
    *,
    image_key: str | None = None,
    region: str | None = None,
    table_key: str = Keys.TABLE,
) -> Plane:
    """The picture that is named, that of a region, or the only one; its scale is that of its crops, else its own.

    Raises
    ------
    MissingKeyError
        When there is no image, or several and none is named.
    ScaleError
        When nothing says what a pixel measures.
    """
    table = get_table(sdata, table_key) if table_key in sdata.tables else None
    regions = [] if table is None else regions_of(table, region)
    if image_key is None:
        named = {find_image(sdata, one) for one in regions} if regions else set(sdata.images)
        if len(named) != 1:
            raise MissingKeyError(
                f"There are {len(named)} images ({listed(sorted(named))}): name one with `image_key=`."
                if named
                else "The SpatialData holds no image; the H&E is needed."
            )
        (image_key,) = named
    image = he_image(sdata, image_key)
    if table is not None:
        for one in regions_of(table):
            if has_crops(table, one):
                cut = region_crops(sdata, table, one)
                if cut.definition["image_key"] == image_key:
                    side = float(np.median(cut.every_box[:, 2] - cut.every_box[:, 0]))
                    side *= crop.crop_um / cut.definition["crop_um"]
                    return Plane(sdata=sdata, image_key=image_key, crop=crop, side_px=side)
    if (mpp := mpp_of(image)) is None:
        raise ScaleError(
            f"What a pixel of image {image_key!r} measures is not known. Pair crops (`sl.pp.pair_crops(sdata, "
            "mpp=...)`), or say it: `spatialdata.transformations.set_transformation(sdata.images["
            f"{image_key!r}], Scale([mpp, mpp], axes=('x', 'y')), 'um')`."
        )
    return Plane(sdata=sdata, image_key=image_key, crop=crop, side_px=crop.crop_um / mpp)


def label_frame(labels: Any, image: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask of labels, and scale and shift (x, y) from pixels of the full-resolution image to pixels of the mask."""
    levels = image_levels(labels)
    used = next((i for i, level in enumerate(levels) if level.size <= MAX_LABEL_PIXELS), len(levels) - 1)
    system = shared_system(labels, image, what="tissue labels")
    matrix = between(image, labels, system)
    scale = matrix[[0, 1], [0, 1]]
    if np.abs(matrix[[0, 1], [1, 0]]).max() > 1e-6 * np.abs(scale).max() or scale.min() <= 0:
        raise DataError(
            f"The tissue labels are turned or mirrored against the image in coordinate system {system!r}. Resample "
            "them to the image's frame, or leave `labels_key` out."
        )
    shrink = np.array([levels[used].shape[axis] / levels[0].shape[axis] for axis in (1, 0)])
    return np.asarray(levels[used]) > 0, scale * shrink, matrix[:2, 2] * shrink


def shared_system(element: Any, image: Any, *, what: str) -> str:
    """Name of a coordinate system that an element shares with an image."""
    own = get_transformation(element, get_all=True)
    for name in get_transformation(image, get_all=True):
        if name in own:
            return str(name)
    raise DataError(f"The {what} share no coordinate system with the image; give them the image's own.")


def tissue_tokens(plane: Plane, grid: TokenGrid) -> np.ndarray | None:
    """Which tokens of a grid have their centre on tissue, as `sl.pp.tissue` found it; None where it has not run."""
    section = plane.image_key.removesuffix("_he")
    if (key := Keys.tissue(section)) not in plane.sdata.labels:
        return None
    mask, scale, shift = label_frame(plane.sdata.labels[key], plane.image)
    (n_rows, n_columns), side = grid.shape, grid.token_px
    y = np.floor((np.arange(n_rows) + 0.5) * side * scale[1] + shift[1]).astype(int)
    x = np.floor((np.arange(n_columns) + 0.5) * side * scale[0] + shift[0]).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))
    found = mask[np.ix_(y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1))]
    return np.asarray(inside & found)


def outlines(plane: Plane, element: str) -> gpd.GeoSeries:
    """Cells of an element, by their id, in pixels of the full-resolution picture: polygons, or points without area.

    Parameters
    ----------
    plane
        The picture.
    element
        Name of shapes (polygons, or circles), points or labels.

    Raises
    ------
    MissingKeyError
        When there is no such element.
    DataError
        When it shares no coordinate system with the picture, is stretched against it, or is empty.
    """
    kinds = ("shapes", "points", "labels")
    names = {name: kind for kind in kinds for name in getattr(plane.sdata, kind)}
    if element not in names:
        raise MissingKeyError(
            f"{element!r} is no element of cells; found: {listed(names)}. Add shapes, points or labels to the "
            "SpatialData, e.g. `sdata.shapes['cells'] = ShapesModel.parse(geopandas.read_file('cells.geojson'))`."
        )
    found = getattr(plane.sdata, names[element])[element]
    matrix = between(found, plane.image, shared_system(found, plane.image, what=f"elements of {element!r}"))
    scale = similarity_scale(matrix)
    if scale is None:
        raise DataError(f"{element!r} is stretched against image {plane.image_key!r}; check its transformation.")
    if names[element] == "points":
        frame = found[["x", "y"]].compute()
        made = gpd.GeoSeries(gpd.points_from_xy(frame["x"], frame["y"]), index=frame.index)
    else:
        made = _shapes_of(found)
    if not len(made):
        raise DataError(f"{element!r} holds no cell.")
    (a, b, x), (c, d, y) = matrix[:2]
    return made.affine_transform([a, b, c, d, x, y])


def _shapes_of(element: Any) -> gpd.GeoSeries:
    """Polygons of shapes or labels, in the element's own coordinates, by id."""
    if not isinstance(element, gpd.GeoDataFrame):
        from spatialdata import to_polygons

        element = to_polygons(element)
        # SpatialData traces pixels at their numbers, though each covers what lies up to the next.
        traced = element.geometry.translate(0.5, 0.5).to_numpy()
        return gpd.GeoSeries(traced, index=pd.Index(element.get("label", element.index)))
    if "radius" in element:
        circles = shapely.buffer(element.geometry.to_numpy(), element["radius"].to_numpy(dtype=float))
        return gpd.GeoSeries(circles, index=element.index)
    return gpd.GeoSeries(shapely.make_valid(element.geometry.to_numpy()), index=element.index)


def centres_of(cells: gpd.GeoSeries) -> np.ndarray:
    """Centroids (x, y) of cells, (n, 2)."""
    points = shapely.centroid(cells.to_numpy())
    return np.column_stack([shapely.get_x(points), shapely.get_y(points)])


def annotated(sdata: SpatialData, element: str) -> tuple[str, Region] | None:
    """Table that annotates an element, and which of its rows; None where none does."""
    for key in sdata.tables:
        for one in regions_of(sdata.tables[key]):
            if one.name == element:
                return str(key), one
    return None


def on_canvas(plane: Plane, xy: np.ndarray) -> np.ndarray:
    """Points (n, 2) in pixels of the full-resolution picture, in its coordinate system ``"global"`` (or its first)."""
    systems = get_transformation(plane.image, get_all=True)
    return apply_affine(affine(plane.image, "global" if "global" in systems else next(iter(systems))), xy)
