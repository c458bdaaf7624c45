"""Parts of docstrings that are written once: all are used, and none is left unfilled."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

import sealst as sl
from sealst import _docs
from sealst._docs import documented

SRC = Path(sl.__file__).parent
MARK = re.compile(r"^ *%\((.+)\)s$", flags=re.M)


def test_every_part_is_shared():
    used = Counter(mark for path in SRC.rglob("*.py") for mark in MARK.findall(path.read_text(encoding="utf-8")))
    known = {*_docs.PARAMETERS, *_docs.SECTIONS}
    assert set(used) == known
    assert not [mark for mark, times in used.items() if times < 2], "a part of one function stands in that function"


def test_no_mark_is_left_in_a_public_docstring():
    for package in sl._SUBMODULES:
        module = importlib.import_module(f"sealst.{package}")
        for name in module.__all__:
            item = getattr(module, name)
            owned = vars(item).values() if inspect.isclass(item) else ()
            for one in (item, *owned):
                assert not MARK.search(inspect.getdoc(one) or ""), f"{package}.{name}: decorate with `documented`"


def test_parts_are_filled_where_their_mark_stands():
    @documented
    def function(region: str | None = None, *, save: str | None = None) -> None:
        """Draw.

        Parameters
        ----------
        %(shown.region)s
        %(figure)s

        Examples
        --------
        >>> "%(region)s" % {"region": 1}
        '1'
        """

    lines = inspect.getdoc(function).splitlines()
    assert lines[4:7] == ["region", "    Region to show; needed where the table has several.", "save"]
    assert max(map(len, lines)) <= 120
    assert lines[lines.index("Returns") + 2] == "The Figure, or `ax` where it was given."
    assert lines[-2:] == ['>>> "%(region)s" % {"region": 1}', "'1'"], "a mark within a line is text"


def test_unknown_parts_are_refused():
    def function() -> None:
        """Draw.

        %(nothing)s
        """

    with pytest.raises(KeyError, match="nothing"):
        documented(function)


def test_without_docstrings_nothing_happens():
    def function() -> None: ...

    assert documented(function) is function
    assert function.__doc__ is None


def test_promises_are_held_by_tests_that_exist():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "guide" / "safety.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        held = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert held, f"no test holds: {row}"
        for file, name in held:
            assert f"\ndef {name}(" in (root / file).read_text(encoding="utf-8"), f"{file} has no {name}"
