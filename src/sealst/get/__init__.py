"""Results as tables that scanpy, squidpy, decoupler and pandas take as they are."""

from sealst._given.calls import word_errors
from sealst.get._hits import hits
from sealst.get._predicted import expression, pathways

__all__ = ["expression", "hits", "pathways"]

word_errors(__name__)
