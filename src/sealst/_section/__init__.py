"""The canonical layout of a section in SpatialData, and how adapters look things up in it.

A section has an H&E image, a shapes element of circles (one per spot) that is a *region* of the table, and, after
`pp.pair_crops`, a shapes element of squares. Shapes and image share the coordinate system ``"global"`` (pixels of the
full-resolution image, x to the right, y down; pixel 0 covers [0, 1)). The system ``"um"`` carries the physical scale.
"""

from sealst._section.crops import (
    PairedTable,
    RegionCrops,
    centres_um,
    crop_definition,
    crop_size,
    has_crops,
    map_crops,
    paired_table,
    region_crops,
    same_crops,
    unchanged_regions,
)
from sealst._section.images import (
    affine,
    between,
    check_pixels,
    find_image,
    he_image,
    image_levels,
    mpp_of,
    multiscale,
    spot_centres,
    spot_table,
    stated_scales,
)
from sealst._section.parts import Part, parts_at, parts_of, walk
from sealst._section.records import novelty_of, record, record_slot, recorded, reliability_of
from sealst._section.regions import Region, regions_of, row_of, sections_of
from sealst._section.tables import (
    Data,
    expression,
    for_writing,
    get_table,
    layer_names,
    lognorm,
    needs_pixels,
    patients,
    patients_of,
    read_h5ad,
    with_table,
)
from sealst._section.twins import likeness_of, refuse_twin_folds, refuse_twins

__all__ = [
    "Data",
    "PairedTable",
    "Part",
    "Region",
    "RegionCrops",
    "affine",
    "between",
    "centres_um",
    "check_pixels",
    "crop_definition",
    "crop_size",
    "expression",
    "find_image",
    "for_writing",
    "get_table",
    "has_crops",
    "he_image",
    "image_levels",
    "layer_names",
    "likeness_of",
    "lognorm",
    "map_crops",
    "mpp_of",
    "multiscale",
    "needs_pixels",
    "novelty_of",
    "paired_table",
    "parts_at",
    "parts_of",
    "patients",
    "patients_of",
    "read_h5ad",
    "record",
    "record_slot",
    "recorded",
    "refuse_twin_folds",
    "refuse_twins",
    "region_crops",
    "regions_of",
    "reliability_of",
    "row_of",
    "same_crops",
    "sections_of",
    "spot_centres",
    "spot_table",
    "stated_scales",
    "unchanged_regions",
    "walk",
    "with_table",
]
