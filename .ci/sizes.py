"""Name long files and bodies: a smell, not an error. `python .ci/sizes.py FILE...`, all of src by default."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

LONG_FILE, LONG_BODY = 400, 40


def smells(path: Path) -> list[str]:
    """A line for the file if it is long, and one for each long body in it."""
    text = path.read_text(encoding="utf-8")
    n = len(text.splitlines())
    found = [f"{path}: {n} lines"] if n > LONG_FILE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if length > LONG_BODY:
                found.append(f"{path}:{node.lineno}: the body of {node.name} has {length} lines")
    return found


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:] or sorted(map(str, Path("src").rglob("*.py")))):
        for line in smells(file):
            print(line)
