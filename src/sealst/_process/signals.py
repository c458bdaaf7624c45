"""Requests to stop: Ctrl-C, SIGTERM of batch systems and process managers, SIGHUP of a terminal that closes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def exit_code(signum: int) -> int:
    """Exit code by which shells and batch systems know a process that a signal ended."""
    return 128 + signum


def _in_main_thread() -> bool:
    # Others can neither set handlers nor are they interrupted.
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    """Inside a ``with`` block, requests to stop go to a handler; one that is ignored (``nohup``) stays ignored."""
    before = {s: signal.getsignal(s) for s in STOPS}
    mine = [s for s, one in before.items() if one not in (signal.SIG_IGN, None)]
    try:
        for signum in mine:
            signal.signal(signum, handler)
        yield
    finally:
        for signum in mine:
            signal.signal(signum, before[signum])


@contextmanager
def raised(came: list[int]) -> Iterator[None]:
    """Inside a ``with`` block, a request to stop raises, so that what is half done is taken back.

    KeyboardInterrupt for Ctrl-C, else SystemExit with the signal's exit code. Libraries may turn either into another
    error, or lose it: `came` has the signals in any case.
    """
    owner = os.getpid()

    def handler(signum: int, frame: Any) -> None:
        if os.getpid() != owner:
            # A forked child has nothing to take back.
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
            return
        came.append(signum)
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        if signal.getsignal(signum) is not handler:
            # Lightning's, which called this one, stops at the end of the step: safer than in the midst of it, where
            # the lock of a queue may be left behind.
            return
        raise SystemExit(exit_code(signum))

    if not _in_main_thread():
        yield
        return
    with _handled(handler):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Inside a ``with`` block, requests to stop wait for its end; for what is worth finishing and soon is."""
    waiting: list[int] = []
    if not _in_main_thread():
        yield
        return
    try:
        with _handled(lambda signum, frame: waiting.append(signum)):
            yield
    finally:
        if waiting:
            signal.raise_signal(waiting[0])
