"""The plan: imports only go down and never round, adapters know each other's public names, folders stay small."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from package_source import (
    ROOT,
    Modules,
    base_name,
    circle,
    declared_all,
    folder_sizes,
    import_graph,
    imports,
    read_package,
    requirements,
    runtime_nodes,
    sealst,
)

ADAPTERS = ("cli", "datasets", "get", "io", "pl", "pp", "tl")
WITHOUT_TORCH = ("_section", "datasets", "get", "io", "pl", "pp")
TORCH_BASED = ("lightning", "peft", "timm", "torch", "torchvision")

#: from the lowest layer to the highest; base files are the `_*.py` beside `__init__.py`, and the top is the package
#: itself with the command line, which calls the public functions as a user does. Packages of one layer do not know
#: each other: tl joins them.
LAYERS = ("base", "_core", "_data", "_section | _train | models", "adapters", "top")
SIBLINGS = ("_section", "_train", "models")

#: modules in a folder beside `__init__.py`; the command line has a file for each command
MOST_MODULES = 12
WITHOUT_LIMIT = ("sealst.cli",)

#: import names whose distribution is called something else
DISTRIBUTIONS = {"PIL": "pillow", "faiss": "faiss-cpu", "openslide": "openslide-python", "sksurv": "scikit-survival"}
DISTRIBUTIONS |= {"jscatter": "jupyter-scatter", "yaml": "pyyaml"}
DISTRIBUTIONS |= {"mpl_toolkits": "matplotlib", "sklearn": "scikit-learn", "spatialdata_plot": "spatialdata-plot"}


def layer_of(parts: tuple[str, ...]) -> str:
    """Layer of a module, given its dotted parts below `sealst`."""
    if not parts or parts[0] == "cli":
        return "top"
    if parts[0] in SIBLINGS:
        return "_section | _train | models"
    if parts[0] in ADAPTERS:
        return "adapters"
    return parts[0] if parts[0] in LAYERS else "base"


def upward_imports(modules: Modules) -> list[str]:
    """Imports of a higher layer, or of a package beside the own one in the same layer."""
    wrong = []
    for name, others in import_graph(modules).items():
        own = modules[name]
        layer = layer_of(own.parts)
        for other, line in others.items():
            parts = tuple(other.split(".")[1:])
            if LAYERS.index(layer_of(parts)) > LAYERS.index(layer):
                wrong.append(f"{own.at(line)}: {layer} imports {other} ({layer_of(parts)})")
            elif layer_of(parts) == layer and own.parts and own.parts[0] in SIBLINGS and parts[0] != own.parts[0]:
                wrong.append(f"{own.at(line)}: {own.parts[0]} imports its sibling {other}; tl joins them")
    return wrong


def lines(found: Iterable[str]) -> str:
    return "\n".join(["", *found])


# -- the plan ---------------------------------------------------------------------------------------------------------
def test_no_import_runs_in_a_circle(record_property: Callable[[str, object], None]) -> None:
    """At any depth: imports inside functions count too, what only type checkers see does not."""
    found = circle(sealst())
    sizes = {name: n for name, n in folder_sizes(sealst()).items() if name not in WITHOUT_LIMIT}
    largest = max(sizes, key=lambda name: sizes[name])
    # tests/conftest.py prints this at the end of a run.
    record_property(
        "summary", f"plan: {'a circle' if found else '0 circles'}, largest folder {sizes[largest]} modules ({largest})"
    )
    assert not found, lines(found)


def test_folders_stay_small() -> None:
    sizes = folder_sizes(sealst())
    large = [f"{name}: {n} modules" for name, n in sizes.items() if n > MOST_MODULES and name not in WITHOUT_LIMIT]
    assert not large, f"a folder holds at most {MOST_MODULES} modules; divide it by subject:{lines(large)}"


def test_imports_go_down() -> None:
    wrong = upward_imports(sealst())
    assert not wrong, lines(wrong)


def test_modules_are_imported_by_their_names() -> None:
    """No reader of imports sees a name that is put together: only the top, which may import everything, has one."""
    wrong = []
    for module in sealst().values():
        if layer_of(module.parts) == "top":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.JoinedStr | ast.BinOp) and ast.unparse(node).startswith(("f'sealst.", "'sealst.")):
                wrong.append(f"{module.at(node.lineno)}: {ast.unparse(node)}")
    assert not wrong, lines(wrong)


def test_adapters_take_public_names_of_each_other() -> None:
    wrong = []
    for module in sealst().values():
        own = module.parts[0] if module.parts else ""
        if own not in ADAPTERS:
            continue
        for node in runtime_nodes(module.tree):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("sealst."):
                continue
            other, *inner = (node.module or "").split(".")[1:]
            if other in ADAPTERS and other != own:
                names = [alias.name for alias in node.names if inner or alias.name not in declared_all(other)]
                wrong += [f"{module.at(node.lineno)}: {name} from {node.module}" for name in names]
    assert not wrong, f"an adapter reaches into another:{lines(wrong)}"


def test_only_adapters_know_annotated_data() -> None:
    found = []
    for module in sealst().values():
        layer = layer_of(module.parts)
        if layer in ("adapters", "top") or module.parts[0] in ("_section", "_evaluation"):
            continue
        found += [
            f"{module.at(line)}: {name}"
            for name, line in imports(module, sealst(), types_too=True)
            if name.split(".")[0] in ("anndata", "spatialdata")
        ]
    assert not found, f"kernels take arrays:{lines(found)}"


# -- torch ------------------------------------------------------------------------------------------------------------
def test_no_torch_without_a_model() -> None:
    wrong = [
        f"{module.at(line)}: {name}"
        for module in sealst().values()
        if module.parts and module.parts[0] in WITHOUT_TORCH
        for name, line in imports(module, sealst())
        if name.split(".")[0] in TORCH_BASED
    ]
    assert not wrong, f"{', '.join(WITHOUT_TORCH)} work on stored data without torch:{lines(wrong)}"


def test_nothing_that_they_import_brings_torch() -> None:
    """Every one of their modules, in one process: torch is not there afterwards."""
    names = [m.name for m in sealst().values() if m.parts and m.parts[0] in WITHOUT_TORCH]
    code = f"""
import importlib, json, sys
first = {{}}
for name in {names!r}:
    importlib.import_module(name)
    for heavy in {TORCH_BASED!r}:
        if heavy in sys.modules:
            first.setdefault(heavy, name)
print(json.dumps(first))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {}, "by the module that brought it"
    assert {"sealst._section.tables", "sealst.io", "sealst.pl", "sealst.pp", "sealst.datasets"} <= set(names)


def test_third_party_imports_are_declared() -> None:
    known = {base_name(r) for r in requirements()}
    missing = []
    for module in sealst().values():
        for name, line in imports(module, sealst()):
            top = name.split(".")[0]
            if top == "sealst" or top in sys.stdlib_module_names:
                continue
            if DISTRIBUTIONS.get(top, top).lower().replace("_", "-") not in known:
                missing.append(f"{module.at(line)}: {top}")
    assert not missing, f"declare in pyproject.toml:{lines(missing)}"


# -- the checks themselves, on packages that break the rules ----------------------------------------------------------
@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Modules]:
    """Write a package named `sealst` of files and their text, and read it."""

    def write(files: dict[str, str]) -> Modules:
        for name, text in files.items():
            path = tmp_path / "sealst" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return read_package(tmp_path / "sealst")

    return write


TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sealst import b\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": "import sealst.b", "b.py": "import numpy"}, []),
        (
            {"a.py": "import sealst.b", "b.py": "\nfrom sealst.a import f"},
            ["a.py:1 imports sealst.b", "b.py:2 imports sealst.a"],
        ),
        (
            {"a.py": "class A:\n    def f(self):\n        from sealst import b", "b.py": "import sealst.a"},
            ["a.py:3 imports sealst.b", "b.py:1 imports sealst.a"],
        ),
        (
            {"a.py": "import importlib\nm = importlib.import_module('sealst.b')", "b.py": "import sealst.a"},
            ["a.py:2 imports sealst.b", "b.py:1 imports sealst.a"],
        ),
        ({"a.py": TYPES_ONLY, "b.py": "import sealst.a"}, []),
        (
            {"a.py": f"{TYPES_ONLY}else:\n    import sealst.b", "b.py": "import sealst.a"},
            ["a.py:5 imports sealst.b", "b.py:1 imports sealst.a"],
        ),
        (
            {"p/__init__.py": "from sealst.p.x import f", "p/x.py": "", "q/__init__.py": "from sealst.p.x import f"},
            [],
        ),
        (
            {"p/__init__.py": "from .x import f", "p/x.py": "from . import g", "q/y.py": "from sealst.p import x"},
            ["p/__init__.py:1 imports sealst.p.x", "p/x.py:1 imports sealst.p"],
        ),
        (
            {
                "a.py": "import sealst.b",
                "b.py": "def f():\n    import sealst.c",
                "c.py": "if True:\n    import sealst.a",
            },
            ["a.py:1 imports sealst.b", "b.py:2 imports sealst.c", "c.py:2 imports sealst.a"],
        ),
    ],
    ids=["none", "two", "lazy", "by name", "types", "else", "init", "relative", "three"],
)
def test_a_circle_is_found_at_any_depth(package, files: dict[str, str], expected: list[str]) -> None:
    assert sorted(circle(package({"__init__.py": "", **files}))) == expected


def test_a_step_up_and_a_step_aside_are_found(package) -> None:
    files = {
        "__init__.py": "",
        "_files.py": "def f():\n    from sealst._core import x",
        "_core/x.py": "",
        "pp/y.py": "",
    }
    files |= {"_section/t.py": "import sealst.models.m", "models/m.py": "import sealst._core.x", "_data/d.py": ""}
    files |= {"_data/d.py": "import sealst as sl", "pp/y.py": "import sealst._section.t"}
    assert upward_imports(package(files)) == [
        "_data/d.py:1: _data imports sealst (top)",
        "_files.py:2: base imports sealst._core.x (_core)",
        "_section/t.py:1: _section imports its sibling sealst.models.m; tl joins them",
    ]


def test_modules_are_counted_by_folder(package) -> None:
    files = ["__init__.py", "_a.py", "p/__init__.py", "p/x.py", "p/y.py", "p/q/__init__.py", "p/q/z.py"]
    found = folder_sizes(package(dict.fromkeys(files, "")))
    assert found == {"sealst": 1, "sealst.p": 2, "sealst.p.q": 1}


def test_tests_mirror_the_plan() -> None:
    """Folders of the tests are rooms of the package without the underscore, and a file's name occurs once."""
    rooms = {tuple(p.lstrip("_") for p in name.split(".")[1:]) for name in folder_sizes(sealst())}
    files = [p for p in (ROOT / "tests").rglob("*.py") if p.name != "conftest.py"]
    folders = {p.parent.relative_to(ROOT / "tests").parts for p in files}
    assert not folders - rooms - {("package",)}, "no such room"
    names = [p.name for p in files]
    assert not sorted({n for n in names if names.count(n) > 1}), "a file's name occurs once"
