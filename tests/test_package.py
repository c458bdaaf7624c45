"""House rules that a reader cannot check by eye: public surface, layers, imports, documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sealst as sl
from sealst._keys import Keys

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "sealst"
FILES = sorted(SRC.rglob("*.py"))
PACKAGES = ("datasets", "io", "models", "pl", "pp", "tl")
ADAPTERS = ("cli", "datasets", "io", "pl", "pp", "tl")
WITHOUT_TORCH = ("datasets", "io", "pl", "pp")

#: from the lowest layer to the highest; base files are the `_*.py` beside `__init__.py`, and the top is the package
#: itself with the command line, which calls the public functions as a user does
LAYERS = ("base", "_core", "_data", "models | _train", "_section", "adapters", "top")
#: files that know annotated data and that all adapters share
SECTION_FILES = ("_section", "_evaluation")

MAX_BODY, MAX_FILE, MAX_POSITIONAL = 60, 400, 3

#: import names whose distribution is called something else
DISTRIBUTIONS = {"PIL": "pillow", "faiss": "faiss-cpu", "openslide": "openslide-python", "sksurv": "scikit-survival"}
DISTRIBUTIONS |= {"yaml": "pyyaml"}
DISTRIBUTIONS |= {"mpl_toolkits": "matplotlib", "sklearn": "scikit-learn", "spatialdata_plot": "spatialdata-plot"}


# -- reading the source -----------------------------------------------------------------------------------------------
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def short(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def declared_all(package: str) -> list[str]:
    """`__all__` of a package, read without importing it so that one broken file does not stop the collection."""
    path = SRC / package / "__init__.py"
    for node in tree_of(path).body if path.exists() else []:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


PUBLIC = [(package, name) for package in PACKAGES for name in declared_all(package)]


def resolve(package: str, name: str) -> Any:
    return getattr(importlib.import_module(f"sealst.{package}"), name)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module, leaving out what only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        yield child
        yield from runtime_nodes(child)


def imports(path: Path, *, types_too: bool = False) -> list[tuple[str, int]]:
    """Modules that a file imports, with line numbers; `from sealst import pp` counts as `sealst.pp`."""
    found = []
    for node in ast.walk(tree_of(path)) if types_too else runtime_nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = path.relative_to(SRC.parent).with_suffix("").parts[: -node.level]
                module = ".".join([*parents, *filter(None, [module])])
            for alias in node.names:
                inner = SRC.parent.joinpath(*module.split("."), alias.name)
                is_module = module.startswith("sealst") and (inner.is_dir() or inner.with_suffix(".py").exists())
                found.append((f"{module}.{alias.name}" if is_module else module, node.lineno))
    return found


def layer_of(parts: tuple[str, ...]) -> str:
    """Layer of a module, given its dotted parts below `sealst`."""
    if not parts or parts[0] in ("__init__", "cli"):
        return "top"
    if parts[0] in ("models", "_train"):
        return "models | _train"
    if parts[0] in ADAPTERS:
        return "adapters"
    if parts[0] in SECTION_FILES:
        return "_section"
    return parts[0] if parts[0] in LAYERS else "base"


# -- importing --------------------------------------------------------------------------------------------------------
def test_import_is_fast_and_light() -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); import sealst; took = time.perf_counter() - start; "
        "print(json.dumps({'took': took, 'modules': sorted(sys.modules)}))"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"torch", "scanpy", "matplotlib.pyplot", "squidpy", "lightning", "timm"} & set(runs[0]["modules"])
    assert not heavy, f"`import sealst` imports {sorted(heavy)}"
    assert min(run["took"] for run in runs) < 1


def test_lazy_names_in_step() -> None:
    assert dir(sl) == sorted(sl.__all__)
    for name in sl.__all__:
        assert getattr(sl, name) is not None, name
    for package in PACKAGES:
        assert package in sl.__all__
        assert getattr(sl, package) is importlib.import_module(f"sealst.{package}")
    # What type checkers see is what users get.
    block = next(node for node in tree_of(SRC / "__init__.py").body if is_type_checking(node))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen <= set(sl.__all__)
    assert set(PACKAGES) <= seen


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="module 'sealst' has no attribute 'nothing'"):
        _ = sl.nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_package_exports(package: str) -> None:
    names = declared_all(package)
    assert names, f"sealst.{package} has no literal `__all__`"
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("_")]
    module = importlib.import_module(f"sealst.{package}")
    assert not set(names) - set(dir(module)), "named in `__all__`, absent in dir()"
    assert module.__doc__, "the package's docstring is missing"


# -- public surface ---------------------------------------------------------------------------------------------------
def documented_parameters(doc: str) -> list[str]:
    """Names in the Parameters section of a numpy docstring."""
    match = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", doc, flags=re.M | re.S)
    lines = match.group(1).splitlines() if match else []
    return [name.strip().lstrip("*") for line in lines if line[:1].strip() for name in line.split(":")[0].split(",")]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_docstring(package: str, name: str) -> None:
    item = resolve(package, name)
    assert callable(item), "public names are functions and classes; a table of facts is a function that returns it"
    doc = inspect.cleandoc(item.__doc__ or "")
    lines = doc.splitlines()
    assert lines, "no docstring"
    assert lines[0].endswith("."), "the summary is one sentence on one line"
    assert len(lines) == 1 or not lines[1], "an empty line follows the summary"
    if inspect.isfunction(item):
        expected = [p.lstrip("*") for p in inspect.signature(item).parameters]
        found = documented_parameters(doc)
        assert sorted(found) == sorted(expected), "the Parameters section and the signature differ"
        assert re.search(r"^Returns\n-+$", doc, flags=re.M), "no Returns section"
        assert re.search(r"^Examples?\n-+$", doc, flags=re.M), "no example"


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_in_api_page(package: str, name: str) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^\s*{package}\.{name}\s*$", page, flags=re.M), f"list {package}.{name} in docs/api.md"


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_signature(package: str, name: str) -> None:
    item = resolve(package, name)
    if not inspect.isfunction(item):
        return
    parameters = inspect.signature(item).parameters
    positional = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) <= MAX_POSITIONAL, f"make keyword-only what is not data: {positional}"
    if "copy" in parameters:
        assert parameters["copy"].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters["copy"].default is False
    bare = [p.name for p in parameters.values() if p.annotation is inspect.Parameter.empty]
    assert not bare, f"parameters without a type: {bare}"
    assert inspect.signature(item).return_annotation is not inspect.Signature.empty


def test_keys_are_documented() -> None:
    page = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    missing = []
    for name, value in vars(Keys).items():
        if name.startswith("_"):
            continue
        if isinstance(value, staticmethod):
            function = value.__func__
            value = function(*(f"<{p}>" for p in inspect.signature(function).parameters))
        if not re.search(rf"(?<![\w<]){re.escape(value)}(?![\w>])", page):
            missing.append(f"Keys.{name} = {value!r}")
    assert not missing, f"describe in docs/outputs.md: {missing}"


# -- layers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(SRC).with_suffix("").parts
    rank = LAYERS.index(layer_of(own))
    wrong = []
    for module, line in imports(path):
        if module != "sealst" and not module.startswith("sealst."):
            continue
        parts = tuple(module.split(".")[1:])
        if LAYERS.index(layer_of(parts)) > rank:
            wrong.append(f"line {line}: {layer_of(own)} imports {module} ({layer_of(parts)})")
        elif layer_of(parts) == layer_of(own) == "models | _train" and parts[0] != own[0]:
            wrong.append(f"line {line}: {own[0]} imports its sibling {module}; tl joins them")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_adapters_take_public_names_of_each_other(path: Path) -> None:
    own = path.relative_to(SRC).parts[0]
    if own not in ADAPTERS:
        return
    wrong = []
    for node in runtime_nodes(tree_of(path)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("sealst."):
            continue
        other, *inner = node.module.split(".")[1:]
        if other in ADAPTERS and other != own:
            names = [alias.name for alias in node.names if inner or alias.name not in declared_all(other)]
            wrong += [f"line {node.lineno}: {name} from {node.module}" for name in names]
    assert not wrong, f"{own} reaches into another adapter: {wrong}"


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(SRC).parts[0] in WITHOUT_TORCH], ids=short)
def test_no_torch_without_a_model(path: Path) -> None:
    torch_based = {"torch", "torchvision", "lightning", "timm", "peft"}
    wrong = [f"line {line}: {module}" for module, line in imports(path) if module.split(".")[0] in torch_based]
    assert not wrong, f"datasets, io, pl and pp work on stored data without torch: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_only_adapters_know_annotated_data(path: Path) -> None:
    if layer_of(path.relative_to(SRC).with_suffix("").parts) in ("_section", "adapters", "top"):
        return
    found = [
        f"line {line}: {module}"
        for module, line in imports(path, types_too=True)
        if module.split(".")[0] in ("anndata", "spatialdata")
    ]
    assert not found, f"kernels take arrays: {found}"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_third_party_imports_are_declared(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    declared = {re.split(r"[\[<>=!~ ;]", r, maxsplit=1)[0].lower() for r in wanted}
    missing = set()
    for module, _ in imports(path):
        top = module.split(".")[0]
        if top == "sealst" or top in sys.stdlib_module_names:
            continue
        if DISTRIBUTIONS.get(top, top).lower().replace("_", "-") not in declared:
            missing.add(top)
    assert not missing, f"declare in pyproject.toml: {sorted(missing)}"


# -- style ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", FILES, ids=short)
def test_no_print_bare_except_or_assert(path: Path) -> None:
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            found.append(f"line {node.lineno}: print")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        elif isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: assert")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", FILES, ids=short)
def test_nothing_left_for_later(path: Path) -> None:
    found = re.findall(r"\b(?:TODO|FIXME|XXX)\b.*", path.read_text(encoding="utf-8"))
    assert not found


@pytest.mark.parametrize("path", FILES, ids=short)
def test_sizes(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{lines} lines: split the file by subject"
    long = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            if length > MAX_BODY:
                long.append(f"{node.name} ({length} lines)")
    assert not long, f"bodies over {MAX_BODY} lines: {long}"


# -- project files ----------------------------------------------------------------------------------------------------
def readme_block(marker: str) -> str:
    """Text of the first fenced block after a comment in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"<!-- {marker} -->\s*```\w*\n(.*?)```", text, flags=re.S)
    assert match, f"the README has no `<!-- {marker} -->` followed by a fenced block"
    return match.group(1).strip()


def test_readme_demo_command() -> None:
    assert readme_block("demo-command") == "pip install . && sealst demo"


def test_readme_test_command_is_what_ci_runs() -> None:
    assert readme_block("test-command") == 'pip install -e ".[dev]" && pytest -n 2 --dist loadfile'
    assert "<!-- test-command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_version_in_step() -> None:
    assert f"\n## [{sl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {sl.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_lower_bounds_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    capped = [requirement for requirement in wanted if re.search(r"<|==|~=|!=", requirement)]
    assert not capped, "an upper bound here breaks somebody else's environment"
