"""The readout that training leaves behind: what `tl.predict` writes."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import sealst as sl
from sealst._train.params import choose, train_params


def two(ready):
    return [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]


def candidate(facts):
    """What the chosen candidate is called among the scores."""
    rank = facts["rank"]
    return f"{'' if rank is None else f'rank-{rank} '}ridge on {facts['target']}"


def usual(scores):
    best = max(scores.values())
    return next(name for name, score in scores.items() if score >= best - 0.1 * abs(best))


def test_training_keeps_the_readout_that_held_out_patients_choose(ready, finetune):
    model = finetune(two(ready))
    *fitted, head = model.readouts
    assert head == "head"
    assert set(fitted) == {"ridge", "surroundings"}
    # The first in their order that comes within a tenth of the best; so of targets below.
    reached = {kind: model.readout_of(kind).facts for kind in ("surroundings", "ridge")}
    reached = {kind: facts["scores"][candidate(facts)] for kind, facts in reached.items()}
    assert fitted[0] == usual(reached)
    facts, kind = model.readout.facts, fitted[0]
    scores = facts["scores"]
    assert {f"ridge on {target}" for target in ("lognorm", "context", "both")} <= set(scores)
    assert facts["kind"] == kind
    by_target = {one: max(v for k, v in scores.items() if k.endswith(one)) for one in ("lognorm", "both", "context")}
    assert facts["target"] == usual(by_target)
    assert scores[candidate(facts)] == by_target[facts["target"]]
    assert facts["held_out"] == "patients"
    assert facts["n_spots"] == 72
    assert kind in repr(model)


def test_predictions_are_those_of_the_readout_unless_the_head_is_asked_for(ready, finetune):
    model = finetune(two(ready))
    sdata = ready(section="c", patient="p3", seed=2)
    sl.tl.predict(sdata, model)
    sl.tl.predict(sdata, model, readout="head", key_added="by_head")
    table = sdata.tables["table"]
    sl.tl.predict(sdata, model, readout="ridge", key_added="by_crop")
    sl.tl.predict(sdata, model, readout="surroundings", key_added="beside")
    z, xy = table.obsm["X_seal"], table.obsm["spatial"]
    readout = model.readout_of("ridge")
    expected = z @ readout.weight.numpy().T + readout.bias.numpy()
    np.testing.assert_allclose(table.obsm["by_crop"], expected.clip(0), rtol=1e-4, atol=1e-5)
    # Spots of the toy section lie 90 µm apart, which is the width of its surroundings.
    readout = model.readout_of("surroundings")
    assert readout.width == pytest.approx(90)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    weight = np.exp(-0.5 * (distance / 90) ** 2) * (distance <= 270)
    around = weight @ z / weight.sum(axis=1, keepdims=True)
    expected = np.hstack([z, around]) @ readout.weight.numpy().T + readout.bias.numpy()
    np.testing.assert_allclose(table.obsm["beside"], expected.clip(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        table.obsm["seal_expression"], table.obsm["by_crop" if model.readouts[0] == "ridge" else "beside"]
    )
    assert not np.allclose(table.obsm["seal_expression"], table.obsm["by_head"])
    made = table.uns["sealst"]["predict"]
    assert made["seal_expression"]["readout"] == model.readouts[0]
    assert made["seal_expression"]["layer"] == model.readout.facts["target"]
    assert (made["by_head"]["readout"], made["by_head"]["layer"]) == ("head", "context")


def test_a_saved_model_predicts_by_the_same_readout(ready, finetune, tmp_path):
    model = finetune(two(ready))
    loaded = sl.models.load(model.save(tmp_path / "m", include_base=True))
    z = np.random.default_rng(0).normal(size=(5, model.dim)).astype(np.float32)
    xy = np.array([[0, 0], [90, 0], [0, 90], [90, 90], [900, 900]])
    assert loaded.readouts == model.readouts
    for kind in model.readouts:
        asked = {"readout": kind, "xy": xy}
        np.testing.assert_array_equal(loaded.predict_expression(z, **asked), model.predict_expression(z, **asked))
    assert loaded.readout.facts == model.readout.facts
    assert loaded.fingerprint == model.fingerprint
    assert "Predicts by" in (tmp_path / "m" / "README.md").read_text()


def test_the_head_alone(ready, finetune):
    model = finetune(two(ready), readout="head")
    assert model.readouts == ("head",)
    assert model.readout is None
    with pytest.raises(sl.DataError, match="`readout` 'ridge' is none of this model's: 'head'"):
        model.predict_expression(np.zeros((1, model.dim), np.float32), readout="ridge")
    with pytest.raises(sl.DataError, match="`readout` must be one of"):
        finetune(two(ready), readout="pls")


def test_one_patient_holds_out_sections_and_one_section_strips(ready, finetune):
    serial = [ready(section="a", patient="p"), ready(section="b", patient="p", seed=1)]
    assert finetune(serial).readout.facts["held_out"] == "sections of one patient"
    single = ready(section="a", patient="p", n=8)
    assert finetune([single]).readout.facts["held_out"] == "strips of one section"


def test_crops_that_are_not_cached_are_turned_as_predictions_turn_them(ready, finetune, fast):
    cached, plain = (
        finetune(two(ready), params=fast | {"augmentation": "none", "cache": cache, "epochs": 1})
        for cache in ("trunk", "none")
    )
    assert cached.readout is not None
    assert plain.readout is not None


def test_what_sections_differ_in_is_not_predicted(ready, finetune):
    sections = two(ready)
    deep = sections[1].tables["table"]
    for layer in ("lognorm", "context"):
        # As of a section that was sequenced deeper: every spot gets more of every gene.
        deep.layers[layer] = deep.layers[layer].toarray() + 2.0
    model = finetune(sections)
    readout = model.readout_of("ridge")
    single = [s.tables["table"].layers["lognorm"] for s in sections]
    level = np.mean([np.asarray(v.mean(axis=0)).ravel() for v in single], axis=0)
    order = [list(deep.var_names).index(g) for g in model.panel.genes]
    for sdata in sections:
        sl.tl.embed(sdata, model)
    centre = np.mean([np.nanmean(s.tables["table"].obsm["X_seal"], axis=0) for s in sections], axis=0)
    predicted = readout.weight.numpy() @ centre + readout.bias.numpy()
    np.testing.assert_allclose(predicted, level[order], atol=0.2)


def test_batches_of_one_section_are_a_parameter(ready, finetune, fast):
    a, b, c = (
        finetune(two(ready), params=fast | n).fingerprint for n in ({"negatives": "all"}, {"negatives": "section"}, {})
    )
    assert a != b
    # Chosen where there are several patients.
    assert b == c
    chosen = [choose(1000, 12, n)["negatives"].value for n in (1, 2)]
    assert chosen == ["all", "section"]
    with pytest.raises(sl.DataError, match=r"`params.negatives` must be one of"):
        train_params({"negatives": "patient"})


def test_a_training_is_not_lost_where_nothing_can_be_held_out(ready, finetune):
    whole, bit = ready(section="a", patient="p1", n=8), ready(section="b", patient="p2", seed=1)
    table = bit.tables["table"]
    table.obs["crop_ok"] = np.arange(table.n_obs) < 1
    with pytest.warns(sl.SealstWarning, match="No readout could be fitted, so the head predicts: 65 spots in 2 group"):
        model = sl.tl.finetune(
            [whole, bit], encoder="vit_tiny_patch16_224", pretrained=False, n_genes=6, device="cpu",
            params={"epochs": 1, "batch_size": 16, "views": 2},
        )  # fmt: skip
    assert model.readouts == ("head",)


def test_surroundings_need_positions(ready, finetune):
    model = finetune(two(ready))
    z = np.zeros((3, model.dim), np.float32)
    with pytest.raises(sl.DataError, match="needs `xy=`, the centres of the crops in µm"):
        model.predict_expression(z, readout="surroundings")
    with pytest.raises(sl.DataError, match="finite position in µm for each of 3 spots"):
        model.predict_expression(z, readout="surroundings", xy=np.full((3, 2), np.nan))
    assert model.predict_expression(z, readout=model.crop_readout).shape == (3, len(model.panel))


def test_sections_of_one_table_are_no_surroundings_of_each_other(toy_section, ready, finetune):
    model = finetune(two(ready))
    options = [{"section": name, "patient": "p3", "seed": seed} for name, seed in (("c", 2), ("d", 3))]
    joined = sd.concatenate([toy_section(**one) for one in options], concatenate_tables=True)
    sl.pp.pair_crops(joined, crop_um=64, crop_px=32)
    apart = []
    for one in (ready(**given) for given in options):
        sl.tl.predict(one, model, readout="surroundings")
        apart.append(one.tables["table"].obsm["seal_expression"].to_numpy())
    sl.tl.predict(joined, model, readout="surroundings")
    np.testing.assert_allclose(joined.tables["table"].obsm["seal_expression"], np.vstack(apart), rtol=1e-5, atol=1e-6)
