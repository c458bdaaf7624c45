"""A region with its crops of one size: which rows have one, where they lie in the picture, and what made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst._core.space.geometry import CropSpec, apply_affine, inside_fraction, similarity_scale, square_boxes
from sealst._core.splits import evenly
from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.reader import read_crops
from sealst._data.crops.source import CropSource, iter_source
from sealst._errors import DataError, OrderError, ScaleError
from sealst._keys import Keys
from sealst._logging import progress
from sealst._section.images import between, has_pixels, he_image, image_levels
from sealst._section.records import recorded
from sealst._section.regions import Region, regions_of, sections_of
from sealst._section.tables import Data, get_table, needs_pixels
from sealst._settings import settings
from sealst._validate import check_key, listed

#: crops of a region by which its picture is known again
_SAMPLED = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class RegionCrops:
    """A region (or section) with its crops of one size, resolved once and handed on."""

    sdata: SpatialData
    region: Region
    #: what `pp.pair_crops` decided, and the provenance of what is made from these crops
    definition: dict[str, Any]
    #: squares (x0, y0, x1, y1) in pixels of the image, of every row of the region
    every_box: np.ndarray
    #: which rows of the region have a usable crop
    usable: np.ndarray
    #: store that `pp.cache_crops` filled, if any
    cache: str | None

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of the table that have a usable crop."""
        return self.region.rows[self.usable]

    @property
    def boxes(self) -> np.ndarray:
        """Squares of the usable crops."""
        return self.every_box[self.usable]

    @property
    def crop_px(self) -> int:
        """Side of a crop in pixels."""
        return int(self.definition["crop_px"])

    @property
    def um_per_unit(self) -> float:
        """What a unit of ``.obsm["spatial"]`` measures in µm; NaN where that is not known."""
        return float(self.definition["um_per_unit"])

    @property
    def levels(self) -> list[Any]:
        """Levels of the image, finest first; the store they lie in is known to be there."""
        return image_levels(he_image(self.sdata, self.definition["image_key"]))

    @property
    def centres_um(self) -> np.ndarray:
        """Centres of the usable crops in µm, (n, 2)."""
        return _centres(self.boxes, self.definition["crop_um"])

    @property
    def source(self) -> CropSource:
        """Where the usable crops are read from: their store where they have one, else the image."""
        return CropSource(self.levels, self.boxes, self.cache, PlainCrops(self.region.section))

    def widened(self, crop_um: float) -> RegionCrops:
        """Squares of another side about the same centres, of the same spots, read from the picture.

        They need not have been paired. What of them lies beyond the picture's edge is white.
        """
        centres = (self.every_box[:, :2] + self.every_box[:, 2:]) / 2
        sides = (self.every_box[:, 2] - self.every_box[:, 0]) * (crop_um / self.definition["crop_um"])
        boxes = square_boxes(centres, sides)
        return replace(self, definition=self.definition | {"crop_um": float(crop_um)}, every_box=boxes, cache=None)

    def shows(self, made_from: dict[str, Any]) -> bool:
        """Whether the crops still show what they showed when something was made from them, by those that were kept."""
        known = json.loads(made_from.get("pixels", "{}"))
        rows = np.flatnonzero(np.isin(self.region.ids.astype(str), list(known)))
        then = [known[name] for name in self.region.ids[rows].astype(str)]
        return not len(rows) or _digests(read_crops(self.levels, self.every_box[rows], self.crop_px)) == then


@dataclass(frozen=True, eq=False, kw_only=True)
class PairedTable:
    """A table and the crops of its sections, all of one size."""

    table: AnnData
    sections: list[RegionCrops]
    size: CropSpec
    #: what made the embeddings that the table has, by slot
    embedded: dict[str, Any]

    def widened(self, crop_um: float) -> PairedTable:
        """The same spots with squares of another side, see `RegionCrops.widened`."""
        size = replace(self.size, crop_um=float(crop_um))
        return replace(self, sections=[one.widened(crop_um) for one in self.sections], size=size)


def paired_table(
    sdata: SpatialData,
    table_key: str = Keys.TABLE,
    *,
    region: str | Sequence[str] | None = None,
    crop_um: float | None = None,
    trained_on: CropSpec | None = None,
) -> PairedTable:
    """Resolve the crops of a section's table, of the size named, the one that a model was trained on, or the first.

    Raises
    ------
    OrderError
        When crops have not been paired.
    DataError
        When regions have crops of different size, or not of the size that is asked for.
    """
    needs_pixels(sdata)
    table = get_table(sdata, table_key)
    sections = sections_of(table, region)
    if trained_on is not None:
        if crop_um is not None and crop_um != trained_on.crop_um:
            raise DataError(f"`crop_um` is {crop_um:g}, but the model was trained on {trained_on.crop_um:g} µm.")
        for one in sections:
            stored = crop_definition(table, one)
            if f"{trained_on.crop_um:g}" not in stored["sizes"] or stored["crop_px"] != trained_on.crop_px:
                raise DataError(
                    f"Crops of {one.name!r} are {', '.join(stored['sizes'])} µm at {stored['crop_px']} px, but the "
                    f"model was trained on {trained_on.crop_um:g} µm at {trained_on.crop_px} px. Run "
                    f"`sl.pp.pair_crops(sdata, crop_um={trained_on.crop_um:g}, crop_px={trained_on.crop_px})`."
                )
    size = crop_size(table, sections, crop_um) if trained_on is None else trained_on
    found = [region_crops(sdata, table, one, size.crop_um) for one in sections]
    return PairedTable(table=table, sections=found, size=size, embedded=recorded(table, "embed"))


def region_crops(sdata: SpatialData, table: AnnData, region: Region, crop_um: float | None = None) -> RegionCrops:
    """Crops of a region, of one of its sizes (the first unless named), in pixels of the image as it is now."""
    definition = crop_definition(table, region, crop_um)
    check_key(
        sdata.shapes, definition["shapes_key"], where="`sdata.shapes`", hint="Run `sl.pp.pair_crops(sdata)` again."
    )
    shapes = sdata.shapes[definition["shapes_key"]]
    image = he_image(sdata, definition["image_key"])
    x0, y0, x1, y1 = shapes.loc[region.ids].bounds.to_numpy(dtype=float).T
    # Image and squares may have got different transformations since pairing, as after `sdata.query.bounding_box`.
    to_image = between(shapes, image, definition["coordinate_system"])
    scale = similarity_scale(to_image)
    if scale is None:
        raise ScaleError(f"Crops and image of {region.name!r} no longer share a frame; run `sl.pp.pair_crops` again.")
    centres = apply_affine(to_image, np.column_stack([x0 + x1, y0 + y1]) / 2)
    boxes = square_boxes(centres, (x1 - x0) * scale)
    # The image may have been cut since pairing.
    height, width = image_levels(image)[0].shape[1:]
    inside = inside_fraction(boxes, width, height) >= definition["min_inside"] - 1e-9
    usable = table.obs[Keys.CROP_OK].to_numpy(dtype=bool)[region.rows] & inside
    cache = recorded(table, "crop_caches").get(region.name, {}).get(f"{definition['crop_um']:g}")
    return RegionCrops(sdata=sdata, region=region, definition=definition, every_box=boxes, usable=usable, cache=cache)


def has_crops(table: AnnData, region: Region) -> bool:
    """Whether `pp.pair_crops` has run on a region."""
    return region.name in recorded(table, "crops")


def crop_definition(table: AnnData, region: Region, crop_um: float | None = None) -> dict[str, Any]:
    """What `pp.pair_crops` decided for a region, for one of its crop sizes (the first unless named)."""
    stored = recorded(table, "crops")
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


def centres_um(data: Data, table: AnnData, region: Region) -> np.ndarray:
    """Centres of a region's crops in µm, (n, 2), in the order of its rows; NaN where they are not known.

    They are those of the squares; a table without its squares still has its spots' positions and their scale.
    """
    if not has_crops(table, region):
        return np.full((len(region.rows), 2), np.nan)
    definition = crop_definition(table, region)
    if isinstance(data, SpatialData) and definition["shapes_key"] in data.shapes:
        squares = data.shapes[definition["shapes_key"]].loc[region.ids]
        return _centres(squares.bounds.to_numpy(dtype=float), definition["crop_um"])
    if Keys.SPATIAL not in table.obsm:
        return np.full((len(region.rows), 2), np.nan)
    return np.asarray(table.obsm[Keys.SPATIAL], dtype=float)[region.rows, :2] * float(definition["um_per_unit"])


def _centres(boxes: np.ndarray, crop_um: float) -> np.ndarray:
    """Centres of squares in µm, whose sides say what a pixel measures."""
    x0, y0, x1, y1 = boxes.T
    return np.asarray(np.column_stack([x0 + x1, y0 + y1]) / 2 * (crop_um / np.median(x1 - x0)))


def unchanged_regions(table: AnnData, made_from: dict[str, Any], data: Data | None = None) -> list[Region]:
    """Regions that still have the crops that a result was made from, given its crop definitions by region."""
    return [one for one in regions_of(table) if same_crops(table, one, made_from.get(one.name), data)]


def same_crops(table: AnnData, region: Region, made_from: dict[str, Any] | None, data: Data | None = None) -> bool:
    """Whether a region still has the crops that a result was made from.

    Of a SpatialData that holds the table and the picture, some crops are compared pixel by pixel, too.
    """
    if made_from is None or not has_crops(table, region):
        return False
    now = crop_definition(table, region)
    if f"{made_from['crop_um']:g}" not in now["sizes"]:
        return False
    # Sizes that were paired beside the one in use do not matter, nor do distances between spots; pixels come below.
    now = crop_definition(table, region, float(made_from["crop_um"]))
    ignored = ("sizes", "shapes_key", "um_per_unit", "pixels")
    if any(now.get(key) != value for key, value in made_from.items() if key not in ignored):
        return False
    if not isinstance(data, SpatialData) or not has_pixels(data, now["image_key"]) or now["shapes_key"] not in data:
        # What was computed is used without the picture, too.
        return True
    return region_crops(data, table, region, now["crop_um"]).shows(made_from)


def crop_size(table: AnnData, regions: Sequence[Region], crop_um: float | None = None) -> CropSpec:
    """Crop size that all regions share: the first that was paired, or the one named."""
    sizes = {(d["crop_um"], d["crop_px"]) for d in (crop_definition(table, r, crop_um) for r in regions)}
    if len(sizes) > 1:
        raise DataError(
            f"Regions have crops of different size (µm, px): {sorted(sizes)}. Pair them alike with "
            "`sl.pp.pair_crops(sdata, crop_um=..., crop_px=...)`."
        )
    um, px = sizes.pop()
    return CropSpec(float(um), int(px))


def map_crops(
    sections: Sequence[RegionCrops], function: Callable[[np.ndarray], np.ndarray], *, show: bool | None, desc: str
) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, Any]]]:
    """Apply a function to the usable crops of sections, in batches.

    Parameters
    ----------
    sections
        Crops to read.
    function
        uint8 crops (n, px, px, 3) → values (n, width).
    show, desc
        Whether there is a progress bar, and what it says.

    Returns
    -------
    Rows of the table (n,), section by section in the order of the table; their values (n, width); and what these were
    made from: crop definitions by region, with what some crops show, as a picture may be replaced under its name.
    """
    rows = np.concatenate([one.rows for one in sections])
    if not len(rows):
        raise DataError("No spot has a usable crop; `.obs['crop_reason']` says why.")
    values, start = np.empty((len(rows), 0)), 0
    # All sources first: a store that is gone is told before the first crop is read.
    sources = [one.source for one in sections]
    made_from: dict[str, dict[str, Any]] = {}
    with progress(None, desc=desc, total=len(rows), show=show) as bar:
        for one, source in zip(sections, sources, strict=True):
            some = evenly(len(source.boxes), _SAMPLED)
            pixels: dict[str, str] = {}
            for positions, crops in iter_source(source, one.crop_px, batch_size=settings.batch_size, ahead=True):
                found = function(crops)
                if not values.shape[1]:
                    values = np.empty((len(rows), found.shape[1]), dtype=found.dtype)
                values[start + positions] = found
                kept = np.isin(positions, some)
                names = one.region.ids[one.usable][positions[kept]].astype(str)
                pixels.update(zip(names.tolist(), _digests(crops[kept]), strict=True))
                bar.update(len(positions))
            start += len(source.boxes)
            # Text: spots may be called anything, and names of slots on disk may not.
            made_from[one.region.name] = one.definition | {"pixels": json.dumps(pixels)}
    return rows, values, made_from


def _digests(crops: np.ndarray) -> list[str]:
    return [hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in crops]
