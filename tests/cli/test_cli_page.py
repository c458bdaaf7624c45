"""docs/command_options.md says what the commands say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import click
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("option_tables", DOCS / "option_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_option_of_every_command(module):
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.page() == page, "run `python docs/option_tables.py`"
    shared = (DOCS / "command_line.md").read_text(encoding="utf-8")
    for name, command in module.commands():
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S)
        assert section, f"no section on {name!r}"
        assert f"(command_options.md#{name.replace(' ', '-')})" in shared, f"the table of commands lacks {name!r}"
        for param in command.params:
            for option in getattr(param, "opts", []) if param.param_type_name == "option" else []:
                assert f"`{option}`" in section[1] or f"`{option}`" in shared, (name, option)


def test_tables_follow_the_commands(module):
    synthetic = dict(module.commands())["synthetic"]
    found = module.table(synthetic)
    assert "| `--n-sections` | `3` | Number of sections. |" in found
    assert "| `--out` | required | New folder. |" in found


def test_a_flag_that_neither_is_the_default_shows_none(module):
    rows = module.table(click.Command("c", params=[click.Option(["--x/--no-x"], default=None, help="X.")]))
    assert "| `--x`, `--no-x` |  | X. |" in rows
