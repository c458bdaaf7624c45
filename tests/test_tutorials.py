"""The notebooks run from top to bottom, and what is stored in them came from a complete run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.ipynb"))
#: bytes; pictures are stored as JPEG
MOST_BYTES = 3_000_000

nbformat = pytest.importorskip("nbformat", reason="notebooks need the docs extra")


def code_of(path: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")


OF_HER2ST = [path for path in NOTEBOOKS if "sl.datasets.her2st(" in code_of(path)]


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """One cache for all notebooks: a run of one is found by the next, as on a user's machine."""
    return tmp_path_factory.mktemp("notebook_cache")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored_and_free_of_errors(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum(any(kind.startswith("image/") for kind in o.get("data", {})) for o in outputs) >= 3
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_only_public_names_and_no_folders_of_a_machine(path):
    assert not re.findall(r"\bsealst\._|\bsl(?:\.\w+)*\._\w+", code_of(path))
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"/(?:root|home|work|Users)/[\w./-]+|site-packages", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_begins_with_what_it_does_not_show_and_ends_with_what_to_do_next(path):
    notes = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    assert notes[0].startswith("# ")
    assert "## Next" in notes[-1]
    if path.stem > "02":
        assert "**What it does not show.**" in notes[0]


@pytest.fixture
def run(shared_cache, tmp_path, request, monkeypatch):
    """Run a notebook from top to bottom."""
    client = pytest.importorskip("nbclient", reason="notebooks need the docs extra")
    monkeypatch.setenv("SEALST_CACHE", str(shared_cache))

    def execute(path: Path) -> None:
        if path in OF_HER2ST:
            monkeypatch.setenv("SEALST_SHARED", str(request.getfixturevalue("shared_dir")))
        notebook = nbformat.read(path, 4)
        client.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    return execute


# Two classes, so that `--dist loadscope` gives each a worker.
@pytest.mark.slow
class TestOfHer2st:
    """The first trains a model, which the others find in the cache."""

    @pytest.mark.parametrize("path", OF_HER2ST, ids=lambda p: p.stem)
    def test_notebook_runs(self, path, run):
        run(path)


@pytest.mark.slow
class TestOfDrawnSections:
    @pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p not in OF_HER2ST], ids=lambda p: p.stem)
    def test_notebook_runs(self, path, run):
        run(path)
