"""Bring sections in."""

from sealst._data.bags import Bag, Bags
from sealst.io._arrays import from_arrays
from sealst.io._bags import read_bags
from sealst.io._check import CheckReport, check
from sealst.io._check_subject import Problem
from sealst.io._collection import Collection, read_collection
from sealst.io._foreign import from_spatialdata
from sealst.io._formats import read
from sealst.io._hest import read_hest
from sealst.io._hest_bench import HestBench, read_hest_bench
from sealst.io._image import SlideImage, open_image
from sealst.io._read_slide import read_slide
from sealst.io._st import read_st
from sealst.io._trident import write_trident
from sealst.io._visium import read_visium
from sealst.io._visium_hd import read_visium_hd
from sealst.io._write_wsi import write_wsi
from sealst.io._wsi import read_wsi
from sealst.io._xenium import read_xenium

__all__ = [
    "Bag",
    "Bags",
    "CheckReport",
    "Collection",
    "HestBench",
    "Problem",
    "SlideImage",
    "check",
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
    "write_trident",
    "write_wsi",
]
