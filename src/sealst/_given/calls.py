"""What every public call owes its user: errors in our words, whatever it was given and whatever the system refuses."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from sealst._errors import DataError, SealstError
from sealst._system.refusals import refusal

#: arguments that say where something is or goes
_PATHS = ("path", "run_dir", "save")
#: how messages of ours begin that are no `SealstError`
_OURS = re.compile(r"`|Expected ")
_LOOKED_AT = (str, bytes, int, float, complex, list, tuple, set, dict, np.ndarray, np.generic, NoneType)


def word_methods(offered: type) -> None:
    """Have the public methods of one of our classes do what `worded` does."""
    if not offered.__module__.startswith("sealst."):
        return
    network = any(base.__module__.startswith("torch.") for base in offered.__mro__)
    for name, member in list(vars(offered).items()):
        function = member.__func__ if isinstance(member, classmethod) else member
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        # What a network computes is left to torch, which may compile it.
        if network and "path" not in inspect.signature(function).parameters:
            continue
        setattr(offered, name, classmethod(worded(function)) if member is not function else worded(function))


def worded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that says in our words what goes wrong.

    What the system refuses is told by `refusal`. An error of Python or of a library is told by the argument that is not
    of the type that the signature states, where there is one: arguments that work are never looked at.
    """
    if hasattr(function, "_words_errors"):
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if isinstance(error, SealstError) or (isinstance(error, TypeError) and _OURS.match(str(error))):
                raise
            try:
                given = inspect.signature(function).bind(*args, **kwargs).arguments
            except TypeError:
                # Arguments that the call does not have, or too few.
                raise error from None
            if told := refusal(error, path=_asked(given)) or _misfit(function, given):
                raise told from error
            raise

    call._words_errors = True  # type: ignore[attr-defined]
    return call


def _asked(given: Mapping[str, Any]) -> Path | None:
    """The path that a call was given, or that the object has whose method it is."""
    own = getattr(given["self"], "path", None) if "self" in given else None
    return next((Path(p) for p in (*map(given.get, _PATHS), own) if isinstance(p, str | os.PathLike)), None)


def _misfit(function: Callable[..., Any], given: Mapping[str, Any]) -> DataError | None:
    """What is wrong with the first argument that is not of its type; None where all are."""
    # Nobody waits for it whose call works.
    from sealst._given.schema import misfit

    for name, value in given.items():
        annotation = inspect.signature(function).parameters[name].annotation
        # Objects are looked at by the calls themselves.
        if isinstance(value, _LOOKED_AT) and isinstance(annotation, str):
            # Some names only type checkers import.
            with suppress(NameError):
                if told := misfit(eval(annotation, vars(sys.modules[function.__module__])), value, name=name):
                    return told
    return None
