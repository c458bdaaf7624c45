"""``sealst slides fit`` and ``predict`` on bags in the layout of TRIDENT."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import sealst as sl
from sealst.cli._main import cli


def run(*arguments, code=0):
    done = CliRunner().invoke(cli, ["slides", *(str(a) for a in arguments)])
    assert done.exit_code == code, done.stderr
    return done


@pytest.fixture
def cohort(tmp_path):
    """24 slides of 24 patients; the label shifts the first feature."""
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "bags").mkdir()
    for i in range(24):
        label = "high" if i % 2 else "low"
        features = rng.normal(size=(20, 8)).astype(np.float32)
        features[:, 0] += 3.0 * (i % 2)
        with h5py.File(tmp_path / "bags" / f"s{i:02d}.h5", "w") as file:
            file["features"] = features
            file["coords"] = rng.integers(0, 10_000, size=(20, 2))
        rows.append({"slide": f"s{i:02d}", "patient": f"p{i:02d}", "grade": label})
    pd.DataFrame(rows).to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def test_wrong_usage(cohort):
    fit = ("fit", cohort / "bags", "--out", cohort / "model")
    assert "Missing option '--target'" in run(*fit, code=2).stderr
    (cohort / "model").mkdir()
    (cohort / "model" / "notes.txt").write_text("keep")
    assert "exists; name another --out" in run(*fit, "--target", "grade", code=3).stderr
    wrong = run("predict", cohort / "bags", "--model", cohort, "--predictions", cohort / "p.xlsx", code=2)
    assert "--predictions must end in .csv, .tsv, .json" in wrong.stderr
    assert "in place of --out" in run("predict", cohort / "bags", "--model", cohort, "--out", "x", code=2).stderr


@pytest.mark.skipif(not hasattr(sl.tl, "fit_slide"), reason="needs tl.fit_slide")
def test_fit_and_predict(cohort):
    pytest.importorskip("torchmil")
    told = ("--target", "grade", "--labels", cohort / "labels.csv", "--folds", 2, "--n-bootstrap", 20)
    told += ("--params", "{epochs: 5}", "--aggregator", "mean")
    done = run("fit", cohort / "bags", *told, "--out", cohort / "model", "--json")
    found = json.loads(done.stdout)
    assert found["facts"]["targets"] == ["grade"]
    table = pd.DataFrame(found["evaluation"])
    pooled = table[(table["metric"] == "auroc") & (table["fold"] == "")].set_index("method")["value"]
    assert pooled["floor"] == 0.5
    assert pooled.drop("floor").between(0, 1).all()
    again = run("fit", cohort / "bags", *told, "--out", cohort / "model", code=3)
    assert "exists; name another --out" in again.stderr
    told = ("--model", cohort / "model", "--predictions", cohort / "p.csv", "--json")
    answer = json.loads(run("predict", cohort / "bags", *told).stdout)
    assert len(answer["predictions"]) == 24
    assert list(pd.read_csv(cohort / "p.csv")["slide"]) == [f"s{i:02d}" for i in range(24)]
