"""Pathology image encoders that know molecules: SEAL for scverse."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sealst._errors import (
    CheckpointError,
    DataError,
    InUseError,
    LeakError,
    MissingKeyError,
    OrderError,
    PanelError,
    ScaleError,
    SealstError,
    SealstWarning,
    StorageError,
    WeightsError,
)
from sealst._session_info import session_info
from sealst._settings import settings
from sealst._version import __version__

if TYPE_CHECKING:
    from sealst import datasets, get, io, models, pl, pp, tl
    from sealst._core.genes.panel import GenePanel

_SUBMODULES = ("datasets", "get", "io", "models", "pl", "pp", "tl")

__all__ = [
    "CheckpointError",
    "DataError",
    "GenePanel",
    "InUseError",
    "LeakError",
    "MissingKeyError",
    "OrderError",
    "PanelError",
    "ScaleError",
    "SealstError",
    "SealstWarning",
    "StorageError",
    "WeightsError",
    "__version__",
    "datasets",
    "get",
    "io",
    "models",
    "pl",
    "pp",
    "session_info",
    "settings",
    "tl",
]


def __getattr__(name: str) -> Any:
    # Submodules load on first use, so that `import sealst` needs neither torch nor scanpy.
    if name in _SUBMODULES:
        return importlib.import_module(f"sealst.{name}")
    if name == "GenePanel":
        from sealst._core.genes.panel import GenePanel

        return GenePanel
    raise AttributeError(f"module 'sealst' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
