"""Models that say which genes can be believed: folds, what they predict, and that runs go on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sealst as sl
from sealst._core.scores.metrics import gene_pearson
from sealst.tl._finetune import crossfit

#: the picture shows where these are high, and of the others it knows nothing
VISIBLE = ["EPCAM", "KRT8"]
FEW = {"epochs": 1, "batch_size": 16, "views": 1, "lr": 1e-3, "weight_decay": 0.05, "cache": "none"}


def section(toy_section, i):
    """Section of a patient; one gene has most of the counts, as all others of a real one do: shares are no trace."""
    sdata = toy_section(section=f"s{i}", patient=f"p{i}", seed=i)
    table = sdata.tables["table"]
    table.X = sp.csr_matrix(table.X.toarray() * np.where(table.var_names == "ACTB", 100, 1).astype(np.float32))
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


def cohort(toy_section, n):
    return [section(toy_section, i) for i in range(n)]


@pytest.fixture(scope="module")
def _kept() -> list:
    return []


@pytest.fixture
def crossfitted(toy_section, finetune, fast, _kept):
    """A model of four patients with its reliability, the same for all tests, and the models of its folds."""
    if not _kept:
        seen = []
        net = {"visible": [*VISIBLE, "ACTB"], "all but one": ["VIM", "COL1A1", "CD3E", "MS4A1", "ERBB2", "ACTB"]}
        trained = crossfit._held_out

        def noted(model, *args, **options):
            seen.append(model)
            return trained(model, *args, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(crossfit, "_held_out", noted)
            _kept.append((finetune(cohort(toy_section, 4), crossfit="patient", net=net, params=fast), seen))
    return _kept[0]


def test_visible_genes_are_told_from_the_others(crossfitted):
    model, _ = crossfitted
    table = model.reliability.genes
    others = [gene for gene in model.panel.genes if gene not in VISIBLE]
    assert table.loc[VISIBLE, "pearson"].min() > 0.3 > table.loc[others, "pearson"].max()
    assert table.loc[VISIBLE, "better_than_chance"].all()
    assert (table["low"] <= table["pearson"]).all()
    assert table["ceiling"].between(0, 1).all()
    assert table.loc[VISIBLE, "ceiling"].min() > table.loc[others, "ceiling"].mean()
    assert table[["n_patients", "n_sections", "n_spots"]].drop_duplicates().to_numpy().tolist() == [[4, 4, 144]]
    assert (model.reliability.held_out, model.reliability.patients) == ("patients", ("p0", "p1", "p2", "p3"))
    assert model.reliability.model == model.fingerprint
    kinds = model.reliability.table.set_index("name")["kind"]
    assert kinds[["hvg8", "heg8", "all but one"]].tolist() == ["genes", "genes", "pathway"]
    assert "visible" not in kinds


def test_folds_have_not_seen_whom_they_predict_and_share_the_settings(crossfitted):
    model, folds = crossfitted
    assert [fold.provenance["patients"] for fold in folds] == [
        [f"p{i}" for i in range(4) if i != held] for held in range(4)
    ]
    for fold in folds:
        assert fold.provenance["params"] == model.provenance["params"]
        assert (fold.panel.genes, fold.adapter, fold.crop) == (model.panel.genes, model.adapter, model.crop)
        assert fold.panel.sections == tuple(fold.provenance["sections"])
        assert fold.panel.mean.tolist() != model.panel.mean.tolist()
        assert fold.reliability is None


def test_what_is_scored_is_what_predict_writes(crossfitted, toy_section):
    model, folds = crossfitted
    r = []
    for i, fold in enumerate(folds):
        sdata = section(toy_section, i)
        sl.tl.predict(sdata, fold)
        table = sdata.tables["table"]
        measured = pd.DataFrame(table.layers["lognorm"].toarray(), columns=table.var_names)
        genes = list(model.panel.genes)
        r.append(gene_pearson(table.obsm["seal_expression"][genes].to_numpy(), measured[genes].to_numpy()))
    np.testing.assert_allclose(model.reliability.genes["pearson"], np.mean(r, axis=0), atol=1e-6)


def test_intervals_hold_spots_of_further_patients(crossfitted, toy_section):
    model, folds = crossfitted
    known = model.intervals
    assert (known.model, known.held_out, known.n_held_out) == (model.fingerprint, "patients", 4)
    assert (known.readout, known.views, known.genes) == (model.readouts[0], 8, model.panel.genes)
    assert known.known.all()
    assert all(fold.intervals is None for fold in folds)
    genes, found = list(model.panel.genes), {}
    others = [section(toy_section, i) for i in range(10, 14)]
    for level in known.levels:
        for sdata in others:
            sl.tl.predict(sdata, model, intervals=level)
            table = sdata.tables["table"]
            measured = table[:, genes].layers["lognorm"].toarray()
            low, high = (table.obsm[f"seal_expression_{side}"].to_numpy() for side in ("low", "high"))
            found.setdefault(level, []).append(((low <= measured) & (measured <= high)).mean())
    assert [np.mean(one) for one in found.values()] == pytest.approx(known.levels, abs=0.06)


def test_two_patients_give_no_intervals(toy_section, finetune):
    model = finetune(cohort(toy_section, 2), params=FEW, readout="head", crossfit="patient")
    assert model.reliability is not None
    assert model.intervals is None
    with pytest.raises(sl.DataError, match="this model has none. Train on three patients or more"):
        sl.tl.predict(section(toy_section, 5), model, intervals=0.9)


def test_the_model_is_the_one_without_crossfit(crossfitted, toy_section, finetune, fast):
    model, _ = crossfitted
    plain = finetune(cohort(toy_section, 4), params=fast)
    assert plain.fingerprint == model.fingerprint
    assert plain.reliability is None
    assert plain.intervals is None


def test_a_stopped_run_goes_on_where_it_was(toy_section, finetune, tmp_path, monkeypatch):
    options = {"params": FEW, "readout": "head", "crossfit": "patient"}
    sections = cohort(toy_section, 2)
    whole = finetune(sections, **options)
    scored, calls = crossfit._held_out, []

    def stopped(*args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*args, **more)

    monkeypatch.setattr(crossfit, "_held_out", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune(sections, run_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run" / "model").exists()
    done = {fold: (tmp_path / "run" / "folds" / fold / "model" / "config.json") for fold in ("fold-1", "fold-2")}
    before = {fold: path.stat().st_mtime_ns for fold, path in done.items()}
    again = finetune(sections, run_dir=tmp_path / "run", resume=True, **options)
    assert {fold: path.stat().st_mtime_ns for fold, path in done.items()} == before
    pd.testing.assert_frame_equal(again.reliability.table, whole.reliability.table)
    back = sl.models.load(tmp_path / "run" / "model", device="cpu")
    pd.testing.assert_frame_equal(back.reliability.table, whole.reliability.table)
    with pytest.raises(sl.DataError, match="it differs in 'crossfit'"):
        finetune(sections, run_dir=tmp_path / "run", resume=True, params=FEW, readout="head")


def test_many_patients_are_held_out_in_groups(toy_section):
    options = {"net": None, "warmup_patients": set(), "stopping_patients": set(), "table_key": "table"}
    plan = crossfit.planned(cohort(toy_section, 7), "patient", allow_shared_patients=False, **options)
    assert len(plan.folds) == 5
    held = sorted(name for fold in plan.folds for name in fold.test)
    assert held == [f"s{i}" for i in range(7)]


def test_sections_of_one_patient_say_so(ready, finetune):
    sections = [ready(section=f"s{i}", patient="p", seed=i) for i in range(2)]
    with pytest.raises(sl.DataError, match="all training sections are of 'p'.*crossfit='section'"):
        finetune(sections, crossfit="patient")
    plan = {"net": None, "warmup_patients": set(), "stopping_patients": set(), "table_key": "table"}
    with pytest.warns(sl.SealstWarning, match="not for new ones"):
        found = crossfit.planned(sections, "section", allow_shared_patients=False, **plan)
    assert [list(fold.test) for fold in found.folds] == [["s0"], ["s1"]]


def test_a_patient_who_shares_a_spatialdata_cannot_be_held_out(ready, finetune):
    sdata = ready(section="s", patient="p0")
    obs = sdata.tables["table"].obs
    half = np.arange(len(obs)) >= len(obs) // 2
    obs["section"], obs["patient"] = np.where(half, "s2", "s"), np.where(half, "p2", "p0")
    with pytest.raises(sl.DataError, match="share a SpatialData. Keep one section of one patient in each"):
        finetune([sdata, ready(section="t", patient="p1", seed=1)], crossfit="patient")


def test_leaks_and_misuse_are_refused_before_anything_is_trained(toy_section, ready, finetune, monkeypatch):
    sections = cohort(toy_section, 2)
    monkeypatch.setattr("sealst.tl._finetune.finetune.build_encoder", lambda *a, **k: pytest.fail("training started"))
    warmup = sections[0].tables["table"].copy()
    with pytest.raises(sl.LeakError, match="'p0', whose expression is in `warmup`"):
        finetune(sections, crossfit="patient", warmup=warmup, params=FEW | {"warmup_epochs": 1})
    watched = {"validation": [ready(section="v", patient="p0", seed=9)], "allow_shared_patients": True}
    with pytest.raises(sl.LeakError, match="stops by `validation`, which has patient"):
        finetune(sections, crossfit="patient", params=FEW | {"patience": 1}, **watched)
    with pytest.raises(sl.DataError, match="`crossfit`.*'patients'"):
        finetune(sections, crossfit="patients")
    with pytest.raises(sl.DataError, match="say `crossfit='patient'`"):
        finetune(sections, net={"a": ["EPCAM"]})


def test_a_fold_that_fails_leaves_the_model(toy_section, finetune, monkeypatch):
    def fails(*_, **__):
        raise sl.DataError("no spots")

    monkeypatch.setattr(crossfit, "_held_out", fails)
    warned = []
    monkeypatch.setattr(crossfit, "warn", warned.append)
    model = finetune(cohort(toy_section, 2), params=FEW, readout="head", crossfit="patient")
    assert model.reliability is None
    assert warned == ["The model is trained, but its reliability stays unknown: no spots"]
