"""Intervals of a model: saved with it, bound to it, refused where damaged, and absent where nothing was held out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.scores.intervals import LEVELS, Residuals
from sealst.models._intervals import INTERVALS_FILE, Intervals, intervals_of


def known(model, *, by: str = "patient") -> Intervals:
    """Of three patients, who do not measure the last gene."""
    rng, n = np.random.default_rng(0), len(model.panel)
    measures = np.arange(n) < n - 1
    parts = []
    for patient in "ABC":
        p = rng.uniform(0, 2, (30, n)).astype(np.float32)
        parts.append(Residuals(f"{patient}1", patient, p, p + rng.normal(size=p.shape).astype(np.float32), measures))
    return intervals_of(model.fingerprint, parts, model.panel.genes, by=by, readout="head", views=8)


def test_they_are_saved_with_the_model_and_read_back_exactly(model, tmp_path):
    before, plain = model.fingerprint, model.save(tmp_path / "plain")
    assert not (plain / INTERVALS_FILE).exists()
    assert "| Intervals on new patients | unknown |" in (plain / "README.md").read_text()
    assert sl.models.load(plain, device="cpu").intervals is None
    model.intervals = made = known(model)
    assert model.fingerprint == before
    folder = model.save(tmp_path / "m")
    back = sl.models.load(folder, device="cpu").intervals
    for name in ("constant", "slope", "reach"):
        np.testing.assert_array_equal(getattr(back.spread, name), getattr(made.spread, name))
    facts = ("genes", "model", "held_out", "n_held_out", "readout", "views")
    assert [getattr(back, name) for name in facts] == [getattr(made, name) for name in facts]
    said = "of 19 genes, by 3 held-out patients"
    assert repr(back) == f"Intervals of model {before}: {said}"
    assert f"| Intervals on new patients | {said} |" in (folder / "README.md").read_text()
    assert known(model, by="section").summary().endswith("3 held-out sections of patients that were seen")


def test_genes_are_looked_up_by_name(model):
    made = known(model)
    p = np.full((2, 4), 1.5, dtype=np.float32)
    low, high = made.limits(p, 0.9, genes=["g3", "G0", "elsewhere", "G19"])
    whole = made.limits(np.full((2, 20), 1.5, dtype=np.float32), 0.9)
    np.testing.assert_array_equal(high[:, :2], whole[1][:, [3, 0]])
    np.testing.assert_array_equal(low[:, :2], whole[0][:, [3, 0]])
    assert np.isnan(high[:, 2:]).all()
    assert made.levels == LEVELS
    assert made.known.tolist() == [True] * 19 + [False]


def test_they_are_of_the_model_as_it_was_trained(model, tmp_path):
    model.intervals = known(model)
    with torch.no_grad():
        model.image_head[1].bias[0] += 1e-3
    with pytest.raises(sl.CheckpointError, match="`model.intervals` is of the model .*set it to None"):
        model.save(tmp_path / "m")


def cell(row, column, value):
    """Change a cell of a row, counted from the first gene."""

    def change(text):
        lines = text.split("\n")
        n_facts = sum(line.startswith("# ") for line in lines)
        cells = lines[n_facts + 1 + row].split("\t")
        cells[column] = value
        lines[n_facts + 1 + row] = "\t".join(cells)
        return "\n".join(lines)

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace('# model: "', '# model: "0'), "is of the model 0.*, which lies beside it. Remove"),
        (lambda text: text.replace('"patients"', '"spots"'), "`held_out` must be one of"),
        (lambda text: text.replace("# n_held_out: 3", "# n_held_out: 0"), "`n_held_out` must be a positive number"),
        (lambda text: text.replace("# views: 8", "# views: many"), "intervals.tsv.* is damaged"),
        (lambda text: text.replace("# readout", "# read"), "`readout` is missing"),
        (lambda text: text.replace("\treach_90", "\treach_91"), "it has no column 'reach_90'"),
        (cell(0, 1, "-1.0"), "row 1 is damaged.*`constant` must be 0 or more"),
        (cell(1, 2, "nan"), "row 2 is damaged.*`slope`"),
        (cell(1, 4, "inf"), "row 2 is damaged.*`reach_80` must be at most"),
        (cell(1, 4, "far"), "row 2 is damaged"),
        (cell(2, 5, "0.0"), "must have all numbers or none, which rise"),
        (cell(2, 5, ""), "must have all numbers or none"),
        (cell(3, 0, "ELSE"), "its 20 rows are not the 20 genes of the panel"),
        (lambda text: text.rsplit("\n", 2)[0], "its 19 rows are not the 20 genes of the panel"),
    ],
)
def test_a_damaged_table_is_refused_by_name(model, tmp_path, damage, said):
    model.intervals = known(model)
    path = model.save(tmp_path / "m") / INTERVALS_FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(sl.CheckpointError, match=said):
        sl.models.load(tmp_path / "m", device="cpu")


def test_the_table_is_small_and_plain(model, tmp_path):
    model.intervals = known(model)
    lines = (model.save(tmp_path / "m") / INTERVALS_FILE).read_text().splitlines()
    stated = {key: json.loads(value) for key, value in (line[2:].split(": ", 1) for line in lines[:5])}
    assert stated == {
        "model": model.fingerprint, "held_out": "patients", "n_held_out": 3, "readout": "head", "views": 8,
    }  # fmt: skip
    assert lines[5].split("\t") == ["name", "constant", "slope", "reach_50", "reach_80", "reach_90", "reach_95"]
    assert lines[-1] == "G19" + "\t" * 6
