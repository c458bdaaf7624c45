"""What a model knows of how far it can be believed: kept with it, bound to it, and never silently good."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import sealst as sl
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
