"""What a model knows of how far it can be believed: kept with it, bound to it, and never silently good."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.reliability import score_section
from sealst.models import Reliability
from sealst.models._seal.reliability import reliability_of


def known(model, *, by: str = "patient") -> Reliability:
    """Of a held-out cohort in which the first half of the panel is predicted, and the last gene not measured."""
    rng, n, scores = np.random.default_rng(0), len(model.panel), []
    for patient in ("A", "B", "C"):
        measured = rng.normal(size=(60, n))
        predicted = rng.normal(size=(60, n)) + np.where(np.arange(n) < n // 2, 2.0, 0.0) * measured
        half = np.full(n, 0.4)
        scores.append(
            score_section(
                predicted, measured, section=f"{patient}1", patient=patient, half=half, known=np.arange(n) < n - 1
            )
        )
    sets = {"hvg2": np.array([0, 1])}
    return reliability_of(model.fingerprint, scores, model.panel.genes, by=by, sets=sets)


def test_it_is_saved_with_the_model_and_read_back_exactly(model, tmp_path):
    model.reliability = made = known(model)
    back = sl.models.load(model.save(tmp_path / "m"), device="cpu").reliability
    pd.testing.assert_frame_equal(back.table, made.table)
    assert (back.model, back.held_out) == (model.fingerprint, "patients")
    assert (back.patients, back.sections) == (("A", "B", "C"), ("A1", "B1", "C1"))
    assert np.isnan(back.genes.loc["G19", "pearson"])
    assert back.genes["n_patients"].tolist() == [3] * 19 + [0]


def test_the_model_and_its_card_say_what_is_known(model, tmp_path):
    card = (model.save(tmp_path / "before") / "README.md").read_text()
    assert "| Reliability | unknown (nothing was held out" in card
    assert "reliability: unknown (nothing was held out" in repr(model)
    assert not (tmp_path / "before" / "reliability.tsv").exists()
    model.reliability = known(model)
    median = model.reliability.genes["pearson"].median()
    said = f"10 of 20 genes predicted better than chance on unseen patients; median r {median:.2f}"
    assert said in repr(model)
    assert said in repr(model.reliability)
    assert said in (model.save(tmp_path / "after") / "README.md").read_text()
    model.reliability = known(model, by="section")
    assert "on held-out sections of patients that were seen" in repr(model)


def test_one_patient_does_not_tell_genes_from_chance(model):
    rng, n = np.random.default_rng(0), len(model.panel)
    measured = rng.normal(size=(60, n))
    scores = [score_section(measured + rng.normal(size=(60, n)), measured, section="A1", patient="A")]
    found = reliability_of(model.fingerprint, scores, model.panel.genes, by="patient")
    assert not found.genes["better_than_chance"].any()
    said = found.summary()
    assert "20 genes scored on unseen patients; median r 0.67" in said
    assert "too few to tell genes from chance" in said
    assert "0 of 20" not in said


def test_genes_are_looked_up_by_name(model):
    found = known(model).of(["g1", "G19", "ELSEWHERE", "G0"])
    assert found["better_than_chance"].tolist() == [True, False, False, True]
    assert found["pearson"].isna().tolist() == [False, True, True, False]
    assert known(model).summary(["G0", "G12"]).startswith("1 of 2 genes predicted better than chance")


def test_a_model_that_was_trained_on_has_another_reliability(model, tmp_path):
    import torch

    model.reliability = known(model)
    with torch.no_grad():
        model.image_head[1].bias[0] += 1e-3
    with pytest.raises(sl.CheckpointError, match="is of the model .*set it to None"):
        model.save(tmp_path / "m")
    model.reliability = None
    assert sl.models.load(model.save(tmp_path / "m"), device="cpu").reliability is None


def row(text: str, number: int, column: int, value: str) -> str:
    lines = text.split("\n")
    cells = lines[number].split("\t")
    cells[column] = value
    lines[number] = "\t".join(cells)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace('# model: "', '# model: "0'), "is of the model 0.*, which lies beside it. Remove"),
        (lambda text: text.replace("# held_out", "# held"), "`held_out` is missing"),
        (lambda text: text.replace('"patients"', '"spots"'), "`held_out` must be one of"),
        (lambda text: text.replace('# model: "', "# model: "), "reliability.tsv.* is damaged"),
        (lambda text: text.replace("\tceiling", "\tceilings"), "it has no column 'ceiling'"),
        (lambda text: row(text, 5, 2, "2.0"), "row 1 is damaged.*`pearson` must be at most 1"),
        (lambda text: row(text, 5, 7, "inf"), "row 1 is damaged.*`slope` must be a number"),
        (lambda text: row(text, 6, 2, "high"), "row 2 is damaged"),
        (lambda text: row(text, 5, 10, "yes"), "row 1 is damaged.*`better_than_chance` must be True or False"),
        (lambda text: text.rsplit("\t", 1)[0], "damaged.*`n_spots` is missing"),
    ],
)
def test_a_damaged_table_is_refused_by_name(model, tmp_path, damage, said):
    model.reliability = known(model)
    path = model.save(tmp_path / "m") / "reliability.tsv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(sl.CheckpointError, match=said):
        sl.models.load(tmp_path / "m", device="cpu")


# -- from an evaluation -----------------------------------------------------------------------------------------------
def evaluation(model, *, folds=None, **facts):
    """What folds of the model's recipe found on its sections, of half the panel: genes of even number are predicted."""
    model.provenance = {"sections": ["A1", "A2", "B1"], "patients": ["A", "B"]}
    rng, genes, spots, rows = np.random.default_rng(0), model.panel.genes[:10], {}, []
    for name, fold in (folds or {"A1": "patient-A", "A2": "patient-A", "B1": "patient-B"}).items():
        measured = rng.normal(size=(50, 10)).astype(np.float32)
        predicted = rng.normal(size=(50, 10)) + np.where(np.arange(10) % 2, 0.0, 1.0) * measured
        maps = ad.AnnData(measured, var=pd.DataFrame(index=list(genes)), layers={"seal head": predicted})
        # A section may measure fewer genes.
        spots[name.split(":")[0]] = maps if name != "A2" else maps[:, :9].copy()
        rows.append({"fold": fold, "section": name.split(":")[0], "patient": name[0], "method": "seal head"})
    made = {"preset": "cv", "views": 8, "seeds": [0], "models": {"patient-A": model.origin, "patient-B": model.origin}}
    return sl.tl.Evaluation(pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), spots=spots, facts=made | facts)


def test_folds_of_its_recipe_can_be_relied_on(model, tmp_path):
    found = evaluation(model)
    made = model.rely_on(found)
    assert made.model == model.fingerprint
    assert (made.held_out, made.patients, made.sections) == ("patients", ("A", "B"), ("A1", "A2", "B1"))
    r = {name: gene_pearson(maps.layers["seal head"], maps.X) for name, maps in found.spots.items()}
    genes = made.genes
    assert genes.loc["G0", "pearson"] == pytest.approx(((r["A1"][0] + r["A2"][0]) / 2 + r["B1"][0]) / 2, abs=1e-6)
    assert genes.loc["G9", "pearson"] == pytest.approx((r["A1"][9] + r["B1"][9]) / 2, abs=1e-6)
    assert genes["n_sections"].tolist() == [3] * 9 + [2]
    assert genes["better_than_chance"][::2].all()
    pd.testing.assert_frame_equal(sl.models.load(model.save(tmp_path / "m")).reliability.table, made.table)


@pytest.mark.parametrize(
    ("folds", "facts", "said"),
    [
        ({"A1": "f1", "B1": "f2"}, {}, "held out section.*'A1', 'B1', but the model was trained on 'A1', 'A2', 'B1'"),
        ({"A1:1": "f1", "A1:2": "f2"}, {}, "cut through section.*'A1'.*Use `folds='patient'`"),
        (None, {"models": {"f": "another encoder"}}, "of another making: another encoder; this one is of"),
        (None, {"models": {}}, "of an encoder alone"),
        (None, {"views": 1, "preset": "plain"}, "preset 'plain', which sees crops otherwise"),
        (None, {"seeds": [], "encoder": "SealModel 0"}, "The evaluation is of 'SealModel 0', this model is 'SealModel"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(model, folds, facts, said):
    with pytest.raises(sl.DataError, match=said):
        model.rely_on(evaluation(model, folds=folds, **facts))
    assert model.reliability is None


def test_held_out_sections_of_a_patient_are_not_held_out_patients(model):
    made = model.rely_on(evaluation(model, folds={"A1": "s1", "A2": "s2", "B1": "s3"}))
    assert made.held_out == "sections"
    made = evaluation(model)
    for maps in made.spots.values():
        del maps.layers["seal head"]
    with pytest.raises(sl.DataError, match="has no 'seal head' of section 'A1'"):
        model.rely_on(made)
