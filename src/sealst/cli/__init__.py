"""The ``sealst`` command."""

from sealst.cli._main import main

__all__ = ["main"]
