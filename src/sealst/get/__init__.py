"""Results as tables that scanpy, squidpy, decoupler and pandas take as they are."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst.get._hits import hits
    from sealst.get._predicted import expression, pathways
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["expression", "hits", "pathways"]
