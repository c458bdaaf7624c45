"""Packages that an extra brings, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from sealst._errors import OrderError


def need(module: str, *, extra: str, what: str) -> Any:
    """Import a module of an extra, or say what to install.

    Parameters
    ----------
    module
        Dotted name of the module.
    extra
        Name of the extra of sealst that brings it.
    what
        What needs it, as the start of a sentence.

    Returns
    -------
    The module.

    Raises
    ------
    OrderError
        When the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise OrderError(
            f'{what} needs {error.name or module!r}, which is not installed: `pip install "sealst[{extra}]"`.'
        ) from error
