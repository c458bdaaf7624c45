"""What a package offers, imported when it is first asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from sealst._given.calls import word_methods, worded


def offered(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package, which imports what it offers for type checkers alone.

    What stands under its ``if TYPE_CHECKING:`` is imported when somebody asks for it, so that nobody waits for the
    libraries of calls that are not made. What goes wrong in them is said in our words (`sealst._given.calls`).

    Parameters
    ----------
    package
        Its ``__name__``.

    Examples
    --------
    In the package's ``__init__.py``::

        if TYPE_CHECKING:
            from sealst.get._hits import hits
        else:
            __getattr__, __dir__ = offered(__name__)
    """
    where = dict(_imported(package))

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        importlib.import_module(where[name])
        # Classes too that come with it: calls return them, and nobody may ever ask for them by name.
        for one, module in where.items():
            if module in sys.modules and hasattr(sys.modules[module], one):
                setattr(sys.modules[package], one, _in_our_words(sys.modules[module], one))
        return getattr(sys.modules[package], name)

    return get, lambda: sorted({*vars(sys.modules[package]), *where})


def _imported(package: str) -> Iterator[tuple[str, str]]:
    """Names that a package imports for type checkers, and the modules they come from."""
    for node in ast.parse(inspect.getsource(sys.modules[package])).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    yield from ((alias.name, str(line.module)) for alias in line.names)


def _in_our_words(module: Any, name: str) -> Any:
    found = getattr(module, name)
    if inspect.isclass(found):
        word_methods(found)
    elif inspect.isfunction(found):
        found = worded(found)
        # Where it is defined too: that is where others look for it when they unpickle it.
        setattr(module, name, found)
    return found
