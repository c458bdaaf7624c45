"""What is not imported: by the package, by help and refused commands, and by the first calls on a loaded model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from package_source import ROOT

#: a model that an earlier version saved, with LoRA
MODEL = ROOT / "tests" / "models" / "seal" / "format_3"
#: what takes long to import, and what only some calls need
HEAVY = ("torch", "timm", "lightning", "peft", "transformers", "scanpy", "squidpy", "sklearn", "matplotlib")
HEAVY_TABLES = ("pandas", "anndata", "spatialdata", "scipy.stats")
#: what training, figures and gene programs need, and nothing else
SPECIAL = (
    "lightning",
    "peft",
    "transformers",
    "scanpy",
    "squidpy",
    "sklearn",
    "scipy.stats",
    "decoupler",
    "matplotlib",
)


def imported(code: str, *names: str) -> list[str]:
    """Which of some modules a piece of code imports, in a process of its own."""
    told = f"{code}\nimport json, sys\nprint(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_packages_import_nothing_until_they_are_asked() -> None:
    code = (
        "import sealst as sl\nfor name in ('datasets', 'get', 'io', 'models', 'pl', 'pp', 'tl'): dir(getattr(sl, name))"
    )
    assert imported(code, *HEAVY, *HEAVY_TABLES) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Folder with what looks like a store, and results of earlier commands."""
    (tmp_path / "s1.zarr").mkdir()
    (tmp_path / "s1.zarr" / "zarr.json").write_text('{"attributes": {"spatialdata_attrs": {}}}')
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "s1.h5ad").touch()
    (tmp_path / "s1.h5ad").touch()
    return tmp_path


#: arguments, where {} is the place; the exit code
REFUSED = {
    "help": (["--help"], 0),
    "help of a command": (["finetune", "--help"], 0),
    "a path that is not there": (["predict", "{}/nothing.zarr", "--model", str(MODEL)], 2),
    "a wrong value": (["finetune", "{}/s1.zarr", "--encoder", "uni", "--epochs", "0", "--out", "{}/new"], 2),
    "a file to write": (["embed", "{}/s1.zarr", "--model", str(MODEL), "--out", "{}/s1.h5ad"], 3),
    "a folder of files to write": (["embed", "{}/s1.zarr", "--model", str(MODEL), "--out", "{}/done"], 3),
    "a table to write": (["pathways", "{}/s1.h5ad", "--net", "hallmark", "--out", "{}/done"], 3),
    "a run": (["finetune", "{}/s1.zarr", "--encoder", "uni", "--out", "{}/done"], 3),
    "a store to write": (["prepare", "{}/s1.zarr", "--out", "{}/s1.zarr"], 3),
    "a demonstration": (["demo", "--out", "{}/done"], 3),
    "synthetic sections": (["synthetic", "--out", "{}/done"], 3),
    "an evaluation": (["evaluate", "{}/s1.zarr", "--encoder", "uni", "--out", "{}/done"], 3),
    "an index": (["index", "{}/s1.zarr", "--out", "{}/done"], 3),
    "a gene of a query": (["retrieve", "{}/s1.zarr", "--model", str(MODEL), "--genes", "HER2X"], 3),
    "a gene of a signature": (["retrieve", "{}/s1.zarr", "--model", str(MODEL), "--signature", "{HER2X: 1}"], 3),
    "a gene to predict": (["predict", "{}/s1.zarr", "--model", str(MODEL), "--genes", "HER2X"], 3),
    "a folder without a model": (["predict", "{}/s1.zarr", "--model", "{}/done"], 3),
    "an encoder to train": (["finetune", "{}/s1.zarr", "--encoder", "vit_tinny", "--out", "{}/new"], 3),
    "an encoder to embed by": (["embed", "{}/s1.zarr", "--encoder", "vit_tinny"], 3),
    "a published encoder": (["encoders", "--show", "uni3"], 3),
}


def test_commands_refuse_before_anything_is_imported(place: Path) -> None:
    """All in one process: what one of them imported would be there from then on."""
    cases = {
        name: ([argument.replace("{}", str(place)) for argument in arguments], expected)
        for name, (arguments, expected) in REFUSED.items()
    }
    code = f"""
import json, sys
from sealst.cli import main
found = {{}}
for name, (arguments, _) in {cases!r}.items():
    sys.argv = ["sealst", *arguments]
    try:
        main()
    except SystemExit as stop:
        found[name] = [stop.code, [n for n in {(*HEAVY, *HEAVY_TABLES)!r} if n in sys.modules]]
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {name: [expected, []] for name, (_, expected) in cases.items()}, done.stderr


def test_a_loaded_model_is_used_without_what_training_needs() -> None:
    code = f"""
import numpy as np, sealst as sl
rng = np.random.default_rng(0)
xy = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 60.0 + 60
sdata = sl.io.from_arrays(
    rng.integers(0, 255, (300, 300, 3), dtype=np.uint8), rng.poisson(2, (16, 5)), xy,
    genes=["ERBB2", "EPCAM", "VIM", "COL1A1", "CD3E"], mpp=1.0, spot_um=50, section="s",
)
model = sl.models.load({str(MODEL)!r}, device="cpu")
sl.pp.pair_crops(sdata, crop_um=model.crop.crop_um, crop_px=model.crop.crop_px)
sl.tl.embed(sdata, model)
sl.tl.predict(sdata, model)
sl.tl.retrieve(sdata, model, "ERBB2")
assert "seal_similarity" in sdata["table"].obs
"""
    assert imported(code, *SPECIAL) == []
