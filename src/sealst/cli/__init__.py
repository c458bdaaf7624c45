from __future__ import annotations

import sys


def main() -> None:
    sys.exit(0)
