"""Bring sections in."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst._data.bags.bags import Bag, Bags
    from sealst._section.arrays import from_arrays
    from sealst._section.pyramid import SlideImage
    from sealst.io._anndata import from_anndata
    from sealst.io._bags.readers import read_bags
    from sealst.io._bags.slide import read_slide
    from sealst.io._bags.trident import write_trident
    from sealst.io._check.check import CheckReport, check
    from sealst.io._check.subject import Problem
    from sealst.io._foreign import from_spatialdata
    from sealst.io._geojson import write_geojson
    from sealst.io._hest.bench import HestBench, read_hest_bench
    from sealst.io._hest.samples import read_hest
    from sealst.io._images.files import open_image
    from sealst.io._images.wsi import read_wsi
    from sealst.io._spaceranger.visium import read_visium
    from sealst.io._spaceranger.visium_hd import read_visium_hd
    from sealst.io._st import read_st
    from sealst.io._stores.collection import Collection, read_collection
    from sealst.io._stores.formats import read
    from sealst.io._stores.store import recover, write_wsi
    from sealst.io._xenium.runs import read_xenium
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "Bag",
    "Bags",
    "CheckReport",
    "Collection",
    "HestBench",
    "Problem",
    "SlideImage",
    "check",
    "from_anndata",
    "from_arrays",
    "from_spatialdata",
    "open_image",
    "read",
    "read_bags",
    "read_collection",
    "read_hest",
    "read_hest_bench",
    "read_slide",
    "read_st",
    "read_visium",
    "read_visium_hd",
    "read_wsi",
    "read_xenium",
    "recover",
    "write_geojson",
    "write_trident",
    "write_wsi",
]
