"""Several fields of view: one encoder, aligned on the first, and a readout that sees all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sealst as sl
from sealst import _section

UM = [64, 128, 192]


@pytest.fixture
def sections(ready):
    return [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]


@pytest.fixture(scope="module")
def _model():
    return []


@pytest.fixture
def model(sections, finetune, _model):
    """One model for all tests that only use it."""
    if not _model:
        _model.append(finetune(sections, crop_um=UM))
    return _model[0]


def test_a_readout_sees_all_fields_beside_those_of_one(model):
    assert set(model.readouts) == {"ridge", "surroundings", "fields", "head"}
    assert model.crop == sl.models.CropSpec(64.0, 32)
    assert model.fields == (64.0, 128.0, 192.0)
    assert model.fields_of("fields") == model.fields
    assert model.fields_of("ridge") == model.fields_of("head") == ()
    assert "'fields' sees 64, 128, 192 µm" in repr(model)
    # Tiles keep to one pass of the encoder.
    assert model.crop_readout in ("ridge", "head")


def test_predictions_are_of_squares_about_the_same_centres(model, ready):
    sdata = ready(section="c", patient="p3", seed=2)
    sl.tl.predict(sdata, model, readout="fields")
    table = sdata.tables["table"]
    one = _section.paired_table(sdata).sections[0]
    parts = []
    for um in UM:
        # As if the size had been paired.
        alone = ready(section="c", patient="p3", seed=2)
        sl.pp.pair_crops(alone, crop_um=um, crop_px=32, min_inside=0)
        wide = _section.paired_table(alone).sections[0]
        np.testing.assert_allclose(one.widened(um).boxes, wide.boxes[np.isin(wide.rows, one.rows)])
        sl.tl.embed(alone, model.encoder, views=8)
        parts.append(alone.tables["table"].obsm["X_seal"][one.rows])
    fields = np.hstack(parts)
    np.testing.assert_allclose(table.obsm["X_seal_fields"][one.rows], fields, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.obsm["X_seal"][one.rows], parts[0], rtol=1e-4, atol=1e-5)
    readout, around = model.readout_of("fields"), model.readout_of("surroundings")
    assert readout.width == around.width == pytest.approx(90)
    # Beside what lies around the first of them.
    dim = model.dim
    fields = np.hstack([fields, around.inputs(fields[:, :dim], one.centres_um)[:, dim:]])
    expected = (fields @ readout.weight.numpy().T + readout.bias.numpy()).clip(0)
    np.testing.assert_allclose(table.obsm["seal_expression"].to_numpy()[one.rows], expected, rtol=1e-3, atol=1e-4)


def test_what_embed_wrote_is_used_and_neither_slot_of_another_model(model, ready, monkeypatch):
    sdata = ready(section="c", patient="p3", seed=2)
    sl.tl.embed(sdata, model)
    table = sdata.tables["table"]
    assert table.obsm["X_seal_fields"].shape == (table.n_obs, 3 * model.dim)
    np.testing.assert_array_equal(table.obsm["X_seal_fields"][:, : model.dim], table.obsm["X_seal"])
    assert list(table.uns["sealst"]["embed"]["X_seal_fields"]["fields_um"]) == UM
    monkeypatch.setattr(type(model.encoder), "embed", lambda *a, **k: pytest.fail("embedded again"))
    sl.tl.predict(sdata, model, readout="fields")
    del table.obsm["X_seal_fields"]
    with pytest.raises(pytest.fail.Exception, match="embedded again"):
        sl.tl.predict(sdata, model, readout="fields")
    # One field needs nothing of the others.
    sl.tl.predict(sdata, model, readout="ridge")
    assert "X_seal_fields" not in table.obsm


def test_regions_are_embedded_in_turn(model, toy_section):
    import spatialdata as sd

    parts = [toy_section(section=name, patient=f"p{i}", seed=i) for i, name in enumerate("uv", start=5)]
    both = sd.concatenate(parts, concatenate_tables=True)
    sl.pp.pair_crops(both, crop_um=64, crop_px=32)
    table = both.tables["table"]
    sl.tl.embed(both, model, region="u_spots")
    # A result of one field alone: what is known of the first region is not half of what is asked of it.
    del table.obsm["X_seal_fields"]
    sl.tl.embed(both, model, region="v_spots")
    known = np.isfinite(table.obsm["X_seal_fields"])
    assert known[36:].all()
    assert not known[:36].any()
    assert np.isfinite(table.obsm["X_seal"]).all()


def test_a_saved_model_sees_the_same_fields(model, tmp_path):
    loaded = sl.models.load(model.save(tmp_path / "m", include_base=True))
    assert loaded.fields == model.fields
    assert loaded.fingerprint == model.fingerprint
    z = np.random.default_rng(0).normal(size=(5, 3 * model.dim)).astype(np.float32)
    asked = {"readout": "fields", "xy": np.array([[0, 0], [90, 0], [0, 90], [90, 90], [900, 900]])}
    np.testing.assert_array_equal(loaded.predict_expression(z, **asked), model.predict_expression(z, **asked))
    with pytest.raises(sl.DataError, match=f"3 fields side by side must be \\(n, {3 * model.dim}\\)"):
        loaded.predict_expression(z[:, : model.dim], **asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields_um": [32.0, 128.0, 192.0]}, "begins with 32"),
        ({"fields_um": [64.0]}, "fields_um"),
        ({"fields_um": None}, "'fields' `fields_um`, and 'ridge' neither"),
        ({"kind": "ridge"}, "must be of different kinds"),
    ],
)
def test_a_damaged_record_is_refused(model, tmp_path, change, message):
    folder = model.save(tmp_path / "m", include_base=True)
    config = json.loads((folder / "config.json").read_text())
    next(one for one in config["readouts"] if one["kind"] == "fields").update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(sl.CheckpointError, match=message):
        sl.models.load(folder)


def test_evaluation_gives_the_frozen_encoder_the_same_fields(model, sections, ready, monkeypatch):
    from sealst.tl._evaluate import methods

    seen: list[set[str]] = []
    fit = methods.best_readouts

    def watched(inputs, *args, **options):
        seen.append(set(inputs))
        return fit(inputs, *args, **options)

    monkeypatch.setattr(methods, "best_readouts", watched)
    test = [ready(section="c", patient="p3", seed=2)]
    found = sl.tl.evaluate(sections, model, test=test).table
    kinds = {"ridge", "surroundings"}
    # Frozen, adapted, and colour, which has no fields.
    assert sorted(seen, key=len) == [kinds, kinds | {"fields"}, kinds | {"fields"}]
    assert {"frozen + ridge", "adapted + ridge", "seal prediction"} <= set(found["method"])


def test_folds_train_with_the_same_fields(sections, ready, fast):
    recipe = {
        "encoder": "vit_tiny_patch16_224", "pretrained": False, "gene_encoder": {"hidden": (16,)}, "n_genes": 8,
        "crop_um": UM, "params": fast | {"epochs": 1},
    }  # fmt: skip
    found = sl.tl.evaluate([*sections, ready(section="c", patient="p3", seed=2)], recipe, folds="patient")
    assert np.isfinite(found.table.query("method == 'seal prediction' and metric == 'pearson'")["value"]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop_um": []}, "`crop_um` is empty"),
        ({"crop_um": [64, 64]}, "names a size twice"),
        ({"crop_um": [64, -1]}, "must be a positive number"),
        ({"crop_um": [50, 64]}, "has crops of 64 µm, not of 50 µm"),
        ({"crop_um": UM, "readout": "head"}, "names 3 fields of view"),
    ],
)
def test_wrong_fields_are_refused(sections, finetune, given, message):
    with pytest.raises(sl.DataError, match=message):
        finetune(sections, **given)


def test_a_run_goes_on_with_the_same_fields_only(sections, finetune, tmp_path):
    finetune(sections, crop_um=UM, run_dir=tmp_path / "run")
    with pytest.raises(sl.DataError, match="differs in 'fields'"):
        finetune(sections, crop_um=UM[:2], run_dir=tmp_path / "run", resume=True)
    again = finetune(sections, crop_um=UM, run_dir=tmp_path / "run", resume=True)
    assert again.fields == tuple(UM)
