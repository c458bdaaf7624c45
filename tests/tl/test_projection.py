"""Models with projection heads: embeddings stay the encoder's, comparisons go behind the heads."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

import sealst as sl
from sealst import _section
from sealst._core.scores.metrics import recall_at_k, retrieval_ranks
from sealst._core.scores.probes import knn_impute
from sealst._data.crops.source import iter_source


@pytest.fixture(scope="module")
def _made() -> dict:
    return {}


@pytest.fixture
def trained(ready, finetune, tmp_path_factory, _made):
    """A model with a masked autoencoder and projections to 6, its sections, and its run folder."""
    if not _made:
        folder = tmp_path_factory.mktemp("runs") / "one"
        train = [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]
        model = finetune(
            train, gene_encoder={"kind": "mae", "hidden": (16,)}, projection={"kind": "mlp", "dim": 6}, run_dir=folder,
            params={"epochs": 1, "batch_size": 16, "views": 1, "lr": 1e-3, "augmentation": "none"},
        )  # fmt: skip
        test = ready(section="c", patient="p3", seed=2)
        sl.tl.embed(test, model, device="cpu")
        _made["all"] = (model, train, test, folder)
    return _made["all"]


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_what_was_asked_is_in_model_and_run(trained):
    model, _, _, folder = trained
    assert (model.projection.kind, model.projection.dim, model.shared_dim) == ("mlp", 6, 6)
    assert model.gene_params.kind == "mae"
    # A masked autoencoder hides genes in training without being told to.
    assert model.provenance["params"]["mask_genes"] == 0.3
    assert model.history["train_masked"].notna().all()
    run = json.loads((folder / "run.json").read_text())["run"]
    assert run["projection"] == {"kind": "mlp", "dim": 6}
    assert run["gene_encoder"] == {"kind": "mae", "hidden": [16], "dropout": 0.4, "mask": 0.3}
    assert list((folder / "tensorboard" / "align").glob("events.out*"))


def test_saved_models_compare_in_the_same_space(trained):
    model, *_, folder = trained
    back = sl.models.load(folder / "model", device="cpu")
    z = np.random.default_rng(0).normal(size=(5, model.dim)).astype(np.float32)
    for side in ("shared_images", "shared_genes"):
        assert getattr(model, side)(z).shape == (5, 6)
        np.testing.assert_array_equal(getattr(back, side)(z), getattr(model, side)(z))
    assert np.abs(model.shared_images(z) - model.shared_genes(z)).max() > 1e-3
    assert back.fingerprint == model.fingerprint
    with torch.no_grad():
        back.image_projection[0].bias += 0.1
    assert back.fingerprint != model.fingerprint


def test_another_projection_is_another_run(trained, finetune):
    _, train, _, folder = trained
    with pytest.raises(sl.DataError, match="holds another run; it differs in 'gene_encoder.mask', 'projection.kind'"):
        finetune(
            train, gene_encoder={"kind": "mae", "hidden": (16,), "mask": 0.5}, projection={"kind": "linear", "dim": 6},
            params={
                "epochs": 1, "batch_size": 16, "views": 1, "lr": 1e-3, "augmentation": "none", "mask_genes": 0.3,
            },
            run_dir=folder, resume=True,
        )  # fmt: skip


def test_embeddings_keep_the_size_of_the_encoder(trained):
    model, _, test, _ = trained
    table = test.tables["table"]
    assert table.obsm["X_seal"].shape[1] == model.dim == model.encoder.spec.dim
    copy = sl.tl.embed(test, model, modality="gene", copy=True).tables["table"]
    assert copy.obsm["X_seal_gene"].shape[1] == model.dim


def test_expression_is_looked_for_behind_the_projections_and_pictures_before(trained):
    model, _, test, _ = trained
    table = test.tables["table"]
    z = np.asarray(table.obsm["X_seal"])
    ok = np.isfinite(z).all(axis=1)
    profile = pd.Series(model.panel.mean * 1.2, index=list(model.panel.genes))

    def similarity(query, **options):
        return (
            sl.tl.retrieve(test, model, query, copy=True, **options).tables["table"].obs["seal_similarity"].to_numpy()
        )

    found = similarity(profile, by="embedding")
    g = model.shared_genes(model.embed_genes(profile.to_numpy()[None]))
    np.testing.assert_allclose(found[ok], (unit(model.shared_images(z[ok])) @ unit(g).T)[:, 0], atol=1e-5)

    found = similarity("ERBB2", by="embedding")
    raised = np.stack([model.panel.mean, model.panel.mean])
    i = model.panel.genes.index("ERBB2")
    raised[1, i] += 10 * model.panel.std[i]
    start, end = unit(model.shared_genes(model.embed_genes(raised)))
    images = unit(model.shared_images(z[ok]))
    np.testing.assert_allclose(found[ok], unit(images - images.mean(0)) @ unit((end - start)[None])[0], atol=1e-4)

    name = table.obs_names[np.flatnonzero(ok)[0]]
    found = similarity(name, kind="spot")
    np.testing.assert_allclose(found[ok], unit(z[ok]) @ unit(z[ok])[0], atol=1e-5)


def test_an_index_of_the_shared_space_answers_as_the_table_does(trained, tmp_path, ready):
    model, _, test, _ = trained
    plain = sl.tl.build_index(test, tmp_path / "plain")
    shared = sl.tl.build_index(test, tmp_path / "shared", model=model)
    assert (plain.space, plain.dim, shared.space, shared.dim) == ("encoder", model.dim, "shared", 6)
    assert sl.tl.SealIndex.load(tmp_path / "shared").space == "shared"
    with pytest.raises(sl.DataError, match="has no place.*`sl.tl.build_index\\(sections, path, model=model\\)`"):
        sl.tl.retrieve(plain, model, "ERBB2")
    profile = pd.Series(model.panel.mean * 1.2, index=list(model.panel.genes))
    for query, by in product(("ERBB2", profile), ("expression", "embedding")):
        table = sl.tl.retrieve(test, model, query, by=by, n_hits=5, copy=True).tables["table"]
        hits = sl.tl.retrieve(shared, model, query, by=by, n_hits=5)
        assert hits["obs_name"].tolist() == list(table.uns["sealst"]["retrieve"]["seal_similarity"]["hits"])
        np.testing.assert_allclose(
            hits["similarity"], table.uns["sealst"]["retrieve"]["seal_similarity"]["similarities"], atol=1e-5
        )
    # A picture finds the spot that it was cut from, in either space.
    region = _section.regions_of(test.tables["table"])[0]
    crops = _section.region_crops(test, test.tables["table"], region, model.crop.crop_um)
    rows, source = crops.rows, crops.source
    positions, crops = next(iter_source(source, model.crop.crop_px))
    for index in (plain, shared):
        best = sl.tl.retrieve(index, model, crops[0], n_hits=1).iloc[0]
        assert best["obs_name"] == test.tables["table"].obs_names[rows[positions[0]]]
        assert best["similarity"] == pytest.approx(1, abs=1e-4)

    other = ready(section="z", patient="p9", seed=9)
    sl.tl.embed(other, model)
    with pytest.raises(sl.OrderError, match=r"add sections with `index.add\(sections, model=model\)`"):
        shared.add(other)
    shared.add(other, model=model)
    assert len(shared) == len(plain) + 36
    stranger = ready(section="y", patient="p8", seed=8)
    sl.tl.embed(stranger, "vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(sl.OrderError, match="was made by 'vit_tiny_patch16_224', `model` is"):
        sl.tl.build_index(stranger, tmp_path / "stranger", model=model)


def test_evaluation_compares_behind_the_projections(trained):
    model, train, test, _ = trained
    genes = {"all": list(model.panel.genes)}
    table = sl.tl.evaluate(train, model, test=test, genes=genes).table
    table = table[table["section"] != ""].set_index(["method", "metric"])["value"]
    z = np.asarray(test.tables["table"].obsm["X_seal"])
    ok = np.isfinite(z).all(axis=1)

    def genes_of(sdata):
        x = sdata.tables["table"].to_df(model.panel.layer)
        return model.shared_genes(model.embed_genes(model.panel.extract(x.to_numpy(), list(x.columns))))

    ranks = retrieval_ranks(model.shared_images(z[ok]), genes_of(test)[ok], np.arange(ok.sum()))
    assert table["adapted", "R@10"] == pytest.approx(recall_at_k(ranks, (10,), ok.sum())["R@10"])
    assert table["adapted", "median_rank"] == pytest.approx(np.median(ranks))

    reference, y = [], []
    for one in train:
        used = one.tables["table"].obs["crop_ok"].to_numpy(dtype=bool)
        x = one.tables["table"].to_df("lognorm")[list(model.panel.genes)].to_numpy()
        reference.append(genes_of(one)[used])
        y.append(x[used])
    imputed = knn_impute(model.shared_images(z[ok]), np.concatenate(reference), np.concatenate(y), k=50)
    measured = test.tables["table"].to_df("lognorm")[list(model.panel.genes)].to_numpy()[ok]
    from sealst._core.scores.metrics import gene_pearson

    expected = np.nanmean(gene_pearson(imputed, measured))
    assert table["seal retrieval", "pearson"] == pytest.approx(expected, abs=1e-4)


def test_without_projection_embeddings_are_compared_as_they_are(model):
    z = np.random.default_rng(0).normal(size=(5, model.dim)).astype(np.float32)
    np.testing.assert_array_equal(model.shared_images(z), z)
    np.testing.assert_array_equal(model.shared_genes(z), z)
    assert model.shared_dim == model.dim
    with pytest.raises(sl.DataError, match=r"Embeddings must be \(n, 192\), found \(5, 3\)"):
        model.shared_genes(z[:, :3])


def test_wrong_heads_are_refused(ready, finetune):
    one = [ready()]
    with pytest.raises(sl.DataError, match="`projection.kind` must be one of 'none', 'linear', 'mlp', found 'conv'"):
        finetune(one, projection="conv")
    with pytest.raises(sl.DataError, match="`projection.dim` must be a positive number, found 0"):
        finetune(one, projection={"kind": "mlp", "dim": 0})
    with pytest.raises(sl.DataError, match="`params.kl` is True, but the gene encoder 'mlp' is not variational"):
        finetune(one, gene_encoder="mlp", params={"kl": True})


def test_organs_come_from_the_sections(ready, finetune):
    sections = [ready(section=name, patient=name, seed=i) for i, name in enumerate("ab")]
    options = {"epochs": 1, "batch_size": 16, "views": 1, "augmentation": "none", "organ_embedding": True}
    with pytest.raises(sl.DataError, match=r"`params.organ_embedding` needs sections of at least two organs in"):
        finetune(sections, params=options)
    for sdata, organ in zip(sections, ("skin", "lung"), strict=True):
        sdata.tables["table"].obs["organ"] = organ
    model = finetune(sections, params=options)
    assert model.organs == ("lung", "skin")
    assert (model.organ_embedding.weight.abs().sum(1) > 0).all()
