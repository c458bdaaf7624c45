"""Names that change: the old one works and warns until the version that is stated; see the release policy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from sealst._errors import SealstDeprecationWarning
from sealst._logging import warn

F = TypeVar("F", bound=Callable[..., Any])


def renamed_arguments(*, removed_in: str, **names: str) -> Callable[[F], F]:
    """Decorate a function whose keyword arguments have new names; the old ones go on to work, with a warning.

    Parameters
    ----------
    removed_in
        First version without the old names.
    names
        New name of each old one.

    Returns
    -------
    The decorator. The signature shows the new names alone.

    Examples
    --------
    >>> @renamed_arguments(removed_in="9.0", n_top="n_genes")
    ... def select(data, *, n_genes=10):
    ...     return n_genes
    >>> select([], n_genes=3)
    3
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old in [name for name in kwargs if name in names]:
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got `{new}` and its old name `{old}`; pass `{new}` alone.")
                _warn(f"`{old}` of {function.__name__}() is now called `{new}`", removed_in)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def deprecated(*, removed_in: str, instead: str) -> Callable[[F], F]:
    """Decorate a function that will go.

    Parameters
    ----------
    removed_in
        First version without it.
    instead
        What to call, such as ``"sl.tl.embed"``.

    Returns
    -------
    The decorator. It says so in the docstring too.

    Examples
    --------
    >>> @deprecated(removed_in="9.0", instead="sl.tl.embed")
    ... def encode(data):
    ...     '''Embed.'''
    >>> "sl.tl.embed" in encode.__doc__
    True
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            _warn(f"{function.__name__}() is deprecated; use `{instead}`", removed_in)
            return function(*args, **kwargs)

        summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n")
        note = f"Deprecated: use ``{instead}``; this name goes in version {removed_in}."
        wrapper.__doc__ = f"{summary}\n\n{note}\n{rest}".rstrip()
        return wrapper  # type: ignore[return-value]

    return decorate


def _warn(what: str, removed_in: str) -> None:
    warn(f"{what}; this stops working in version {removed_in}.", SealstDeprecationWarning)
