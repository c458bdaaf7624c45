"""Pictures of a store that stay where the scanner's file is."""

from __future__ import annotations

from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.transformations import Affine, get_transformation

from sealst import _section
from sealst._errors import DataError, SealstError
from sealst._logging import warn
from sealst._section.pyramid import extended
from sealst.io._images.files import open_image

#: entry of an image's facts in ``attrs``: how a picture that is not in the store is placed
LINK = "linked"


def attach(sdata: SpatialData) -> SpatialData:
    """Open the pictures of a store that are not in it, in place; warns about files that are gone."""
    for name, facts in sdata.attrs.items():
        if not isinstance(facts, dict) or LINK not in facts or name in sdata.images:
            continue
        try:
            slide = open_image(facts["path"], mpp=facts.get("mpp"))
            if list(slide.shape) != [int(n) for n in facts[LINK]["shape"]]:
                raise DataError(f"it has {slide.shape} pixels now, {tuple(facts[LINK]['shape'])} before.")
        except SealstError as error:
            warn(
                f"The picture {name!r} of this store is not at hand: {error} Results can be read; calls that need "
                f"pixels cannot run. Where the file has moved, put its place into `sdata.attrs[{name!r}]['path']` and "
                "call `sl.io.write_wsi` again."
            )
            continue
        systems = {
            system: Affine(np.array(matrix), ("x", "y"), ("x", "y"))
            for system, matrix in facts[LINK]["coordinate_systems"].items()
        }
        sdata.images[name] = _section.multiscale(extended(slide.levels), systems)
    return sdata


def is_linked(sdata: SpatialData, name: str) -> bool:
    """Whether the store of a section leaves a picture in its file."""
    facts = sdata.attrs.get(name)
    return isinstance(facts, dict) and LINK in facts


def has_file(sdata: SpatialData, name: str) -> bool:
    """Whether a picture was read from a slide's file."""
    facts = sdata.attrs.get(name)
    return isinstance(facts, dict) and bool(facts.get("path"))


def link(sdata: SpatialData, name: str) -> dict[str, Any]:
    """Facts of a picture with what is needed to open it again."""
    element = sdata.images[name]
    systems = get_transformation(element, get_all=True)
    placed = {system: _section.affine(element, system).tolist() for system in systems}
    shape = [int(n) for n in _section.image_levels(element)[0].shape[1:]]
    return dict(sdata.attrs[name]) | {LINK: {"shape": shape, "coordinate_systems": placed}}
