"""The ``sealst`` command."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    try:
        # It takes a second, in which people press Ctrl-C.
        from sealst.cli._main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Stopped (SIGINT).\n")
        sys.exit(130)
    run()
