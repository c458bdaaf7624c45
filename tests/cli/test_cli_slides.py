"""``sealst slides fit`` and ``predict`` on bags in the layout of TRIDENT."""

from __future__ import annotations

import dataclasses
import json
import shutil

import click
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
    predict = ("predict", cohort / "bags", "--model", cohort)
    assert "in place of --out" in run(*predict, "--out", "x", code=2).stderr
    ignored = run(*predict, "--target", "grade", "--key-added", "a", "--overwrite", code=2).stderr
    assert "--target, --key-added, --overwrite: for tables of tiles and stores" in ignored
    assert "one of --compare and --no-compare" in run(
        *fit, "--target", "grade", "--compare", "a", "--no-compare", code=2
    ).stderr  # fmt: skip
    assert "--report must end in .html" in run(*fit, "--target", "grade", "--report", "r.pdf", code=2).stderr


def test_defaults_are_those_of_settings(tmp_path):
    """What the environment states holds where no option does."""
    with sl.settings.override(seed=7):
        for name in ("finetune", "synthetic", "demo"):
            (option,) = [p for p in cli.commands[name].params if p.name == "seed"]
            assert option.process_value(click.Context(cli), None) == 7
            assert option.process_value(click.Context(cli), "3") == 3
        (option,) = [p for p in cli.commands["evaluate"].params if p.name == "seeds"]
        assert option.process_value(click.Context(cli), ()) == (7,)
    seen = {}
    with sl.settings.override(batch_size=5), pytest.MonkeyPatch.context() as patch:
        found = pd.DataFrame({"status": ["done"], "n_tiles": [1]})
        patch.setattr(sl.tl, "embed_slides", lambda *_, **__: seen.update(size=sl.settings.batch_size) or found)
        (tmp_path / "m.csv").touch()
        told = ("embed", tmp_path / "m.csv", "--out", tmp_path / "x", "--encoder", "uni")
        run(*told)
        assert seen == {"size": 5}
        run(*told, "--batch-size", 9)
        assert seen == {"size": 9}


def test_kept_out_slides_and_a_report(cohort):
    """Both are in what the command says."""
    labels = pd.read_csv(cohort / "labels.csv")
    (cohort / "kept").mkdir()
    for name in labels["slide"][:6]:
        (cohort / "bags" / f"{name}.h5").rename(cohort / "kept" / f"{name}.h5")
    told = ("fit", cohort / "bags", "--target", "grade", "--labels", cohort / "labels.csv", "--folds", 2)
    told += ("--n-bootstrap", 0, "--params", "{epochs: 2}", "--aggregator", "mean", "--no-compare")
    told += ("--test", cohort / "kept", "--out", cohort / "model", "--report", cohort / "new" / "report.html")
    with sl.settings.override(seed=3):
        found = json.loads(run(*told, "--json").stdout)
    assert found["facts"]["seed"] == 3
    tested = pd.DataFrame(found["test_evaluation"])
    assert set(tested["n"]) == {6}
    assert found["report"] == str(cohort / "new" / "report.html")
    assert "auroc" in (cohort / "new" / "report.html").read_text().lower()
    assert "exists; name another --report" in run(*told[:-4], "--out", cohort / "m2", *told[-2:], code=3).stderr
    text = run(*told, "--overwrite").stdout
    assert "Slides of --test:" in text
    assert "Report: " in text


def test_embeddings_are_matched_by_their_model(cohort):
    """A job's folder of TRIDENT calls the embedding otherwise, and holds others."""
    told = ("--target", "grade", "--labels", cohort / "labels.csv", "--folds", 2, "--n-bootstrap", 0)
    told += ("--params", "{epochs: 2}", "--aggregator", "mean", "--out", cohort / "model")
    (cohort / "bags").rename(cohort / "features_seal")
    run("fit", cohort / "features_seal", *told)
    model = sl.models.load_slide(cohort / "model")
    made = dataclasses.replace(model.spec, key="X_seal")
    dataclasses.replace(model, spec=made).save(cohort / "other")
    shutil.copytree(cohort / "features_seal", cohort / "job" / "features_seal")
    shutil.copytree(cohort / "features_seal", cohort / "job" / "features_base")
    answer = json.loads(run("predict", cohort / "job", "--model", cohort / "other", "--json").stdout)
    assert len(answer["predictions"]) == 24


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
