"""Machine code: without the interpreter lock, and also where it cannot be kept."""

from __future__ import annotations

import logging

import pytest

from sealst._core import compiled as compiled_module
from sealst._core.compiled import compiled


def double(x: int) -> int:
    return 2 * x


def test_where_machine_code_cannot_be_kept_it_is_made_nonetheless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As numba refuses where neither the package's folder nor the user's can be written."""
    original = compiled_module.njit

    def refusing(*signature, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available for file 'resample.py'")
        return original(*signature, **options)

    monkeypatch.setattr(compiled_module, "njit", refusing)
    made = compiled()(double)
    assert made(4) == 8
    assert made.targetoptions["nogil"]


def test_a_function_runs_as_it_is_where_numba_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "njit", lambda *signature, **options: lambda function: function)
    assert compiled("int64(int64)")(double)(4) == 8


def test_it_is_told_that_a_function_is_compiled(tmp_path, monkeypatch, caplog) -> None:
    source = tmp_path / "fresh.py"
    source.write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import fresh  # type: ignore[import-not-found]

    caplog.set_level(logging.INFO, logger="sealst")
    for expected in (1, 0):
        caplog.clear()
        assert compiled("int64(int64)")(fresh.double)(4) == 8
        assert sum("compiled fresh.double" in one for one in caplog.messages) == expected
