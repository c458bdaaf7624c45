"""``sealst evaluate`` as a pipeline calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import sealst as sl


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three raw sections on disk, without crops and layers."""
    folder = tmp_path_factory.mktemp("cohort")
    for sdata in sl.datasets.synthetic(3, size_um=500, mpp=2.0, pitch_um=60, n_genes=150):
        name = sdata.tables["table"].obs["section"].iloc[0]
        sdata.write(folder / f"{name}.zarr")
    return folder


def call(*args):
    code = "from sealst.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "evaluate", *map(str, args)], capture_output=True, text=True)


@pytest.mark.slow
def test_a_recipe_is_trained_in_folds_and_reported(cohort, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "encoder: vit_tiny_patch16_224\npretrained: false\nn_genes: 60\ngene_encoder: {hidden: [16]}\n"
        "params: {epochs: 1, views: 1, batch_size: 16, cache: none}\n"
    )
    options = ["--recipe", recipe, "--crop-um", 64, "--crop-px", 32, "--out", tmp_path / "out", "--json"]
    done = call(cohort, *options, "--net", gene_sets(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["facts"]["folds"] == ["patient-P1", "patient-P2", "patient-P3"]
    assert {"method": "mean", "metric": "pearson", "genes": "hvg50", "value": 0.0} in result["summary"]
    table = pd.read_csv(tmp_path / "out" / "evaluation.csv")
    assert {"adapted + ridge", "frozen + ridge"} <= set(table["method"])
    assert len(pd.read_csv(tmp_path / "out" / "pathways.csv"))
    assert "Evaluation" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    # Sections are prepared in memory: nothing is added to them on disk.
    assert "lognorm" not in sl.io.read(next(cohort.glob("*.zarr"))).tables["table"].layers
    again = call(cohort, *options)
    assert again.returncode == 3
    assert "exists; name another --out, or pass --overwrite" in again.stderr


def gene_sets(folder: Path) -> Path:
    path = folder / "programs.csv"
    sl.datasets.synthetic_net().to_csv(path, index=False)
    return path


def test_wrong_usage_is_told_from_refused_input(cohort, tmp_path):
    out = tmp_path / "out"
    assert call(cohort, "--out", out).returncode == 2
    assert "Give one of --model, --encoder and --recipe" in call(cohort, "--out", out).stderr
    refused = call(cohort, "--encoder", "vit_nonsense", "--out", out)
    assert refused.returncode == 3
    assert "vit_nonsense" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not out.exists()
