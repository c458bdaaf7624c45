"""``sealst evaluate`` as a pipeline calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import sealst as sl
from sealst.cli._main import cli


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
    done = call(cohort, *options, "--net", gene_sets(tmp_path), "--train-fractions", 0.5, "--n-draws", 1)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["facts"]["folds"] == ["patient-P1", "patient-P2", "patient-P3"]
    assert {"method": "mean", "metric": "pearson", "genes": "hvg50", "value": 0.0} in result["summary"]
    table = pd.read_csv(tmp_path / "out" / "evaluation.csv")
    assert {"adapted + ridge", "frozen + ridge"} <= set(table["method"])
    assert len(pd.read_csv(tmp_path / "out" / "pathways.csv"))
    assert set(pd.read_csv(tmp_path / "out" / "curve.csv")["fraction"]) == {0.5, 1.0}
    assert "Evaluation" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    # Sections are prepared in memory: nothing is added to them on disk.
    assert "lognorm" not in sl.io.read(next(cohort.glob("*.zarr"))).tables["table"].layers
    again = call(cohort, *options)
    assert again.returncode == 3
    assert "exists; name another --out, or pass --overwrite" in again.stderr


@pytest.fixture
def asked(monkeypatch):
    """What `tl.evaluate` is called with; it evaluates nothing."""
    calls = []

    def evaluate(*args, **kwargs):
        calls.append((*args, kwargs | {"device of a recipe": sl.settings.device}))
        raise sl.DataError("asked")

    monkeypatch.setattr("sealst.tl.evaluate", evaluate)
    monkeypatch.setattr("sealst.models.build_encoder", lambda key, pool: (key, pool))
    return calls


def run(*arguments, code=3):
    done = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_several_stores_and_options_named_as_in_python(cohort, tmp_path, asked):
    stores = sorted(cohort.glob("*.zarr"))
    options = ("--encoder", "uni", "--crop-um", 64, "--crop-px", 32, "--net", "hallmark", "--out", tmp_path / "out")
    more = ("--near-um", 250, "--control", "--device", "cpu", "--train-fractions", "0.25,0.5", "--n-draws", 2)
    run(*stores[:2], "--test", stores[2], "--seeds", "1,2", "--baselines", "st-net,bleep", *more, *options)
    sections, subject, given = asked[0]
    assert subject == ("uni", None)
    assert sections.names == [p.stem for p in stores[:2]]
    assert given["test"].names == [stores[2].stem]
    assert all("lognorm" in s.tables["table"].layers for s in sections)
    assert (given["seeds"], given["baselines"], given["net"]) == ([1, 2], ["st-net", "bleep"], "hallmark")
    assert given["table_key"] == "table"
    assert (given["near_um"], given["control"], given["device of a recipe"]) == (250, True, "cpu")
    assert (given["train_fractions"], given["n_draws"]) == ([0.25, 0.5], 2)
    assert "'mae' is not one of" in run(*stores, "--baselines", "mae", *options, code=2)
    # A config file names them alike.
    (tmp_path / "c.yaml").write_text("seeds: [3, 4]\nbaselines: bleep\n")
    run(*stores, "--config", tmp_path / "c.yaml", *options)
    assert (asked[1][2]["seeds"], asked[1][2]["baselines"]) == ([3, 4], ["bleep"])


def test_only_what_was_changed_stays_open(cohort, tmp_path, asked):
    folder = tmp_path / "mixed"
    for i, store in enumerate(sorted(cohort.glob("*.zarr"))):
        sdata = sl.io.read(store)
        if i:
            sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
            sl.pp.normalize(sdata)
        sdata.write(folder / store.name)
    run(folder, "--encoder", "uni", "--crop-um", 64, "--crop-px", 32, "--out", tmp_path / "out")
    sections = asked[0][0]
    assert list(sections.manifest["path"] == "") == [True, False, False]
    opened = [id(sections[i]) for i in (0, 1, 2)]
    assert id(sections[0]) == opened[0]
    assert len(sections._open) == 1


def test_options_that_do_not_belong_together_are_refused(cohort, tmp_path, asked):
    out = ("--out", tmp_path / "out")
    assert "belong to --model" in run(cohort, "--encoder", "uni", "--base", "b", *out, code=2)
    assert "belongs to --encoder" in run(cohort, "--model", tmp_path, "--pool", "cls", *out, code=2)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "var_50genes.json").write_text("{}")
    given = run(tmp_path / "bench", cohort, "--encoder", "uni", *out, code=2)
    assert "is a task of HEST-bench, with folds of its own; give it alone" in given
    assert not asked


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
