"""Bring sections in."""

from sealst.io._arrays import from_arrays
from sealst.io._image import SlideImage
from sealst.io._st import read_st

__all__ = ["SlideImage", "from_arrays", "read_st"]
