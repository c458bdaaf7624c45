"""Preprocessing: crops, normalisation, gene panels and splits."""

from sealst.pp._crops import pair_crops
from sealst.pp._genes import select_genes
from sealst.pp._normalize import normalize
from sealst.pp._split import Split, check_split, split

__all__ = ["Split", "check_split", "normalize", "pair_crops", "select_genes", "split"]
