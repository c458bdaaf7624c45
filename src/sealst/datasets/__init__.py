"""Sections to start with."""

from sealst._given.calls import word_errors
from sealst.datasets._her2st import her2st, her2st_counts
from sealst.datasets._synthetic.sections import synthetic, synthetic_net

__all__ = ["her2st", "her2st_counts", "synthetic", "synthetic_net"]

word_errors(__name__)
