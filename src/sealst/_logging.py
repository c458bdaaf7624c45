"""The one logger of the package, warnings and progress bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sealst._errors import SealstWarning
from sealst._settings import settings


class _QuietIfConfigured(logging.Filter):
    # An application that configured logging shows our records itself; do not show them twice.
    def filter(self, record: logging.LogRecord) -> bool:
        return not logging.getLogger().handlers


def _make_logger() -> logging.Logger:
    # Its level is `settings.verbosity`.
    log = logging.getLogger("sealst")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_QuietIfConfigured())
        log.addHandler(handler)
    return log


logger = _make_logger()


def warn(message: str) -> None:
    """Warn the user, pointing at the line of their code where Python can tell."""
    warnings.warn(message, SealstWarning, stacklevel=3)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Inside a ``with`` block, squidpy is imported without what its docstrings make docrep warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is not a valid key!", category=SyntaxWarning)
        yield


def progress(
    iterable: Iterable[Any] | None, desc: str, total: int | None = None, show: bool | None = None, **kw: Any
) -> Any:
    """Wrap an iterable in a progress bar; ``show=None`` follows ``settings.progress``."""
    from tqdm.auto import tqdm

    shown = settings.progress if show is None else show
    return tqdm(iterable, desc=desc, total=total, disable=not shown, **kw)
