"""The one logger of the package, warnings and progress bars."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sealst._errors import SealstWarning
from sealst._settings import settings

_PACKAGE = os.path.dirname(__file__) + os.sep


class _QuietIfConfigured(logging.Filter):
    # An application that configured logging shows our records itself; do not show them twice.
    def filter(self, record: logging.LogRecord) -> bool:
        return not logging.getLogger().handlers


#: its level is `settings.verbosity`
logger = logging.getLogger("sealst")
if not logger.handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(logging.Formatter("%(message)s"))
    _handler.addFilter(_QuietIfConfigured())
    logger.addHandler(_handler)


def warn(message: str, category: type[Warning] = SealstWarning) -> None:
    """Warn the user, pointing at the line of their own code that led here."""
    # What `skip_file_prefixes` does from Python 3.12 on; level 1 is this function.
    frame, levels = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, levels = frame.f_back, levels + 1
    warnings.warn(message, category, stacklevel=max(1, levels - 1) if frame is None else levels)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Inside a ``with`` block, squidpy is imported without what its docstrings make docrep warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is not a valid key!", category=SyntaxWarning)
        yield


@contextmanager
def quiet_squidpy() -> Iterator[None]:
    """Inside a ``with`` block, squidpy's progress messages and deprecation warnings are kept from the user."""
    log = logging.getLogger("spatialdata._logging")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)


@contextmanager
def quiet_writing() -> Iterator[None]:
    """Inside a ``with`` block, stores are written without what anndata says of its next version at every element."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding|Writing zarr v2 data", category=UserWarning)
        yield


def progress(
    iterable: Iterable[Any] | None, desc: str, total: int | None = None, show: bool | None = None, **kw: Any
) -> Any:
    """Wrap an iterable in a progress bar; ``show=None`` follows ``settings.progress``."""
    from tqdm.auto import tqdm

    shown = settings.progress if show is None else show
    return tqdm(iterable, desc=desc, total=total, disable=not shown, **kw)
