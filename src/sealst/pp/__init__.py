"""Preprocessing: crops, normalisation, gene panels and splits."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst.pp._cache import cache_crops
    from sealst.pp._crops import pair_crops
    from sealst.pp._genes import rank_genes, select_genes
    from sealst.pp._harmonize import harmonize_genes
    from sealst.pp._normalize import normalize
    from sealst.pp._quality import quality
    from sealst.pp._split import Split, check_split, split
    from sealst.pp._stain import Stain, fit_stain, normalize_stain
    from sealst.pp._tile import tile
    from sealst.pp._tissue import tissue
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "Split",
    "Stain",
    "cache_crops",
    "check_split",
    "fit_stain",
    "harmonize_genes",
    "normalize",
    "normalize_stain",
    "pair_crops",
    "quality",
    "rank_genes",
    "select_genes",
    "split",
    "tile",
    "tissue",
]
