"""Sections to start with."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst.datasets._her2st import her2st, her2st_counts
    from sealst.datasets._synthetic.sections import synthetic, synthetic_net
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["her2st", "her2st_counts", "synthetic", "synthetic_net"]
