"""``sealst slides embed``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner

import sealst as sl
from sealst.cli._main import cli


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One slide that can be read and one that is missing."""
    rng = np.random.default_rng(0)
    image = np.full((400, 400, 3), 242, dtype=np.uint8)
    grain = rng.normal(0, 30, (30, 30, 1)).repeat(10, 0).repeat(10, 1)
    image[50:350, 50:350] = np.clip(np.array([170, 110, 170]) + grain, 0, 255).astype(np.uint8)
    options = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER", "tile": (256, 256), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", image, **options)
    frame = pd.DataFrame({"path": ["a.tif", "none.svs"], "patient": ["p", "q"], "grade": [1, 2]})
    frame.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder with stored weights."""
    import timm

    folder = tmp_path_factory.mktemp("encoder")
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def run(*args: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        return CliRunner().invoke(cli, ["slides", "embed", *args])


def test_slides_from_the_shell(manifest: Path, encoder: str, tmp_path: Path) -> None:
    options = ("--out", str(tmp_path / "out"), "--encoder", encoder, "--crop-um", "64", "--crop-px", "32", "--json")
    done = run(str(manifest), *options)
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert (found["slides"], found["failed"]) == (2, 1)
    assert found["rows"][0]["status"] == "done"
    assert found["rows"][0]["grade"] == 1
    assert found["tiles"] == found["rows"][0]["n_tiles"] > 5
    assert found["rows"][1]["status"] == "failed"
    pd.read_csv(manifest).iloc[:1].to_csv(manifest, index=False)
    again = run(str(manifest), *options[:-1], "-q", "--prune")
    assert again.exit_code == 0, again.output
    assert list(pd.read_csv(tmp_path / "out" / "manifest.csv")["slide"]) == ["a"]
    assert again.stdout.startswith("1 of 1 slides, ")


def test_blank_slides_do_not_fail_a_cohort(manifest: Path, encoder: str, tmp_path: Path) -> None:
    glass = np.full((400, 400, 3), 242, np.uint8)
    tifffile.imwrite(tmp_path / "glass.tif", glass, photometric="rgb", resolution=(1e4, 1e4), resolutionunit=3)
    pd.DataFrame({"path": ["a.tif", "glass.tif"], "patient": ["p", "q"]}).to_csv(manifest, index=False)
    options = ("--out", str(tmp_path / "out"), "--encoder", encoder, "--crop-um", "64", "--crop-px", "32")
    done = run(str(manifest), *options, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["slides"], found["failed"], found["blank"]) == (2, 0, 1)
    assert [row["status"] for row in found["rows"]] == ["done", "blank"]
    again = run(str(manifest), *options, "-q")
    assert again.exit_code == 0
    assert again.stdout.startswith("1 of 2 slides, ")
    assert "1 slide(s) are blank." in again.stdout


def test_genes_are_given_as_to_other_commands(manifest: Path, tmp_path: Path, monkeypatch) -> None:
    asked = {}

    def embed_slides(*args, **kwargs):
        asked.update(kwargs)
        raise sl.DataError("asked")

    monkeypatch.setattr("sealst.tl.embed_slides", embed_slides)
    run(str(manifest), "--out", str(tmp_path / "o"), "--encoder", "uni", "--expression", "--genes", "ERBB2,VIM")
    assert asked["genes"] == ["ERBB2", "VIM"]


def test_usage(manifest: Path, tmp_path: Path) -> None:
    assert run("--help").exit_code == 0
    assert "Give one of --model and --encoder" in run(str(manifest), "--out", str(tmp_path / "out")).output
    assert run(str(tmp_path / "none.csv"), "--out", "x", "--encoder", "y").exit_code == 2
