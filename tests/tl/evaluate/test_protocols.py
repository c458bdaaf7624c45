"""Folds, protocols, baselines and the honesty of `tl.evaluate`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import StandardScaler

import sealst as sl

ENCODER = {"encoder": "vit_tiny_patch16_224", "pretrained": False}


@pytest.fixture(scope="module")
def encoder():
    return sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)


@pytest.fixture
def cohort(ready):
    return [ready(section=f"s{i}", patient=f"p{i}", seed=i) for i in range(3)]


@pytest.fixture
def recipe(fast):
    return ENCODER | {"params": fast | {"epochs": 1}, "gene_encoder": {"hidden": (16,)}, "n_genes": 8}


def single(found):
    """Rows of single sections."""
    return found.table[found.table["section"] != ""]


def embedded(sdata, genes):
    options = {"pretrained": False, "views": 1, "key_added": "z"}
    table = sl.tl.embed(sdata, "vit_tiny_patch16_224", copy=True, **options).tables["table"]
    # log1p in float32, as tables hold it: where `lsqr` stops depends on the last digits.
    return table.obsm["z"].astype(float), np.log1p(table[:, list(genes)].layers["counts"].toarray()).astype(float)


def test_hest_equals_an_independent_recomputation(tissue, encoder):
    found = sl.tl.evaluate(tissue, encoder, preset="hest", n_genes=20)
    genes = hest_genes_by_hand([sdata.tables["table"] for sdata in tissue], 20)
    assert set(found.genes["gene"]) == set(genes)
    data = [embedded(sdata, genes) for sdata in tissue]
    expected = []
    for held in range(3):
        x, y = (np.concatenate([data[i][side] for i in range(3) if i != held]) for side in (0, 1))
        scaler, pca = StandardScaler(), PCA(min(256, *x.shape), random_state=1)
        reduced = pca.fit_transform(scaler.fit_transform(x))
        ridge = Ridge(alpha=100 / (reduced.shape[1] * 20), fit_intercept=False, solver="lsqr", random_state=0)
        ridge.fit(reduced, y)
        predicted, truth = ridge.predict(pca.transform(scaler.transform(data[held][0]))), data[held][1]
        expected.append(np.mean([scipy.stats.pearsonr(predicted[:, g], truth[:, g])[0] for g in range(20)]))
    pooled = found.table.query("metric == 'pearson' and section == '' and method == 'frozen + ridge'")
    np.testing.assert_allclose(pooled["value"], expected, atol=1e-6)
    assert list(pooled["fold"]) == ["patient-P1", "patient-P2", "patient-P3"]
    assert set(found.table["method"]) == {"frozen + ridge", "colour + ridge", "mean"}


def hest_genes_by_hand(tables, n):
    """Detected in a tenth of the spots of every section; then scanpy's choice on the stacked log1p counts."""
    counts = [pd.DataFrame(t.layers["counts"].toarray(), columns=t.var_names) for t in tables]
    kept = [g for g in counts[0] if all((c[g] > 0).sum() >= np.ceil(0.1 * len(c)) for c in counts)]
    stacked = ad.AnnData(np.log1p(pd.concat(counts, ignore_index=True)[kept]))
    return stacked.var_names[sc.pp.highly_variable_genes(stacked, n_top_genes=n, inplace=False)["highly_variable"]]


def test_a_task_in_the_layout_of_hest_bench(tmp_path, cohort, encoder):
    """Patches in files give what the same crops give from the image."""
    for folder in ("adata", "patches", "splits"):
        (tmp_path / folder).mkdir()
    genes = ["EPCAM", "KRT8", "VIM", "CD3E"]
    (tmp_path / "var_50genes.json").write_text(json.dumps({"genes": genes}))
    names = ["s0", "s1", "s2"]
    for name, sdata in zip(names, cohort, strict=True):
        table = sdata.tables["table"].copy()
        crops = crops_of(sdata)
        table.X = table.layers["counts"]
        del table.layers, table.uns
        # Spots stand in another order than their patches, and one has none.
        table[::-1].copy().write_h5ad(tmp_path / "adata" / f"{name}.h5ad")
        with h5py.File(tmp_path / "patches" / f"{name}.h5", "w") as file:
            file["img"] = crops[:-1]
            file["barcode"] = np.array(table.obs_names[:-1], dtype="S")[:, None]
            file["coords"] = table.obsm["spatial"][:-1].astype(int)
    for k, held in enumerate(names[:2]):
        for side, members in (("train", [n for n in names if n != held]), ("test", [held])):
            pd.DataFrame({"sample_id": members}).to_csv(tmp_path / "splits" / f"{side}_{k}.csv")
    task = sl.io.read_hest_bench(tmp_path)
    assert repr(task).endswith("3 samples, 2 folds, 4 genes")
    found = sl.tl.evaluate(task, encoder, preset="hest")
    assert found.facts["folds"] == ["split-0", "split-1"]
    kept = [sdata.tables["table"].obs_names[:-1] for sdata in cohort]
    folds = [
        sl.pp.Split({n: kept[i] for i, n in enumerate(names) if n != held}, {held: kept[k]}, f"split-{k}")
        for k, held in enumerate(names[:2])
    ]
    same = sl.tl.evaluate(cohort, encoder, preset="hest", folds=folds, genes={"hest4": genes})
    columns = ["fold", "section", "method", "genes", "metric"]
    merged = found.table.merge(same.table, on=columns)
    assert len(merged) == len(found.table)
    np.testing.assert_allclose(merged["value_x"], merged["value_y"], atol=1e-5)
    (tmp_path / "patches" / "s1.h5").unlink()
    with pytest.raises(sl.DataError, match="name sample 's1', but there is no patches/s1.h5"):
        sl.io.read_hest_bench(tmp_path)


def crops_of(sdata):
    from sealst import _section
    from sealst._data.crops.source import gather_crops

    table = sdata.tables["table"]
    source = _section.region_crops(sdata, table, _section.regions_of(table)[0]).source
    return np.array(gather_crops([source], 32, Path()))


def test_folds_train_their_own_models_and_baselines(cohort, recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        found = sl.tl.evaluate(cohort[:2], recipe, test=cohort[2], baselines=["st-net", "bleep"], near_um=100)
        seeds = sl.tl.evaluate(cohort[:2], recipe, seeds=[0, 1])
    rows = single(found).query("metric == 'pearson'")
    assert set(rows["method"]) == {
        "frozen + ridge", "adapted + ridge", "seal prediction", "seal head", "seal retrieval", "st-net", "bleep",
        "colour + ridge", "mean",
    }  # fmt: skip
    assert len(rows) == 9 * 2
    # What is not trained does not depend on the seed.
    assert seeds.facts["folds"] == ["patient-p0", "patient-p1"]
    values = (
        single(seeds)
        .query("metric == 'pearson'")
        .pivot_table(index=["section", "genes", "method"], columns="seed", values="value")
    )
    spread = values.diff(axis=1)[1].abs().groupby("method").max()
    assert spread["colour + ridge"] < 1e-6
    assert spread["adapted + ridge"] > 1e-4
    recall = single(found).query("metric == 'R@10'")
    assert set(recall["method"]) == {"adapted", "frozen", "seal prediction", "frozen + ridge", "bleep"}
    near = single(found).query("metric == 'near R@10' and method == 'adapted'")
    plain = recall.query("method == 'adapted'")
    assert (near["value"].to_numpy() >= plain["value"].to_numpy()).all()
    assert (near["chance"].to_numpy() > plain["chance"].to_numpy()).all()
    assert found.spots["s2"].layers["st-net"].shape == (36, 8)


@pytest.fixture
def patient_recipe(recipe, monkeypatch):
    """A recipe that stops early, and the models that it trains."""
    from sealst.tl._evaluate import candidates as _candidates

    models = []
    plain = _candidates.finetune
    monkeypatch.setattr(_candidates, "finetune", lambda *a, **k: models.append(plain(*a, **k)) or models[-1])
    return recipe | {"params": recipe["params"] | {"epochs": 2, "patience": 1}}, models


@pytest.mark.filterwarnings("ignore::sealst.SealstWarning")
def test_early_stopping_looks_at_training_patients_alone(cohort, patient_recipe, ready):
    """The held-out fold reaches neither the weights nor the epoch at which training stops."""
    recipe, models = patient_recipe
    found = sl.tl.evaluate(cohort, recipe, n_genes=4)
    assert found.facts["stopped_by"] == {"patient-p0": ["s2"], "patient-p1": ["s2"], "patient-p2": ["s1"]}
    for model, (fold, stopped) in zip(models, found.facts["stopped_by"].items(), strict=True):
        assert "val_pearson" in model.history
        assert model.provenance["validation"] == stopped
        assert model.provenance["stopping_patients"] == [stopped[0].replace("s", "p")]
        everyone = {*model.provenance["patients"], *model.provenance["stopping_patients"]}
        assert everyone == {"p0", "p1", "p2"} - {fold.removeprefix("patient-")}
    models.clear()
    for seed in (2, 9):
        sl.tl.evaluate(cohort[:2], recipe, test=ready(section="s2", patient="p2", seed=seed), n_genes=4)
    assert models[0].fingerprint == models[1].fingerprint
    pd.testing.assert_frame_equal(models[0].history, models[1].history)


@pytest.mark.filterwarnings("ignore::sealst.SealstWarning")
def test_leaks_are_caught_with_early_stopping_too(cohort, tissue, patient_recipe, monkeypatch):
    from sealst.tl._evaluate.cohorts import SectionCohort

    recipe, models = patient_recipe
    with pytest.raises(sl.LeakError, match="exactly the counts of training spots"):
        sl.tl.evaluate([*tissue, renamed(tissue[0], "copy", "p9")], recipe, n_genes=4)
    assert not models
    # Planted: stopping by the held-out section itself.
    monkeypatch.setattr(SectionCohort, "stopping", lambda _, fold: sl.pp.Split(fold.train, fold.test, "patient-leak"))
    with pytest.raises(sl.LeakError, match=r"'seal' was trained or stopped on test section\(s\) 's2'"):
        sl.tl.evaluate(cohort[:2], recipe, test=cohort[2], n_genes=4)


@pytest.mark.filterwarnings("ignore::sealst.SealstWarning")
def test_baselines_take_no_further_loss_from_the_recipe(cohort, patient_recipe):
    recipe, models = patient_recipe
    more = {"kl": True, "mask_genes": 0.2, "weight_masked": 1.0, "weight_domain": 0.1, "patience": None}
    recipe["params"] |= more
    recipe["include"] = ["ACTB"]
    sl.tl.evaluate(cohort[:2], recipe, test=cohort[2], baselines=["st-net", "bleep"], n_genes=4)
    assert all(m.panel.genes == models[0].panel.genes and "ACTB" in m.panel.genes for m in models)
    seal, st_net, bleep = (m.history.query("stage == 'align'") for m in models)
    assert not np.allclose(seal["train_loss"], seal["train_contrast"] + seal["train_gene"] + seal["train_image"])
    np.testing.assert_allclose(bleep["train_loss"], bleep["train_contrast"], rtol=1e-5)
    np.testing.assert_allclose(st_net["train_loss"], st_net["train_image"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore::sealst.SealstWarning")
def test_early_stopping_divides_what_is_left_to_train_on(ready, patient_recipe, cohort):
    recipe, models = patient_recipe
    with pytest.raises(sl.DataError, match="fold 'patient-p0' has one training section only \\('s1'\\). Add sections"):
        sl.tl.evaluate(cohort[:2], recipe)
    assert not models
    # One patient is left: then by section.
    serial = [ready(section=f"t{i}", patient="p7", seed=20 + i) for i in range(2)]
    found = sl.tl.evaluate(serial, recipe, test=cohort[0], baselines=["bleep"], n_genes=4)
    assert found.facts["stopped_by"] == {"test": ["t1"]}
    assert [m.provenance["params"]["monitor"] for m in models] == ["pearson", "recall@10"]
    assert all(m.provenance["validation"] == ["t1"] for m in models)


def test_early_stopping_keeps_patients_that_share_a_spatialdata_together(ready, patient_recipe, cohort):
    both = ready(section="s8", patient="p8", seed=8)
    table = both.tables["table"]
    table.obs["patient"] = np.where(np.arange(table.n_obs) % 2, "p8", "p9")
    with pytest.raises(sl.DataError, match="but 's8' of fold 'test' cannot be divided"):
        sl.tl.evaluate([both, ready(section="s7", patient="p8", seed=7)], patient_recipe[0], test=cohort[0])


def test_a_column_and_blocks_make_folds(cohort, encoder, recipe):
    for sdata, organ in zip(cohort, ("breast", "lung", "lung"), strict=True):
        sdata.tables["table"].obs["organ"] = organ
    found = sl.tl.evaluate(cohort, encoder, folds="organ", n_genes=4)
    assert found.facts["folds"] == ["organ-breast", "organ-lung"]
    assert set(single(found).query("fold == 'organ-lung'")["section"]) == {"s1", "s2"}
    folds = sl.pp.split(cohort, by="block", block_um=200, n_folds=2, buffer_um=0, allow_shared_patients=True)
    blocks = sl.tl.evaluate(cohort, encoder, folds=folds, n_genes=4, allow_shared_patients=True)
    assert sum(part.n_obs for part in blocks.spots.values()) == 3 * 36
    with pytest.raises(sl.DataError, match="cuts through 's0', 's1', 's2'"):
        sl.tl.evaluate(cohort, recipe, folds=folds, allow_shared_patients=True)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"preset": "hst"}, sl.DataError, "`preset` must be one of 'cv', 'plain', 'hest'"),
        ({"baselines": ["bleep"]}, sl.DataError, "pass the arguments of `sl.tl.finetune` as a mapping"),
        ({"model": {"params": {}}}, sl.DataError, "must name an 'encoder'"),
        ({"model": ENCODER | {"seed": 1}}, sl.DataError, "must not hold 'seed'"),
        ({"model": 3}, TypeError, "`model` must be a SealModel, an encoder or its name"),
        ({"folds": []}, sl.DataError, "`folds` is empty"),
        ({"folds": [sl.pp.Split({"x": np.array(["1"])}, {}, "odd")]}, sl.DataError, r"names section\(s\) 'x'"),
        ({"near_um": -1}, sl.DataError, "near_um"),
        ({"seeds": 0}, sl.DataError, "`seeds` must be a list of one or more"),
        ({"seeds": []}, sl.DataError, "`seeds` must be a list of one or more"),
        ({"genes": {"none": []}}, sl.PanelError, "Gene set 'none' is empty"),
    ],
)
def test_bad_arguments_are_refused(cohort, encoder, change, error, match):
    with pytest.raises(error, match=match):
        sl.tl.evaluate(cohort, change.pop("model", encoder), **change)


def renamed(sdata, section, patient):
    """The same tissue under another name."""
    table = sdata.tables["table"]
    copy = sl.io.from_arrays(
        toy_picture(sdata),
        table.layers["counts"],
        table.obsm["spatial"],
        genes=table.var_names,
        mpp=1.0,
        spot_um=55,
        section=section,
        patient=patient,
        spot_ids=[f"n{i}" for i in range(table.n_obs)],
    )
    sl.pp.pair_crops(copy, crop_um=64, crop_px=32)
    sl.pp.normalize(copy)
    return copy


def toy_picture(sdata):
    name = next(iter(sdata.images))
    return np.ascontiguousarray(np.moveaxis(sdata.images[name]["scale0"]["image"].to_numpy(), 0, -1))


@pytest.fixture(scope="module")
def tissue():
    """Three drawn sections of three patients, with programs that can be seen and others that cannot."""
    sections = sl.datasets.synthetic(3, size_um=1000, mpp=1.0, pitch_um=60, n_genes=160, depth=8000)
    for sdata in sections:
        sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
        sl.pp.normalize(sdata)
    return sections


def test_copies_under_another_name_are_a_leak(tissue, encoder):
    """The same tissue, renamed: the patient's name says nothing, the counts do."""
    sections = [*tissue[:2], renamed(tissue[0], "other", "stranger")]
    with pytest.raises(sl.LeakError, match=r"training spots of 'other'\. They are copies"):
        sl.tl.evaluate(sections, encoder, n_genes=5)
    found = sl.tl.evaluate(sections, encoder, n_genes=5, allow_shared_patients=True)
    assert len(found.facts["folds"]) == 3
    # Sections of different patients share no profile.
    assert len(sl.tl.evaluate(tissue[:2], encoder, n_genes=5).table)


def programs():
    net = sl.datasets.synthetic_net()
    return {str(name): rows["target"].tolist() for name, rows in net.groupby("source")}


def by_program(found):
    rows = found.table.query("metric == 'pearson' and section != ''")
    return rows.groupby(["genes", "method"])["value"].mean()


def test_evaluation_tells_visible_programs_from_invisible_ones(tissue, encoder):
    """What leaves no trace in the picture is at chance for every method, gene by gene and as a pathway."""
    # Of the crop alone: surroundings make predictions smooth, as hidden programs are, and chance scatters wider then.
    alone = sl.tl.Protocol("crop", surroundings=False)
    found = sl.tl.evaluate(tissue, encoder, genes=programs(), net=programs(), preset=alone)
    score = by_program(found)
    for name in ("hidden_1", "hidden_2"):
        assert score[name].abs().max() < 0.12
    best = score[:, "colour + ridge"]
    assert best[["stroma", "adipose", "tumour"]].min() > 0.3
    activity = found.pathways.query("method == 'colour + ridge'").groupby("pathway")["pearson"].mean()
    assert activity["stroma"] > 0.4
    assert activity["stroma"] > activity["hidden_1"] + 0.2
    assert set(found.pathways["n_genes"]) == {12}


def test_nothing_is_found_when_spots_are_shuffled(tissue, encoder):
    """Permuting which profile belongs to which crop takes every score to chance."""
    shuffled = []
    for sdata in tissue:
        table = sdata.tables["table"].copy()
        order = np.random.default_rng(0).permutation(table.n_obs)
        for layer in ("counts", "lognorm", "context"):
            table.layers[layer] = table.layers[layer][order]
        copy = type(sdata)(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table})
        shuffled.append(copy)
    score = by_program(sl.tl.evaluate(shuffled, encoder, genes=programs()))
    assert score.abs().max() < 0.12


def morans_i_by_hand(x, xy):
    """Six nearest spots, taken as neighbours both ways."""
    near = kneighbors_graph(xy, 6).toarray()
    w, z = np.maximum(near, near.T), x - x.mean()
    return len(x) / w.sum() * (w * np.outer(z, z)).sum() / (z**2).sum()


def test_numbers_of_one_gene(cohort, model, ready):
    """Slope, Spearman, R² and Moran's I against scipy and by hand."""
    held = ready(section="c", patient="p9", seed=5)
    train = [ready(section="a", patient="q1"), ready(section="b", patient="q2", seed=1)]
    found = sl.tl.evaluate(train, model, test=held, genes={"one": ["EPCAM", "KRT8"]})
    maps = found.spots["c"]
    row = found.genes.query("method == 'colour + ridge' and gene == 'EPCAM'").iloc[0]
    p, t = maps[:, "EPCAM"].layers["colour + ridge"].ravel(), maps[:, "EPCAM"].X.ravel()
    assert row["slope"] == pytest.approx(scipy.stats.linregress(p, t).slope, abs=1e-5)
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(p, t)[0], abs=1e-5)
    assert row["r2"] == pytest.approx(1 - ((t - p) ** 2).sum() / ((t - t.mean()) ** 2).sum(), abs=1e-5)
    assert row["moran_predicted"] == pytest.approx(morans_i_by_hand(p, maps.obsm["spatial"]), abs=1e-5)
    assert found.genes.query("method == 'mean'")["pearson"].eq(0).all()
    assert found.table.query("method == 'mean' and metric == 'spot_pearson'")["value"].eq(0).all()
    gain = found.table.query("metric == 'pearson_difference' and method == 'colour + ridge'").iloc[0]
    by_gene = found.genes.pivot_table(index="gene", columns="method", values="pearson")
    assert gain["value"] == pytest.approx((by_gene["colour + ridge"] - by_gene["frozen + ridge"]).mean())
    assert gain["low"] <= gain["value"] <= gain["high"]


def test_summary_and_repr(cohort, encoder):
    found = sl.tl.evaluate(cohort, encoder, n_genes=4)
    assert repr(found) == "Evaluation 'cv': 3 fold(s), 3 section(s), 3 methods"
    assert "<table" in found._repr_html_()
    assert sorted(found.spots) == ["s0", "s1", "s2"]
    overall = found.table.query("metric == 'pearson_difference' and fold == '' and genes == 'hvg4'")
    by_fold = found.table.query("metric == 'pearson_difference' and fold != '' and genes == 'hvg4'")
    assert overall["value"].item() == pytest.approx(by_fold["value"].mean())
    # Means of sections are compared within a fold alone: a training mean falls where that of the one left out rises.
    assert not (found.table["metric"] == "section_pearson").any()
    wide = found.summary("all")
    assert set(wide.columns.get_level_values("metric")) == set(single(found)["metric"])
    # An encoder alone has no shared space to search in.
    assert set(found.summary().columns.get_level_values("metric")) == {"pearson"}
    pd.testing.assert_frame_equal(found.summary("spearman"), wide[["spearman"]])
    with pytest.raises(sl.MissingKeyError, match="'perason' not found in the table's `metric`; found: .*'pearson'"):
        found.summary(["perason"])
    rows = single(found).query("metric == 'pearson' and genes == 'hvg4' and method == 'colour + ridge'")
    assert wide.loc["colour + ridge", ("pearson", "hvg4")] == pytest.approx(rows["value"].mean())


def test_differences_between_sections_need_three_in_one_fold(tissue, encoder):
    test = [tissue[1], tissue[2], renamed(tissue[1], "third", "p9")]
    found = sl.tl.evaluate(tissue[0], encoder, test=test, genes={"two": ["EPCAM", "COL1A1"]})
    rows = found.table.query("metric == 'section_pearson'").set_index("method")["value"]
    by_hand = []
    for gene in ("EPCAM", "COL1A1"):
        pairs = [
            (maps[:, gene].layers["colour + ridge"].mean(), maps[:, gene].X.mean()) for maps in found.spots.values()
        ]
        by_hand.append(np.corrcoef(np.array(pairs).T)[0, 1])
    assert rows["colour + ridge"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert rows["mean"] == 0


def test_scores_of_spots_sections_and_pools_equal_scipy_and_scikit_learn(tissue, encoder):
    test = [tissue[1], tissue[2], renamed(tissue[1], "third", "p9")]
    genes = programs()["tumour"][:3] + programs()["stroma"][:3]
    found = sl.tl.evaluate(tissue[0], encoder, test=test, genes={"six": genes})
    rows = found.table.query("method == 'colour + ridge'").set_index(["section", "metric"])["value"]
    table = tissue[0].tables["table"]
    seen = table[table.obs["crop_ok"], genes].layers["lognorm"].toarray().astype(float)
    maps = [found.spots[name][:, genes] for name in found.spots]
    pairs = [(m.layers["colour + ridge"].astype(float), m.X.astype(float)) for m in maps]
    one = list(found.spots)[1]
    scores = {
        "pearson": lambda p, t: scipy.stats.pearsonr(p, t)[0],
        "spearman": lambda p, t: scipy.stats.spearmanr(p, t)[0],
        "r2": lambda p, t: r2_score(t, p),
    }
    pooled = tuple(map(np.concatenate, zip(*pairs, strict=True)))
    means = tuple(np.stack([x.mean(axis=0) for x in side]) for side in zip(*pairs, strict=True))
    within = [(x - seen.mean(axis=0)) / seen.std(axis=0) for x in pairs[1]]
    for name, score in scores.items():
        for (section, metric), (p, t) in {
            ("", name): pooled,
            ("", f"section_{name}"): means,
            (one, name): pairs[1],
            (one, f"spot_{name}"): [x.T for x in within],
        }.items():
            by_hand = np.mean([score(p[:, i], t[:, i]) for i in range(p.shape[1])])
            assert rows[section, metric] == pytest.approx(by_hand, abs=1e-4), (section, metric)


def test_penalties_are_chosen_on_scored_genes_alone(cohort, encoder):
    """Gene sets that are compared beside do not change the scores."""
    sets = {"two": ["EPCAM", "VIM"]}
    alone = sl.tl.evaluate(cohort, encoder, preset="hest", genes=sets)
    beside = sl.tl.evaluate(
        cohort, encoder, preset="hest", genes=sets, net={"s": ["KRT8", "CD3E", "MS4A1", "ACTB", "ERBB2"]}
    )
    pd.testing.assert_frame_equal(alone.table, beside.table)


def test_a_section_that_is_cut_keeps_the_patients_of_its_spots(ready, encoder):
    """An array of several patients: each side of a fold knows its own."""
    mixed = ready(section="array", patient="x")
    table = mixed.tables["table"]
    table.obs["patient"] = np.repeat(["p1", "p2", "p3"], 12)
    found = sl.tl.evaluate(mixed, encoder, folds="patient", n_genes=4)
    rows = single(found)
    assert dict(zip(rows["fold"], rows["patient"], strict=True)) == {f"patient-p{i}": f"p{i}" for i in (1, 2, 3)}


@pytest.mark.parametrize(
    ("folds", "match"),
    [
        (lambda a, b: [sl.pp.Split(a, b, "one"), sl.pp.Split(b, a, "one")], "Folds need names of their own"),
        (lambda a, b: [sl.pp.Split(a | {"s2": np.array(["nobody"])}, b, "one")], "names spots that section 's2' lacks"),
    ],
)
def test_odd_folds_are_refused(cohort, encoder, folds, match):
    sides = [{f"s{i}": cohort[i].tables["table"].obs_names.to_numpy()} for i in (0, 1)]
    with pytest.raises(sl.DataError, match=match):
        sl.tl.evaluate(cohort, encoder, folds=folds(*sides))
