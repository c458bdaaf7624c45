from __future__ import annotations

import copy
import shutil

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from safetensors.torch import save_file

import sealst as sl
from sealst import _section
from sealst._data.crops.reader import read_crops


@pytest.fixture
def small_uni(monkeypatch, tmp_path):
    """A small encoder in the registry, with its weights in the folder that the environment names."""
    from dataclasses import replace

    from sealst.models._encoders import build as _build

    args = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 32}
    spec = replace(
        _build.REGISTRY["uni"], key="uni-like", model_args=args, width=48, n_blocks=2, pool="cls+mean", dim=96
    )
    monkeypatch.setattr(_build, "REGISTRY", {spec.key: spec})
    save_file(_build.build_from_spec(spec, pretrained=False).vit.state_dict(), tmp_path / "uni-like.safetensors")
    monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path))


@pytest.mark.parametrize(("views", "n"), [("auto", 8), (1, 1), (3, 3)])
def test_embedding_is_that_of_each_spots_own_crop(ready, model, views, n):
    sdata = ready(section="t", patient="p9", seed=5)
    sl.tl.embed(sdata, model, views=views)
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    crops = _section.region_crops(sdata, table, region)
    rows, boxes = crops.rows, crops.boxes
    crops = read_crops(_section.image_levels(sdata.images["t_he"]), boxes, 32)
    np.testing.assert_allclose(table.obsm["X_seal"][rows], model.embed_images(crops, views=n), rtol=1e-4, atol=1e-5)
    assert table.obsm["X_seal"].dtype == np.float32
    assert table.obsm["X_seal"].shape == (36, model.dim)
    entry = table.uns["sealst"]["embed"]["X_seal"]
    assert entry["model"] == model.fingerprint
    assert entry["crops"]["t_spots"]["crop_um"] == 64
    assert entry["views"] == n


def test_spots_without_a_crop_get_nan(ready, model, toy_section):
    sdata = toy_section(section="t")
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sdata.tables["table"].obs.loc[sdata.tables["table"].obs_names[3], "crop_ok"] = False
    sl.tl.predict(sdata, model)
    table = sdata.tables["table"]
    assert np.isnan(table.obsm["X_seal"][3]).all()
    assert np.isfinite(np.delete(table.obsm["X_seal"], 3, axis=0)).all()
    assert table.obsm["seal_expression"].iloc[3].isna().all()
    assert table.obsm["seal_expression"].drop(index=table.obs_names[3]).notna().all().all()


def test_prediction_needs_no_expression(toy_section, model):
    """Counts are not looked at: other counts, same prediction."""
    a, b = toy_section(section="t", seed=1), toy_section(section="t", seed=2)
    for sdata in (a, b):
        sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
        sl.tl.predict(sdata, model)
    pd.testing.assert_frame_equal(a.tables["table"].obsm["seal_expression"], b.tables["table"].obsm["seal_expression"])


def test_prediction_is_named_log_expression_from_the_embedding(ready, model):
    sdata = ready(section="t")
    sl.tl.predict(sdata, model)
    table = sdata.tables["table"]
    found = table.obsm["seal_expression"]
    assert tuple(found.columns) == model.panel.genes
    assert list(found.index) == list(table.obs_names)
    # The toy picture has a pixel per µm.
    expected = model.predict_expression(table.obsm["X_seal"], xy=table.obsm["spatial"])
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert table.uns["sealst"]["predict"]["seal_expression"]["unit"] == "log1p-CP10k"
    one = sl.tl.predict(sdata, model, genes=["vim", "EPCAM"], copy=True).tables["table"]
    assert list(one.obsm["seal_expression"].columns) == ["VIM", "EPCAM"]
    assert tuple(table.obsm["seal_expression"].columns) == model.panel.genes


def test_stored_embedding_is_used_only_when_it_is_this_models(ready, model, finetune, monkeypatch):
    sdata = ready(section="t")
    sl.tl.embed(sdata, model)
    with monkeypatch.context() as patch:
        patch.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: pytest.fail("embedded again"))
        sl.tl.predict(sdata, model)
    before = sdata.tables["table"].obsm["X_seal"].copy()
    other = finetune([ready(section="a"), ready(section="b", patient="p2")], seed=8)
    sl.tl.predict(sdata, other)
    assert np.abs(sdata.tables["table"].obsm["X_seal"] - before).max() > 0
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32, min_inside=0.9)
    calls = []
    from sealst.tl._embed import predict as _predict

    real = _predict.embed_watched
    monkeypatch.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: calls.append(1) or real(*a, **k))
    sl.tl.predict(sdata, other)
    assert calls, "crops changed, so the stored embedding is stale"


def test_gene_embedding_and_encoder_by_name(ready, model):
    sdata = ready(section="t")
    sl.tl.embed(sdata, model, modality="gene")
    table = sdata.tables["table"]
    x = model.panel.extract(table.layers["context"], table.var_names)
    np.testing.assert_array_equal(table.obsm["X_seal_gene"], model.embed_genes(x))
    sl.tl.embed(sdata, "vit_tiny_patch16_224", pretrained=False, key_added="X_plain", device="cpu")
    assert table.obsm["X_plain"].shape == (36, 192)
    assert set(table.uns["sealst"]["embed"]) == {"X_seal_gene", "X_plain"}


def test_an_encoder_itself_is_as_good_as_its_name(ready):
    sdata, name = ready(section="n"), "vit_tiny_patch16_224"
    encoder = sl.models.build_encoder(name, pretrained=False)
    sl.tl.embed(sdata, name, pretrained=False, key_added="named")
    sl.tl.embed(sdata, encoder, key_added="given")
    table = sdata.tables["table"]
    np.testing.assert_array_equal(table.obsm["named"], table.obsm["given"])
    assert table.uns["sealst"]["embed"]["given"] == table.uns["sealst"]["embed"]["named"]
    with pytest.raises(sl.DataError, match="`pool` is for an encoder given by name"):
        sl.tl.embed(sdata, encoder, pool="mean")
    with pytest.raises(TypeError, match="`model` must be a SealModel, an encoder or its name, found int"):
        sl.tl.embed(sdata, 3)


def test_convolutional_encoder_by_name(ready):
    sdata = ready(section="t")
    sl.tl.embed(sdata, "resnet18", pretrained=False, key_added="X_cnn", device="cpu", views=1)
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    crops = _section.region_crops(sdata, table, region)
    rows, boxes = crops.rows, crops.boxes
    encoder = sl.models.build_encoder("resnet18", pretrained=False)
    crops = read_crops(_section.image_levels(sdata.images["t_he"]), boxes, 32)
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(table.obsm["X_cnn"][rows], expected, rtol=1e-4, atol=1e-5)
    assert table.uns["sealst"]["embed"]["X_cnn"]["pool"] == "mean"


def test_pathology_encoder_by_key(ready, small_uni):
    """The record decides how tokens are pooled; weights come from the folder of the environment variable."""
    sdata = ready(section="t")
    sl.tl.embed(sdata, "uni-like", key_added="X_v", device="cpu")
    assert sdata.tables["table"].obsm["X_v"].shape == (36, 2 * 48)
    assert sdata.tables["table"].uns["sealst"]["embed"]["X_v"]["pool"] == "cls+mean"


def test_pathways_in_the_same_call(ready, model):
    net = pd.DataFrame(
        {"source": ["s"] * 5 + ["t"] * 5, "target": list(model.panel.genes[:5]) + list(model.panel.genes[3:8])}
    )
    sdata = ready(section="t")
    sl.tl.predict(sdata, model, genes=["EPCAM"], net=net)
    table = sdata.tables["table"]
    assert list(table.obsm["seal_pathways"].columns) == ["s", "t"]
    assert list(table.obsm["seal_expression"].columns) == ["EPCAM"]


def test_gene_sets_that_cannot_be_had_are_told_before_crops_are_read(ready, model, monkeypatch):
    import decoupler

    def offline():
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(decoupler.op, "hallmark", offline)
    monkeypatch.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: pytest.fail("crops were read"))
    sdata = ready(section="t")
    with pytest.raises(sl.DataError, match="offline"):
        sl.tl.predict(sdata, model, net="hallmark")
    assert "seal_expression" not in sdata.tables["table"].obsm


def test_copy_leaves_the_section_alone_and_slots_survive_zarr(ready, model, tmp_path):
    sdata = ready(section="t")
    table = sl.tl.predict(sdata, model, copy=True).tables["table"]
    assert "X_seal" not in sdata.tables["table"].obsm
    sl.tl.predict(sdata, model)
    sdata.write(tmp_path / "t.zarr")
    back = sd.read_zarr(tmp_path / "t.zarr").tables["table"]
    pd.testing.assert_frame_equal(back.obsm["seal_expression"], table.obsm["seal_expression"], check_names=False)
    np.testing.assert_array_equal(back.obsm["X_seal"], table.obsm["X_seal"])
    assert back.uns["sealst"]["embed"]["X_seal"]["model"] == model.fingerprint
    table.write_h5ad(tmp_path / "t.h5ad")


def test_bad_input_is_refused_and_nothing_written(ready, model, toy_section):
    with pytest.raises(sl.OrderError, match=r"Run `sl.pp.pair_crops\(sdata\)` first"):
        sl.tl.embed(toy_section(), model)
    sdata = ready(section="t")
    before = set(sdata.tables["table"].obsm), set(sdata.tables["table"].uns["sealst"])
    cases = [
        (lambda: sl.tl.embed(sdata, model, modality="text"), sl.DataError, "`modality` must be one of"),
        (lambda: sl.tl.embed(sdata, "vit_x"), sl.WeightsError, "No encoder is named 'vit_x'"),
        (lambda: sl.tl.embed(sdata, "vit_tiny_patch16_224", modality="gene"), sl.DataError, "need a SEAL model"),
        (lambda: sl.tl.predict(sdata, model, genes=["NOPE"]), sl.PanelError, "'NOPE'"),
        (lambda: sl.tl.predict(sdata, "vit_x"), TypeError, "`model` must be a SealModel, found str"),
        (lambda: sl.tl.embed(sdata, model, table_key="t"), sl.MissingKeyError, "'t' not found in `sdata.tables`"),
        (lambda: sl.tl.embed(sdata, model, device="cuda:77"), sl.DataError, "no CUDA device|invalid"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    sl.pp.pair_crops(sdata, crop_um=32, crop_px=32)
    text = r"Crops of .t_spots. are 32 µm at 32 px, but the model was trained on 64 µm at 32 px"
    with pytest.raises(sl.DataError, match=text):
        sl.tl.embed(sdata, model)
    assert (set(sdata.tables["table"].obsm), set(sdata.tables["table"].uns["sealst"])) == before


def test_missing_image_is_named(ready, model):
    sdata = ready(section="t")
    del sdata.images["t_he"]
    with pytest.raises(sl.MissingKeyError, match="'t_he' not found in `sdata.images`"):
        sl.tl.embed(sdata, model)


def test_panel_with_no_overlap_is_refused(ready, model):
    sdata = ready(section="t")
    sdata.tables["table"].var_names = [f"X{i}" for i in range(8)]
    with pytest.raises(sl.PanelError, match="Only 0 of the panel's 8 genes"):
        sl.tl.embed(sdata, model, modality="gene")


def _shared(a, b):
    """One SpatialData with two regions in one table."""
    import anndata as ad
    from spatialdata.models import TableModel

    table = ad.concat([a.tables["table"], b.tables["table"]], join="outer")
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(
        table, region=["a_spots", "b_spots"], region_key="region", instance_key="spot_id", overwrite_metadata=True
    )
    images = {"a_he": a.images["a_he"], "b_he": b.images["b_he"]}
    shapes = {"a_spots": a.shapes["a_spots"], "b_spots": b.shapes["b_spots"]}
    return sd.SpatialData(images=images, shapes=shapes, tables={"table": table})


def test_regions_can_be_done_one_by_one(toy_section, model):
    both = _shared(toy_section(section="a"), toy_section(section="b", seed=1))
    sl.pp.pair_crops(both, crop_um=64, crop_px=32)
    at_once = sl.tl.predict(both, model, copy=True).tables["table"]
    sl.tl.embed(both, model, region="a_spots")
    table = both.tables["table"]
    assert np.isfinite(table.obsm["X_seal"]).all(1).sum() == 36
    sl.tl.embed(both, model, region="b_spots")
    sl.tl.predict(both, model, region="a_spots")
    np.testing.assert_allclose(table.obsm["X_seal"], at_once.obsm["X_seal"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.obsm["seal_expression"], at_once.obsm["seal_expression"], rtol=1e-3, atol=1e-4)


def test_crops_stay_on_their_spots_after_a_spatial_query(ready, model):
    """A bounding-box query cuts the image and moves its frame; the squares must follow."""
    sdata = ready(section="t")
    whole = sl.tl.embed(sdata, model, copy=True).tables["table"]
    part = sdata.query.bounding_box(
        axes=("x", "y"), min_coordinate=[130, 130], max_coordinate=[470, 470], target_coordinate_system="global"
    )
    sl.tl.embed(part, model)
    table = part.tables["table"]
    assert 0 < table.n_obs < 36
    inner = table.obsm["spatial"]
    inside = ((inner > 170) & (inner < 430)).all(1)
    assert inside.any()
    np.testing.assert_allclose(
        table.obsm["X_seal"][inside], whole[table.obs_names].obsm["X_seal"][inside], rtol=1e-3, atol=1e-4
    )


def test_moved_spots_make_the_stored_embedding_stale(ready, model):
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata = ready(section="t")
    sl.tl.embed(sdata, model)
    before = sdata.tables["table"].obsm["X_seal"].copy()
    spots = sdata.shapes["t_spots"].copy()
    spots.attrs = {}
    spots["geometry"] = spots.geometry.translate(20, 0)
    sdata.shapes["t_spots"] = ShapesModel.parse(spots, transformations={"global": Identity()})
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.tl.predict(sdata, model)
    assert np.abs(sdata.tables["table"].obsm["X_seal"] - before).max() > 1e-3


def repainted(sdata):
    """Another picture under the same name, with the squares where they were."""
    from spatialdata.transformations import get_transformation

    (key,) = sdata.images
    systems = get_transformation(sdata.images[key], get_all=True)
    levels = [level.data[:, ::-1] for level in _section.image_levels(sdata.images[key])]
    del sdata.images[key]
    sdata.images[key] = _section.multiscale(levels, systems)
    return sdata


def test_another_picture_under_the_same_name_makes_embeddings_stale(ready, model, tmp_path):
    sdata = ready(section="t")
    sl.tl.embed(sdata, model)
    before = sdata.tables["table"].obsm["X_seal"].copy()
    reference = sdata.tables["table"].copy()
    reference.obs["label"] = np.where(np.arange(reference.n_obs) % 2, "a", "b")
    reference.obs_names = [f"r{i}" for i in range(reference.n_obs)]
    repainted(sdata)
    for call in (
        lambda: sl.tl.retrieve(sdata, model, "VIM"),
        lambda: sl.tl.annotate(sdata, model, reference, labels="label", n_neighbors=3),
        lambda: sl.tl.build_index(sdata, tmp_path / "index"),
    ):
        with pytest.raises(sl.OrderError, match="was made from other crops of 't_spots' than the present ones"):
            call()
    # A table alone says nothing of pixels.
    sl.tl.retrieve(sdata.tables["table"].copy(), model, "VIM")
    sl.tl.predict(sdata, model)
    assert np.abs(sdata.tables["table"].obsm["X_seal"] - before).max() > 1e-3
    sl.tl.retrieve(sdata, model, "VIM")


def test_some_spots_of_a_section_keep_their_embedding(ready, model, monkeypatch, tmp_path):
    import spatialdata as sd

    sdata = ready(section="t")
    sl.tl.embed(sdata, model)
    sdata.write(tmp_path / "t.zarr")
    sdata = sd.read_zarr(tmp_path / "t.zarr")
    sdata.tables["table"] = sdata.tables["table"][5:].copy()
    monkeypatch.setattr("sealst.tl._embed.predict.embed_watched", lambda *a, **k: pytest.fail("embedded again"))
    sl.tl.predict(sdata, model)
    # What was computed is used without the picture, too.
    shutil.rmtree(tmp_path / "t.zarr" / "images")
    sl.tl.predict(sdata, model)


def test_expression_of_another_scale_is_refused(ready, model):
    sdata = ready(section="t")
    sl.pp.normalize(sdata, target_sum=1e6)
    with pytest.raises(sl.PanelError, match="normalised to 1e\\+06 counts per spot, the panel's is 10000"):
        sl.tl.embed(sdata, model, modality="gene")


def test_a_stored_embedding_follows_crops_that_come_and_go(ready, model):
    sdata = ready()
    table = sdata.tables["table"]
    first = table.obs_names[0]
    table.obs.loc[first, "crop_ok"] = False
    sl.tl.embed(sdata, model)
    table.obs["crop_ok"] = True
    sl.tl.predict(sdata, model)
    assert not table.obsm["seal_expression"].loc[first].isna().any()
    table.obs.loc[first, "crop_ok"] = False
    sl.tl.predict(sdata, model)
    assert table.obsm["seal_expression"].loc[first].isna().all()


def test_predictions_take_the_views_that_are_there_unless_told(ready, model):
    sdata = ready(section="t")
    sl.tl.embed(sdata, model, views=1)
    table = sdata.tables["table"]
    one = table.obsm["X_seal"].copy()
    sl.tl.predict(sdata, model)
    np.testing.assert_array_equal(table.obsm["X_seal"], one)
    sl.tl.predict(sdata, model, views=8)
    assert table.uns["sealst"]["embed"]["X_seal"]["views"] == 8
    assert np.abs(table.obsm["X_seal"] - one).max() > 1e-6


@pytest.mark.parametrize("views", ["all", 0, 9, 1.5])
def test_views_that_there_are_not(ready, model, views):
    sdata = ready(section="t")
    with pytest.raises(sl.DataError, match="views"):
        sl.tl.embed(sdata, model, views=views)
    assert "X_seal" not in sdata.tables["table"].obsm


def test_a_readout_is_asked_for_by_its_name(ready, model):
    sdata = ready(section="t")
    table = sdata.tables["table"]
    assert model.readouts[-1] == "head"
    sl.tl.predict(sdata, model, readout="head", key_added="by_head")
    assert table.uns["sealst"]["predict"]["by_head"]["readout"] == "head"
    fresh = ready(section="t")
    with pytest.raises(sl.DataError, match="`readout` 'knn' is none of this model's"):
        sl.tl.predict(fresh, model, readout="knn")
    assert not {"X_seal", "seal_expression"} & set(fresh.tables["table"].obsm)
    alone = copy.deepcopy(model)
    alone.use_readouts([])
    with pytest.raises(sl.DataError, match="`readout` 'ridge' is none of this model's: 'head'"):
        alone.target_of("ridge")
