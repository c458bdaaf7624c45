"""What the rules of `sealst.io.check` look at: one region of a section, and what they find."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import AnnData
from shapely import points
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core.space.geometry import similarity_scale
from sealst._errors import MissingKeyError, SealstWarning
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Region


class Fact(NamedTuple):
    """Something that was found."""

    topic: str
    name: str
    value: Any


class Problem(NamedTuple):
    """Something that will go wrong (``"error"``) or should be known (``"warning"``), with what to do."""

    level: str
    text: str


@dataclass(frozen=True)
class Options:
    """What the caller of the check states, as they would to `sealst.pp.pair_crops`."""

    image_key: str | None = None
    coordinate_system: str = "global"
    mpp: float | None = None
    pitch_um: float | None = None
    spot_um: float | None = None


@dataclass(frozen=True)
class Subject:
    """One region of a table and the image that belongs to it."""

    sdata: SpatialData
    table: AnnData
    region: Region
    options: Options = field(default_factory=Options)

    @cached_property
    def image_key(self) -> str:
        """Name of the image: the one the calls would take, else the largest H&E."""
        try:
            return _section.find_image(self.sdata, self.region, self.options.image_key)
        except MissingKeyError:
            finest = {name: _section.image_levels(one)[0] for name, one in self.sdata.images.items()}
            usable = [name for name, one in finest.items() if one.dtype == np.uint8 and one.shape[0] in (3, 4)]
            if not usable or self.options.image_key is not None:
                raise
            return max(usable, key=lambda name: finest[name].size)

    @property
    def element(self) -> Any:
        """Return the image."""
        return self.sdata.images[self.image_key]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        height, width = _section.image_levels(self.element)[0].shape[-2:]
        return width, height

    @cached_property
    def shared_systems(self) -> list[str]:
        """Coordinate systems that image and spots share."""
        own = get_transformation(self.element, get_all=True)
        return [s for s in get_transformation(self.spots, get_all=True) if s in own]

    @cached_property
    def system(self) -> str:
        """Coordinate system in which image and spots meet: the one stated, else the one that is nearest to pixels."""
        if self.options.coordinate_system in self.shared_systems:
            return self.options.coordinate_system
        return min(
            (s for s in self.shared_systems if s != Keys.UM),
            key=lambda s: abs(np.log(similarity_scale(_section.affine(self.spots, s)) or np.inf)),
            default=self.options.coordinate_system,
        )

    @cached_property
    def spots(self) -> Any:
        """Shapes of the spots, in the order of the region's rows."""
        return _section.spot_table(self.sdata, self.region)

    @cached_property
    def centres(self) -> np.ndarray:
        """Centres of the spots in pixels of the image, (n, 2)."""
        return _section.spot_centres(self.element, self.spots, self.system)

    @cached_property
    def spot_px(self) -> float | None:
        """Diameter of a spot, or side of a square one, in pixels of the image; None where shapes have neither."""
        ratio = similarity_scale(_section.between(self.spots, self.element, self.system))
        if ratio is None:
            return None
        if "radius" in self.spots:
            return 2 * float(self.spots["radius"].median()) * ratio
        return float(np.sqrt(self.spots.geometry.area.median())) * ratio

    def alone(self, centres: np.ndarray | None = None) -> SpatialData:
        """Image and spots of the region with a table that has one gene, to try calls on; nothing is shared but pixels.

        Images, shapes and table are objects of their own, so that what a call writes stays here. `centres`, in pixels
        of the image, puts the spots elsewhere.
        """
        shapes, key = self.spots, self.table.uns[TableModel.ATTRS_KEY]["instance_key"]
        if centres is not None:
            frame = gpd.GeoDataFrame({"radius": 1.0}, geometry=points(centres), index=shapes.index)
            shapes = ShapesModel.parse(frame, transformations=dict(get_transformation(self.element, get_all=True)))
        rows = self.region.rows
        obs = pd.DataFrame(index=self.table.obs_names[rows])
        obs["region"] = pd.Categorical([self.region.name] * len(rows))
        obs[key] = self.region.ids
        obs[Keys.SECTION] = self.region.section
        light = AnnData(np.ones((len(rows), 1), dtype=np.float32), obs=obs, var=pd.DataFrame(index=["ones"]))
        if centres is None and Keys.SPATIAL in self.table.obsm:
            light.obsm[Keys.SPATIAL] = np.asarray(self.table.obsm[Keys.SPATIAL])[rows]
        return SpatialData(
            images=dict(self.sdata.images),
            shapes={self.region.name: shapes},
            tables={
                Keys.TABLE: TableModel.parse(light, region=self.region.name, region_key="region", instance_key=key)
            },
        )


@contextmanager
def collected_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Try a call: its warnings are collected, its messages are not shown."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        logger.setLevel(level)


def warnings_as_problems(caught: list[warnings.WarningMessage]) -> list[Problem]:
    """Return what sealst itself warned about, as problems."""
    return [Problem("warning", str(w.message)) for w in caught if issubclass(w.category, SealstWarning)]
