"""Is a section like what the model has seen? Another stain and a wrong scale stand out, further patients do not."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import sealst as sl
from sealst import _section

SIZE = {"size_um": 600, "mpp": 1.0, "pitch_um": 60, "spot_um": 50, "n_genes": 150}


@pytest.fixture
def said(caplog):
    with sl.settings.override(verbosity="info"), caplog.at_level(logging.INFO, logger="sealst"):
        yield caplog


def paired(sdata):
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=112)
    sl.pp.normalize(sdata)
    return sdata


def altered(sdata, name, *, picture=None, factor=1):
    """The section with another picture, or enlarged by a factor that its scale does not tell."""
    table = sdata.tables["table"]
    pixels = np.moveaxis(np.asarray(_section.image_levels(next(iter(sdata.images.values())))[0]), 0, 2)
    if picture is not None:
        pixels = picture(pixels)
    if factor != 1:
        side = pixels.shape[0] * factor
        pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    counts, xy = table.X, table.obsm["spatial"] * factor
    return sl.io.from_arrays(
        pixels, counts, xy, genes=list(table.var_names), mpp=1.0, spot_um=50.0, section=name, patient=name
    )


def stained(pixels):
    """Another stain: less red is absorbed and more blue."""
    density = -np.log((pixels.astype(np.float32) + 1) / 256) * np.array([0.5, 0.9, 1.7], dtype=np.float32)
    return (256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)


def whole(sdata):
    """Percentile of the only section of a table."""
    return float(_section.novelty_of(sdata.tables["table"], "X_seal")["percentile"].iloc[0])


@pytest.mark.filterwarnings("ignore::sealst.SealstWarning")
def test_another_stain_and_a_wrong_scale_stand_out(finetune):
    sections = sl.datasets.synthetic(7, seed=1, **SIZE)
    train, others = [paired(one) for one in sections[:4]], sections[4:]
    model = finetune(train, params={"epochs": 1, "batch_size": 32, "views": 2, "lr": 1e-3, "weight_decay": 0.05})
    assert (model.novelty.held_out, model.novelty.n_held_out) == ("patients", 4)
    kinds = {
        "fine": others,
        "stain": [altered(one, f"stain{i}", picture=stained) for i, one in enumerate(others)],
        "scale": [altered(one, f"scale{i}", factor=2) for i, one in enumerate(others)],
    }
    found = {}
    for kind, some in kinds.items():
        for one in some:
            sl.tl.embed(paired(one), model, views=1)
        spots = np.concatenate([one.tables["table"].obs["seal_novelty"].dropna() for one in some])
        found[kind] = spots, [whole(one) for one in some]
    assert (found["fine"][0] > 0.95).mean() <= 0.1
    assert max(found["fine"][1]) <= 0.95
    for kind in ("stain", "scale"):
        assert min(found[kind][1]) > 0.95
        both = [np.concatenate([found["fine"][0], found[kind][0]]), found["fine"][1] + found[kind][1]]
        truth = [np.repeat([0, 1], [len(found["fine"][i]), len(found[kind][i])]) for i in range(2)]
        assert min(roc_auc_score(t, b) for t, b in zip(truth, both, strict=True)) >= 0.95


def test_it_is_the_same_over_any_views_and_goes_through_a_file(ready, model, tmp_path, said):
    sdata = ready(section="t", patient="p9", seed=3)
    table = sdata.tables["table"]
    table.obs.loc[table.obs_names[0], "crop_ok"] = False
    sl.tl.embed(sdata, model)
    assert "section 't': median novelty" in said.text
    assert "beyond the 95th percentile of held-out patients" in said.text
    values = table.obs["seal_novelty"].to_numpy()
    assert np.isnan(values[0])
    assert ((values[1:] >= 0) & (values[1:] <= 1)).all()
    made = table.uns["sealst"]["embed"]["X_seal"]
    assert (made["model"], made["novelty"]["n_held_out"]) == (model.fingerprint, 2)
    table.write_h5ad(tmp_path / "t.h5ad")
    row = _section.novelty_of(ad.read_h5ad(tmp_path / "t.h5ad"), "X_seal").loc["t"]
    np.testing.assert_allclose(row["median"], np.median(values[1:]))
    np.testing.assert_allclose(row["beyond"], (values[1:] > 0.95).mean())
    sl.tl.embed(sdata, model, views=1, key_added="X_one")
    np.testing.assert_allclose(table.obs["X_one_novelty"], values, atol=1e-3)
    again = ready(section="t", patient="p9", seed=3)
    again.tables["table"].obs.loc[table.obs_names[0], "crop_ok"] = False
    sl.tl.predict(again, model)
    np.testing.assert_array_equal(again.tables["table"].obs["seal_novelty"], values)
    made["novelty"]["median"] = np.array([2.0])
    with pytest.raises(sl.DataError, match="novelty.median` must be at most 1"):
        sl.tl.embed(sdata, model)


def test_models_that_do_not_know_write_nothing_and_leave_nothing_stale(ready, model, monkeypatch, said):
    sdata = ready(section="t", patient="p9")
    table = sdata.tables["table"]
    sl.tl.embed(sdata, model, views=1)
    before = table.obsm["X_seal"].copy()
    assert "seal_novelty" in table.obs
    monkeypatch.setattr(model, "novelty", None)
    said.clear()
    sl.tl.embed(sdata, model, views=1)
    assert "novelty" not in said.text
    assert "seal_novelty" not in table.obs
    assert "novelty" not in table.uns["sealst"]["embed"]["X_seal"]
    np.testing.assert_array_equal(table.obsm["X_seal"], before)


def test_regions_are_judged_in_turn(toy_section, model):
    import spatialdata as sd

    parts = [toy_section(section=name, patient=f"p{i}", seed=i) for i, name in enumerate("uv", start=5)]
    both = sd.concatenate(parts, concatenate_tables=True)
    sl.pp.pair_crops(both, crop_um=64, crop_px=32)
    table = both.tables["table"]
    sl.tl.embed(both, model, views=1, region="u_spots")
    first = table.obs["seal_novelty"].to_numpy().copy()
    assert np.isfinite(first).sum() == 36
    sl.tl.embed(both, model, views=1, region="v_spots")
    after = table.obs["seal_novelty"].to_numpy()
    np.testing.assert_array_equal(after[:36], first[:36])
    assert np.isfinite(after).all()
    assert sorted(_section.novelty_of(table, "X_seal").index) == ["u", "v"]


def test_a_section_that_lies_beyond_is_warned_of_by_name(ready, model):
    from dataclasses import replace

    sdata, known = ready(section="t", patient="p9"), model.novelty
    near = replace(known, scale=replace(known.scale, level=known.scale.level - np.array([0, 9, 0])))
    try:
        model.novelty = near
        with pytest.warns(sl.SealstWarning, match="'t' is unlike what the model has seen.*what stands out: .*stain"):
            sl.tl.embed(sdata, model, views=1)
    finally:
        model.novelty = known


def test_it_can_be_drawn(ready, model):
    sdata = ready(section="t", patient="p9")
    sl.tl.embed(sdata, model, views=1)
    figure = sl.pl.slide(sdata, "seal_novelty", show=False)
    assert any("seal_novelty" in ax.get_title() for ax in figure.axes)


def test_with_a_single_view_of_the_head_it_is_kept_too(ready, finetune):
    sections = [ready(section=name, patient="p1", seed=i) for i, name in enumerate("ab")]
    model = finetune(sections, readout="head")
    assert (model.novelty.held_out, model.novelty.n_held_out) == ("sections of one patient", 2)
    assert model.readouts == ("head",)


def test_of_joined_tables_novelty_of_sections_is_unknown_and_the_rest_stays(ready, model):
    parts = []
    for section, patient, seed in (("a", "p1", 0), ("b", "p2", 3)):
        sdata = ready(section=section, patient=patient, seed=seed)
        sl.tl.embed(sdata, model)
        assert _section.novelty_of(sdata.tables["table"], "X_seal") is not None
        parts.append(sdata.tables["table"])
    joined = ad.concat(parts, uns_merge="unique")
    assert _section.novelty_of(joined, "X_seal") is None
    sl.tl.retrieve(joined, model, "EPCAM")
    assert joined.obs["seal_similarity"].notna().all()
