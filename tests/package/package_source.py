"""The source of a package as the house rules read it: modules, what they import, circles, folders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "sealst"


@dataclass(frozen=True)
class Module:
    """A file of a package; an ``__init__.py`` is the module of its folder."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def parts(self) -> tuple[str, ...]:
        """Dotted parts below the package."""
        return tuple(self.name.split(".")[1:])

    def at(self, line: int) -> str:
        """Where a finding is, below the package: `pp/_split.py:12`."""
        return f"{'/'.join((*self.parts, '__init__') if self.is_package else self.parts)}.py:{line}"

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


Modules = Mapping[str, Module]


def read_package(folder: Path) -> dict[str, Module]:
    """All modules of a package by dotted name."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path, text, ast.parse(text, filename=str(path)))
    return modules


@cache
def sealst() -> dict[str, Module]:
    """The modules of this package, read once."""
    return read_package(SRC)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module and every function in it, leaving out what only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            for node in child.orelse:
                yield node
                yield from runtime_nodes(node)
        else:
            yield child
            yield from runtime_nodes(child)


def offers_lazily(module: Module) -> bool:
    """Whether a package gets what it offers by `sealst._given.offered`."""
    calls = (node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    return module.is_package and any(isinstance(called, ast.Name) and called.id == "offered" for called in calls)


def imports(module: Module, modules: Modules, *, types_too: bool = False) -> list[tuple[str, int]]:
    """What a module imports at any depth, with line numbers.

    `from sealst import pp` counts as `sealst.pp`, and so does a call with that name: `import_module("sealst.pp")`. A
    package that offers its names when they are asked for imports what it shows to type checkers.
    """
    found: list[tuple[str, int]] = []
    types_too = types_too or offers_lazily(module)
    for node in ast.walk(module.tree) if types_too else runtime_nodes(module.tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = module.name.split(".")
                parents = parents[: len(parents) - node.level + module.is_package]
                source = ".".join([*parents, *filter(None, [source])])
            inner = (f"{source}.{alias.name}" for alias in node.names)
            found += [(name if name in modules else source, node.lineno) for name in inner]
        elif isinstance(node, ast.Call):
            texts = (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
            found += [(text, node.lineno) for text in texts if "." in text and text in modules]
    return found


def import_graph(modules: Modules) -> dict[str, dict[str, int]]:
    """Modules of the package that each module imports, with the line of the first import."""
    graph: dict[str, dict[str, int]] = {name: {} for name in modules}
    for name, module in modules.items():
        for other, line in imports(module, modules):
            if other in modules:
                graph[name].setdefault(other, line)
    return graph


def circle(modules: Modules) -> list[str]:
    """A circle of imports, each line with the import that leads to the next; empty where there is none."""
    graph = import_graph(modules)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # graphlib lists what is imported before what imports it.
        names = error.args[1][::-1]
        pairs = zip(names, names[1:], strict=False)
        return [f"{modules[one].at(graph[one][other])} imports {other}" for one, other in pairs]
    return []


def folder_sizes(modules: Modules) -> dict[str, int]:
    """Number of modules in each folder, ``__init__.py`` aside."""
    sizes: dict[str, int] = {}
    for name, module in modules.items():
        folder = name if module.is_package else name.rpartition(".")[0]
        sizes[folder] = sizes.get(folder, 0) + (not module.is_package)
    return sizes


def declared_all(package: str) -> list[str]:
    """`__all__` of a package, read without importing it so that one broken file does not stop the collection."""
    module = sealst().get(f"sealst.{package}")
    for node in module.tree.body if module else []:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def requirements() -> list[str]:
    """Everything that the project requires, extras included."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]


def base_name(requirement: str) -> str:
    """`spatialdata` of `spatialdata>=0.7.3`."""
    return re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0].lower()
