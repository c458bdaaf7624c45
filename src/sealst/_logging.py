"""The one logger of the package, warnings and progress bars."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
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


#: seconds after which work that shows no bar says again how far it is
_SILENCE_S = 60.0


def progress(
    iterable: Iterable[Any] | None,
    desc: str,
    total: int | None = None,
    show: bool | None = None,
    *,
    lines: bool = True,
    **kw: Any,
) -> Any:
    """Wrap an iterable in a progress bar; ``show=None`` follows ``settings.progress``.

    Where that shows none, as outside of terminals and notebooks, a line a minute goes to the log in its place, unless
    whoever asks has `lines` of its own. ``show=False`` is silent.
    """
    if show is None and not settings.progress and lines:
        return _as_lines()(iterable, desc=desc, total=total, **kw)
    from tqdm.auto import tqdm

    shown = settings.progress if show is None else show
    return tqdm(iterable, desc=desc, total=total, disable=not shown, **kw)


@cache
def _as_lines() -> Any:
    """A progress bar of tqdm that is drawn once a minute, as a line of the log."""
    from tqdm.std import tqdm

    class Lines(tqdm):
        last_print_t: float
        disable: bool
        # Its thread looks after bars that are drawn many times a second.
        monitor_interval = 0

        def __init__(self, *args: Any, **kw: Any) -> None:
            super().__init__(*args, mininterval=_SILENCE_S, delay=_SILENCE_S, miniters=0, **kw)

        def display(self, *_: Any, **__: Any) -> None:
            state = self.format_dict
            done, elapsed, rate = state["n"], state["elapsed"], state["rate"]
            said = f"{done:.4g}" if isinstance(done, float) else f"{done}"
            if self.total:
                said += f" of {self.total} ({done / self.total:.0%})"
                speed = rate or done / elapsed
                soon = f", about {_minutes((self.total - done) / speed)} left" if speed else ""
            else:
                soon = ""
            logger.info("%s: %s after %s%s", self.desc.removesuffix(": "), said, _minutes(elapsed), soon)

        def refresh(self, *args: Any, **kw: Any) -> None:
            # Of what is redrawn for a new text beside it, the same line would be said over and over.
            if self._time() - self.last_print_t >= self.mininterval:
                super().refresh(*args, **kw)
                self.last_print_t = self._time()

        def close(self) -> None:
            if not self.disable:
                self.disable = True
                self._decr_instances(self)

    return Lines


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
