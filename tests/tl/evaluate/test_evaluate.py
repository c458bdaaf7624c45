from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

import sealst as sl
from sealst._core.search.queries import direction


@pytest.fixture
def sections(ready):
    return [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)], ready(
        section="c", patient="p3", seed=2
    )


def test_table_has_every_method_and_agrees_with_a_hand_computation(sections, model):
    train, test = sections
    table = sl.tl.evaluate(train, model, test=test, genes={"mine": ["EPCAM", "KRT8", "VIM"]}).table
    pearson = table[(table["metric"] == "pearson") & (table["section"] == "c")].set_index("method")
    assert set(pearson.index) == {
        "frozen + ridge",
        "adapted + ridge",
        "seal prediction",
        "seal head",
        "seal retrieval",
        "colour + ridge",
        "mean",
    }
    sl.tl.predict(test, model, readout="head", key_added="by_head")
    copied = sl.tl.predict(test, model, copy=True).tables["table"]
    measured = copied[:, ["EPCAM", "KRT8", "VIM"]].layers["lognorm"].toarray()
    for method, slot in (("seal prediction", "seal_expression"), ("seal head", "by_head")):
        predicted = copied.obsm[slot][["EPCAM", "KRT8", "VIM"]].to_numpy()
        expected = np.mean([np.corrcoef(measured[:, i], predicted[:, i])[0, 1] for i in range(3)])
        assert pearson.loc[method, "value"] == pytest.approx(expected, abs=1e-4)
    assert pearson.loc["mean", "value"] == 0
    # EPCAM and KRT8 rise along the axes that the toy image paints in red and green.
    assert pearson.loc["colour + ridge", "value"] > 0.4
    assert (pearson["low"] <= pearson["value"]).all()
    assert (pearson["high"] >= pearson["value"]).all()


def test_the_control_scores_around_0_where_the_probe_does_not(sections, model):
    train, test = sections
    genes = {"mine": ["EPCAM", "KRT8"]}
    found = sl.tl.evaluate(train, model, test=test, genes=genes, control=True)
    pearson = found.table.query("metric == 'pearson' and section == 'c'").set_index("method")["value"]
    assert pearson["adapted + ridge"] > 0.4
    assert abs(pearson["permuted + ridge"]) < 0.3
    again = sl.tl.evaluate(train, model, test=test, genes=genes, control=True)
    assert again.table.equals(found.table)
    without = sl.tl.evaluate(train, model, test=test, genes=genes)
    assert set(found.table["method"]) - set(without.table["method"]) == {"permuted + ridge"}
    others = found.table[found.table["method"] != "permuted + ridge"].reset_index(drop=True)
    assert others.equals(without.table.reset_index(drop=True))


def test_retrieval_reports_pool_and_chance(sections, model):
    train, test = sections
    table = sl.tl.evaluate(train, model, test=test).table
    rows = table[table["metric"] == "R@10"].set_index("method")
    assert set(table.loc[table["metric"] == "gene→image R@50", "value"]) == {1.0}
    assert set(rows.index) == {"adapted", "frozen", "seal prediction", "frozen + ridge"}
    assert (rows["pool"] == 36).all()
    np.testing.assert_allclose(rows["chance"], 10 / 36)
    # What the prediction finds is what `tl.retrieve` finds, asked for the profile of one spot after the other.
    section, genes = test.tables["table"], list(model.panel.genes)
    sl.tl.embed(test, model)
    profiles = section[:, genes].layers[model.panel.layer].toarray()
    ranks = []
    for name, profile in zip(section.obs_names, profiles, strict=True):
        query = pd.Series(profile, index=genes)
        mean = pd.Series(profiles.mean(axis=0), index=genes)
        found = sl.tl.retrieve(section, model, query, reference=mean, copy=True)
        ranks.append(found.obs.loc[name, "seal_similarity_rank"])
    reverse = table[(table["metric"] == "gene→image R@10") & (table["method"] == "seal prediction")]["value"]
    assert list(reverse) == [pytest.approx(np.mean(np.array(ranks) <= 10))]


def test_search_from_image_to_image_wants_the_most_similar_profile(sections, model):
    train, test = sections
    genes = list(model.panel.genes)
    table = sl.tl.evaluate(train, model, test=test, genes={"all": genes}).table
    rows = table[table["metric"] == "image→image R@10"].set_index("method")
    assert set(rows.index) == {"adapted", "frozen", "seal prediction", "frozen + ridge"}
    assert (rows["pool"] == 35).all()
    np.testing.assert_allclose(rows["chance"], 10 / 35)
    assert set(table.loc[table["metric"] == "image→image R@50", "value"]) == {1.0}
    # Once more, a spot at a time.
    *training, own = [s.tables["table"][:, genes].layers["lognorm"].toarray() for s in (*train, test)]
    profile = (own - np.concatenate(training).mean(0)) / np.concatenate(training).std(0)
    image = sl.tl.embed(test, model, copy=True).tables["table"].obsm["X_seal"]
    expected = cosine_similarity(profile) - 2 * np.eye(36)
    found = cosine_similarity(image) - 2 * np.eye(36)
    ranks = [(found[i] > found[i, expected[i].argmax()]).sum() + 1 for i in range(36)]
    assert rows.loc["adapted", "value"] == pytest.approx(np.mean(np.array(ranks) <= 10))
    median = table[(table["metric"] == "image→image median_rank") & (table["method"] == "adapted")]["value"]
    assert list(median) == [np.median(ranks)]


def test_leaks_and_foreign_genes_are_refused(sections, model, ready):
    train, _ = sections
    same = ready(section="d", patient="p1", seed=4)
    with pytest.raises(sl.LeakError, match="p1"):
        sl.tl.evaluate(train, model, test=same)
    assert len(sl.tl.evaluate(train, model, test=same, allow_shared_patients=True).table)
    with pytest.raises(sl.PanelError, match="Gene set 'x' has genes outside the model's panel: 'NOPE'"):
        sl.tl.evaluate(train, model, test=sections[1], genes={"x": ["NOPE"]})
    with pytest.raises(sl.PanelError, match="Gene set 'x' is empty"):
        sl.tl.evaluate(train, model, test=sections[1], genes={"x": []})


def test_patients_the_model_was_trained_on_are_refused(model, ready):
    """The model saw p1 and p2, whatever is called training here."""
    other, seen = ready(section="x", patient="p8", seed=7), ready(section="y", patient="p2", seed=8)
    with pytest.raises(sl.LeakError, match=r"trained on patient\(s\) 'p2', who are in the test sections"):
        sl.tl.evaluate(other, model, test=seen)


@pytest.mark.parametrize("name", [" p2", "p2 "])
def test_a_patient_is_known_by_another_spelling(model, ready, name):
    other, seen = ready(section="x", patient="p8", seed=7), ready(section="y", patient=name, seed=8)
    with pytest.raises(sl.LeakError, match=r"trained on patient\(s\) 'p2', who are in the test sections"):
        sl.tl.evaluate(other, model, test=seen)


@pytest.mark.parametrize("missing", [np.nan, None, "", "nan"])
def test_a_patient_must_be_named(ready, finetune, missing):
    """A model that does not know its patients could be evaluated on them."""
    sdata = ready(section="x", patient="p8", seed=7)
    obs = sdata.tables["table"].obs
    obs["patient"] = obs["patient"].astype(object)
    obs.loc[obs.index[:3], "patient"] = missing
    with pytest.raises(sl.DataError, match=r"`.obs\['patient'\]` is empty for 3 spots of section 'x'; fill it in"):
        finetune([sdata])


def test_sections_in_different_units_are_refused(sections):
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    (first, second), test = sections
    sl.pp.normalize(test, target_sum=1e6)
    with pytest.raises(sl.DataError, match=r"different `target_sum` \('a': 10000, 'b': 10000, 'c': 1e\+06\)"):
        sl.tl.evaluate([first, second], encoder, test=test, n_genes=4)
    # Of one among the training sections, given genes do not hide it either.
    sl.pp.normalize(test)
    sl.pp.normalize(second, target_sum=1e6)
    with pytest.raises(sl.DataError, match="different `target_sum`"):
        sl.tl.evaluate([first, second], encoder, test=test, genes={"mine": ["EPCAM", "VIM"]})
    # Targets of HEST-bench's protocol are raw counts.
    assert len(sl.tl.evaluate([first, second], encoder, test=test, preset="hest").table)


@pytest.mark.parametrize("role", ["warmup_patients", "stopping_patients"])
def test_patients_of_warm_up_and_early_stopping_were_seen_too(model, sections, ready, monkeypatch, role):
    monkeypatch.setitem(model.provenance, role, ["p3"])
    train, test = sections
    with pytest.raises(sl.LeakError, match=r"trained on patient\(s\) 'p3'"):
        sl.tl.evaluate(train, model, test=test)


def test_warm_up_on_test_patients_is_refused(sections):
    train, test = sections
    recipe = {"encoder": "vit_tiny_patch16_224", "pretrained": False, "params": {"warmup_epochs": 1}}
    extra = test.tables["table"].copy()
    with pytest.raises(sl.LeakError, match=r"Fold 'patient-p3' tests on patient\(s\) 'p3', whose expression is"):
        sl.tl.evaluate([*train, test], recipe | {"warmup": extra})
    del extra.obs["patient"], extra.obs["section"]
    with pytest.raises(sl.LeakError, match="Tables of `warmup` name no patients"):
        sl.tl.evaluate([*train, test], recipe | {"warmup": [extra]})


def test_default_gene_sets_say_how_many_genes_they_have(sections, model):
    train, test = sections
    table = sl.tl.evaluate(train, model, test=test, n_genes=3).table
    assert set(table.loc[table["metric"] == "pearson", "genes"]) == {"hvg3", "heg3"}
    table = sl.tl.evaluate(train, model, test=test, n_genes=50).table
    assert set(table.loc[table["metric"] == "pearson", "genes"]) == {"hvg8", "heg8"}


def test_gene_sets_as_queries_are_scored_like_retrieval(sections, model):
    train, test = sections
    net = {"epithelium": ["EPCAM", "KRT8", "ERBB2", "ACTB", "VIM"], "small": ["CD3E", "MS4A1"]}
    everything = sl.tl.evaluate(train, model, test=test, net=net)
    rows = everything.pathways
    metrics = everything.summary().columns.get_level_values("metric")
    assert set(metrics) == {"pearson", "R@10", "gene→image R@10"}
    assert set(rows["pathway"]) == {"epithelium"}
    assert {"seal query", "seal head", "frozen + ridge"} <= set(rows["method"])
    row = rows.set_index("method").loc["seal query"]
    sl.tl.embed(test, model)
    found = (
        sl.tl.retrieve(test, model, "epithelium", net=net, copy=True).tables["table"].obs["seal_similarity"].to_numpy()
    )
    measured = (
        sl.tl.pathways(test, net, source="measured", copy=True)
        .tables["table"]
        .obsm["measured_pathways"]["epithelium"]
        .to_numpy()
    )
    assert row["pearson"] == pytest.approx(np.corrcoef(found, measured)[0, 1], abs=1e-4)
    top = measured >= np.sort(measured)[-4]  # a tenth of 36 spots
    assert row["auroc"] == pytest.approx(roc_auc_score(top, found), abs=1e-6)
    assert row["average_precision"] == pytest.approx(average_precision_score(top, found), abs=1e-6)
    assert ((rows["auroc"] >= 0) & (rows["auroc"] <= 1)).all()


def test_gene_sets_that_cannot_be_asked_stop_no_evaluation(sections, model, monkeypatch, caplog):
    train, test = sections
    net = {"epithelium": ["EPCAM", "KRT8", "ERBB2", "ACTB", "VIM"]}
    deaf = np.zeros((2, model.dim), dtype=np.float32) + 1
    monkeypatch.setattr("sealst.tl._retrieve.questions.direction", lambda _: direction(deaf))
    # As a model of an earlier version, which compares embeddings.
    monkeypatch.setattr("sealst.models.SealModel.search_readout", None)
    rows = sl.tl.evaluate(train, model, test=test, net=net).pathways
    assert "seal head" in set(rows["method"])
    assert "seal query" not in set(rows["method"])
    assert "epithelium is not asked as a query" in caplog.text
