"""Old names go on to work, with a warning that says until when; and they go when they are due."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import sealst as sl
from sealst._deprecation import deprecated, renamed_arguments

SRC = Path(sl.__file__).parent


@renamed_arguments(removed_in="9.0", n_top="n_genes", key="key_added")
def select(data, *, n_genes=10, key_added="X"):
    """Select."""
    return data, n_genes, key_added


def test_an_old_argument_works_and_warns_at_the_callers_line():
    with pytest.warns(
        sl.SealstDeprecationWarning, match="`n_top` of select.. is now called `n_genes`; .* version 9.0"
    ) as w:
        assert select(1, n_top=3) == (1, 3, "X")
    assert w[0].filename == __file__
    assert issubclass(w[0].category, FutureWarning)


def test_new_arguments_do_not_warn(recwarn):
    assert select(1, n_genes=2, key_added="Y") == (1, 2, "Y")
    assert not recwarn.list


def test_both_names_at_once_are_refused():
    with pytest.raises(TypeError, match=r"select\(\) got `n_genes` and its old name `n_top`"):
        select(1, n_top=3, n_genes=3)


def test_the_signature_shows_the_new_names():
    assert list(inspect.signature(select).parameters) == ["data", "n_genes", "key_added"]


def test_a_deprecated_function_works_warns_and_says_so():
    @deprecated(removed_in="9.0", instead="sl.tl.embed")
    def encode(x):
        """Encode.

        Parameters
        ----------
        x
            Data.
        """
        return x + 1

    with pytest.warns(sl.SealstDeprecationWarning, match=r"encode\(\) is deprecated; use `sl.tl.embed`; .* 9.0"):
        assert encode(1) == 2
    lines = inspect.cleandoc(encode.__doc__).splitlines()
    assert lines[:3] == ["Encode.", "", "Deprecated: use ``sl.tl.embed``; this name goes in version 9.0."]
    assert "Parameters" in lines


def due(source: str, version: str) -> list[int]:
    """Lines of the decorators whose names should be gone in a version."""
    numbers = tuple(map(int, version.split(".")[:2]))
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("renamed_arguments", "deprecated"):
            stated = next(k.value.value for k in node.keywords if k.arg == "removed_in")
            found += [node.lineno] if tuple(map(int, stated.split(".")[:2])) <= numbers else []
    return found


def test_what_is_due_is_found():
    source = '@deprecated(removed_in="0.3", instead="x")\ndef f(): ...\n'
    source += '@renamed_arguments(removed_in="0.10", a="b")\ndef g(): ...'
    assert due(source, "0.2.9") == []
    assert due(source, "0.3.0") == [1]
    assert due(source, "1.0.0") == [1, 3]


def test_nothing_is_overdue():
    late = {str(path): lines for path in SRC.rglob("*.py") if (lines := due(path.read_text(), sl.__version__))}
    assert not late, f"remove these names, as announced: {late}"
