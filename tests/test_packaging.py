"""What is built and declared: wheel, sdist, extras, lowest versions, conda recipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "sealst"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = ("index", "log", "notebook", "plot", "slide", "wsi")

#: modules that only extras bring
MODULES = {
    "index": ("faiss",),
    "log": ("tensorboard",),
    "notebook": ("jscatter",),
    "plot": ("spatialdata_plot",),
    "slide": ("torchmil", "sksurv"),
    "wsi": ("openslide", "wsidata"),
}
#: files that ask whether a module of an extra is there and go on without it, so that they need not name the extra
QUIET = {"_train/engine.py", "_train/callbacks.py"}


def declared(*extras: str, base: bool = True) -> dict[str, str]:
    """Lower bounds by distribution; names of the package itself are left out."""
    project = PROJECT["project"]
    wanted = [
        *(project["dependencies"] if base else ()),
        *(r for e in extras for r in project["optional-dependencies"][e]),
    ]
    return dict(r.split(">=") for r in wanted if not r.startswith("sealst["))


# -- archives ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    wheel, sdist = (pytest.importorskip(f"hatchling.builders.{kind}") for kind in ("wheel", "sdist"))
    folder = tmp_path_factory.mktemp("dist")
    made = [next(iter(b(str(ROOT)).build(directory=str(folder)))) for b in (wheel.WheelBuilder, sdist.SdistBuilder)]
    return Path(made[0]), Path(made[1])


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as file:
        names = set(file.namelist())
        metadata = file.read(f"sealst-{sl.__version__}.dist-info/METADATA").decode()
    own = {p.relative_to(SRC.parent).as_posix() for p in SRC.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {n for n in names if ".dist-info/" not in n} == own
    assert "sealst/py.typed" in own
    assert any(n.startswith("sealst/_core/genes/tables/") for n in own)
    assert f"sealst-{sl.__version__}.dist-info/licenses/LICENSE" in names
    assert {f"Provides-Extra: {extra}" for extra in EXTRAS} <= set(metadata.splitlines())


def test_the_page_on_installation_lists_every_extra():
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    listed = {name for row in re.findall(r"^\| (`.*?) \|", page, flags=re.M) for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(PROJECT["project"]["optional-dependencies"])


def test_the_sdist_holds_what_its_tests_read(archives):
    with tarfile.open(archives[1]) as file:
        names = {n.partition("/")[2] for n in file.getnames()}
    needed = ["pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".ci/run"]
    needed += [
        "conda/recipe.yaml",
        "tests/conftest.py",
        "tests/lowest-constraints.txt",
        "docs/api.md",
        "src/sealst/py.typed",
    ]
    assert set(needed) <= names
    assert not [
        n
        for n in names
        if "__pycache__" in n or n.startswith(("docs/_build", ".")) and not n.startswith((".ci/", ".git"))
    ]


HIDDEN = f"""
import sys
from importlib.machinery import PathFinder
class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in {sorted(m for own in MODULES.values() for m in own)!r}
        return None if hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Others
"""


def without_extras(code: str, source: Path) -> str:
    """Run code in a process in which the modules of all extras are absent."""
    environ = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", HIDDEN + code], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_without_extras(archives, tmp_path):
    with zipfile.ZipFile(archives[0]) as file:
        file.extractall(tmp_path)
    code = """
import sealst as sl
for package in sl._SUBMODULES:
    for name in getattr(sl, package).__all__:
        getattr(getattr(sl, package), name)
print(sl.__file__)
import sys
from sealst.cli import main
sys.argv = ["sealst", "check", "--help"]
main()
"""
    out = without_extras(code, tmp_path)
    assert out.startswith(str(tmp_path))
    assert "Usage:" in out


def test_errors_name_the_extra(tmp_path):
    code = f"""
import numpy as np, sealst as sl
from pathlib import Path
slide = Path({str(tmp_path)!r}) / "slide.ndpi"
slide.write_bytes(b"x")
from sealst._data.index.approximate import faiss_module
for call in (lambda: sl.io.open_image(slide), faiss_module):
    try:
        call()
    except sl.SealstError as error:
        print(error)
"""
    first, second = without_extras(code, SRC.parent).splitlines()
    assert "sealst[wsi]" in first
    assert "sealst[index]" in second


def test_every_import_of_an_extra_names_it():
    silent = []
    for path in SRC.rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(SRC).as_posix()
        for extra, modules in MODULES.items():
            uses = re.search(rf"^\s*(?:import|from) (?:{'|'.join(modules)})\b", text, flags=re.M)
            if uses and f"sealst[{extra}]" not in text and f"``{extra}``" not in text and name not in QUIET:
                silent.append(f"{name}: {uses.group().strip()} (extra {extra})")
    assert not silent, f"say in the error which extra is missing: {silent}"


# -- versions ---------------------------------------------------------------------------------------------------------
def test_lowest_versions_in_step():
    """The file holds exactly the lower bounds, so that an environment made with it tests what is declared."""
    lines = (ROOT / "tests" / "lowest-constraints.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert found == declared(*EXTRAS, "test")


def test_every_bound_is_a_lower_bound_with_a_version():
    for extra in PROJECT["project"]["optional-dependencies"].values():
        for requirement in extra:
            assert requirement.startswith("sealst[") or re.fullmatch(r"[a-z0-9-]+>=\d[\d.]*", requirement), requirement


def test_conda_recipe_in_step():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    names = recipe["extra"]["names"]
    run = [r for r in recipe["requirements"]["run"] if not r.startswith("python ")]
    found = dict(r.split(" >=") for r in run)
    assert found == {names.get(name, name): bound for name, bound in declared().items()}
    assert recipe["context"]["version"] == sl.__version__
    assert f">={recipe['context']['python_min']}" == PROJECT["project"]["requires-python"]
    assert recipe["about"]["license"] == PROJECT["project"]["license"]
    assert recipe["build"]["python"]["entry_points"] == [f"sealst = {PROJECT['project']['scripts']['sealst']}"]
    host = [r for r in recipe["requirements"]["host"] if r.startswith("hatchling")]
    assert [r.replace(" ", "") for r in host] == PROJECT["build-system"]["requires"]


def test_citation_is_valid():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(cff)
    assert cff["license"] == PROJECT["project"]["license"]
    for entry in [cff, *cff["references"]]:
        assert all("name" in a or "family-names" in a for a in entry["authors"])
        assert all({"type", "value"} == set(i) for i in entry.get("identifiers", []))
    for reference in cff["references"]:
        assert {"type", "title", "authors"} <= set(reference)


# -- what the repository's host runs and shows ------------------------------------------------------------------------
HOST = ROOT / ".github"


@pytest.mark.skipif(not HOST.is_dir(), reason="the sdist holds no workflows")
def test_actions_are_pinned_to_commits_and_say_which_version():
    lines = [line for p in sorted(HOST.glob("workflows/*")) for line in p.read_text().splitlines() if "uses:" in line]
    assert len(lines) > 8
    assert not [line for line in lines if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+", line)]
    # One commit for an action, wherever it is used.
    pins = {tuple(re.search(r"uses: (\S+)@(\S+)", line).groups()) for line in lines}
    assert len(pins) == len({name for name, _ in pins})


@pytest.mark.skipif(not HOST.is_dir(), reason="the sdist holds no workflows")
def test_a_release_needs_no_stored_password():
    jobs = yaml.safe_load((HOST / "workflows" / "release.yml").read_text())["jobs"]
    steps = {name: yaml.safe_dump(job["steps"]) for name, job in jobs.items()}
    assert "twine check --strict" in steps["build"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not [name for name, text in steps.items() if "secrets." in text or "password" in text]


@pytest.mark.skipif(not HOST.is_dir(), reason="the sdist holds no workflows")
def test_the_declared_pythons_are_tested():
    declared = {c.rsplit(" ", 1)[1] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c}
    tested = yaml.safe_load((HOST / "workflows" / "test.yml").read_text())["jobs"]["all"]["strategy"]["matrix"]
    assert set(tested["python"]) == declared


@pytest.mark.skipif(not HOST.is_dir(), reason="the sdist holds no templates")
def test_templates_ask_for_what_there_is():
    texts = [p.read_text() for p in HOST.glob("ISSUE_TEMPLATE/*.yml")]
    forms = [yaml.safe_load(text) for text in texts]
    assert {"Something is wrong", "Something is missing"} <= {form.get("name") for form in forms}
    commands = {name for text in texts for name in re.findall(r"`sealst (\w+)`", text)}
    names = {name for text in texts for name in re.findall(r"`sl\.([\w.]+)", text)}
    assert commands == {"check", "info"}
    assert all((SRC / "cli" / f"_{name}.py").is_file() for name in commands)
    assert all(attrgetter(name)(sl) for name in names)


def test_hosted_docs_are_those_that_are_tested():
    file = ROOT / ".readthedocs.yaml"
    if not file.is_file():
        pytest.skip("the sdist holds no settings of a host")
    told = yaml.safe_load(file.read_text())
    assert told["sphinx"] == {"configuration": "docs/conf.py", "fail_on_warning": True}
    assert told["python"]["install"][0]["extra_requirements"] == ["docs"]


def test_archives_pass_a_strict_check(archives):
    pytest.importorskip("twine")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
