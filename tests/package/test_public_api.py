"""What users see of the package: light to import, complete, documented, with the same signatures everywhere."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from package_source import ROOT, declared_all, is_type_checking, sealst

import sealst as sl
from sealst._keys import Keys

PACKAGES = ("datasets", "get", "io", "models", "pl", "pp", "tl")
MAX_POSITIONAL = 3


def public() -> Iterator[tuple[str, Any]]:
    """Every public name with what it stands for."""
    for package in PACKAGES:
        for name in declared_all(package):
            yield f"{package}.{name}", getattr(importlib.import_module(f"sealst.{package}"), name)


def lines(found: list[str]) -> str:
    return "\n".join(["", *found])


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
    assert shown_to_type_checkers("sealst") <= set(sl.__all__)
    assert set(PACKAGES) <= shown_to_type_checkers("sealst")
    for package in PACKAGES:
        assert shown_to_type_checkers(f"sealst.{package}") == set(declared_all(package)), package
        assert set(declared_all(package)) <= set(dir(getattr(sl, package)))


def shown_to_type_checkers(package: str) -> set[str]:
    block = next(node for node in sealst()[package].tree.body if is_type_checking(node))
    return {alias.name for node in block.body for alias in node.names}


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="module 'sealst' has no attribute 'nothing'"):
        _ = sl.nothing
    with pytest.raises(AttributeError, match="module 'sealst.tl' has no attribute 'nothing'"):
        _ = sl.tl.nothing


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


def docstring_faults(item: Any) -> Iterator[str]:
    if not callable(item):
        yield "public names are functions and classes; a table of facts is a function that returns it"
    doc = inspect.cleandoc(item.__doc__ or "")
    summary, *rest = doc.splitlines() or [""]
    if not summary.endswith("."):
        yield "the summary is one sentence on one line"
    if rest and rest[0]:
        yield "an empty line follows the summary"
    if inspect.isfunction(item):
        expected = [p.lstrip("*") for p in inspect.signature(item).parameters]
        if differ := sorted(set(documented_parameters(doc)) ^ set(expected)):
            yield f"the Parameters section and the signature differ: {differ}"
        if len(documented_parameters(doc)) != len(expected):
            yield "a parameter is described twice"
        for section in ("Returns", "Examples?"):
            if not re.search(rf"^{section}\n-+$", doc, flags=re.M):
                yield f"no section {section.rstrip('?')}"


def signature_faults(item: Any) -> Iterator[str]:
    if not inspect.isfunction(item):
        return
    parameters = inspect.signature(item).parameters
    positional = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > MAX_POSITIONAL:
        yield f"make keyword-only what is not data: {positional}"
    copy = parameters.get("copy")
    if copy and (copy.kind is not inspect.Parameter.KEYWORD_ONLY or copy.default is not False):
        yield "`copy` is keyword-only and False"
    if bare := [p.name for p in parameters.values() if p.annotation is inspect.Parameter.empty]:
        yield f"parameters without a type: {bare}"
    if inspect.signature(item).return_annotation is inspect.Signature.empty:
        yield "the result has no type"


def test_docstrings() -> None:
    wrong = [f"{name}: {fault}" for name, item in public() for fault in docstring_faults(item)]
    assert not wrong, lines(wrong)


def test_signatures() -> None:
    wrong = [f"{name}: {fault}" for name, item in public() for fault in signature_faults(item)]
    assert not wrong, lines(wrong)


def test_all_names_are_in_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    missing = [name for name, _ in public() if not re.search(rf"^\s*{re.escape(name)}\s*$", page, flags=re.M)]
    assert not missing, f"list in docs/api.md:{lines(missing)}"


def test_faults_of_docstrings_and_signatures_are_found() -> None:
    def bad(a, b: int, c: int, d: int, copy: bool = True):
        """No full stop
        Parameters
        ----------
        a, a
            Twice.
        """

    assert list(docstring_faults(bad)) == [
        "the summary is one sentence on one line",
        "an empty line follows the summary",
        "the Parameters section and the signature differ: ['b', 'c', 'copy', 'd']",
        "a parameter is described twice",
        "no section Returns",
        "no section Examples",
    ]
    assert list(signature_faults(bad)) == [
        "make keyword-only what is not data: ['a', 'b', 'c', 'd', 'copy']",
        "`copy` is keyword-only and False",
        "parameters without a type: ['a']",
        "the result has no type",
    ]


def test_keys_are_documented() -> None:
    page = (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")
    missing = []
    for name, value in vars(Keys).items():
        if name.startswith("_"):
            continue
        if isinstance(value, staticmethod):
            function = value.__func__
            value = function(*(f"<{p}>" for p in inspect.signature(function).parameters))
        for one in (value,) if isinstance(value, str) else value:
            if not re.search(rf"(?<![\w<]){re.escape(one)}(?![\w>])", page):
                missing.append(f"Keys.{name} = {one!r}")
    assert not missing, f"describe in docs/outputs.md: {missing}"
