"""What no line of the package does."""

from __future__ import annotations

import ast
import re

from package_source import sealst


def test_no_print_bare_except_or_assert() -> None:
    found = []
    for module in sealst().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                found.append(f"{module.at(node.lineno)}: print")
            elif isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{module.at(node.lineno)}: bare except")
            elif isinstance(node, ast.Assert):
                found.append(f"{module.at(node.lineno)}: assert")
    assert not found, "\n".join(found)


def test_nothing_left_for_later() -> None:
    found = [
        f"{module.at(i)}: {line.strip()}"
        for module in sealst().values()
        for i, line in enumerate(module.text.splitlines(), 1)
        if re.search(r"\b(?:TODO|FIXME|XXX)\b", line)
    ]
    assert not found, "\n".join(found)


def test_modules_start_with_what_they_are_for() -> None:
    silent = [module.at(1) for module in sealst().values() if module.tree.body and not ast.get_docstring(module.tree)]
    assert not silent, "\n".join(silent)
