from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import sealst as sl
from sealst.tl._evaluate.views import ModelFeatures, TrunkMemory, trunk_key

RECIPE = {
    "encoder": "vit_tiny_patch16_224",
    "pretrained": False,
    "params": {"epochs": 1, "batch_size": 16, "views": 2},
    "gene_encoder": {"hidden": (16,)},
    "n_genes": 8,
}


def trained(section, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        return sl.tl.finetune([section], **(RECIPE | options))


@pytest.fixture
def cohort(ready):
    return [ready(section=s, patient=f"p{i}", seed=i) for i, s in enumerate("abc")]


def evaluated(cohort, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        return sl.tl.evaluate(cohort, RECIPE, folds="patient", genes={"mine": ["EPCAM", "VIM"]}, **options)


def crops(n: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)


def test_an_evaluation_runs_the_trunk_once_per_section_and_finds_the_same(cohort, monkeypatch):
    seen: list[int] = []
    plain = sl.models.SealModel.trunk_tokens
    monkeypatch.setattr(sl.models.SealModel, "trunk_tokens", lambda m, c: seen.append(len(c)) or plain(m, c))
    found = evaluated(cohort, seeds=[0, 1], baselines=["st-net"])
    # Each of the three sections has its own picture, and each of the two seeds its own random weights; of eight views.
    n = 8 * cohort[0].tables["table"].n_obs
    assert sum(seen) == 2 * 3 * n

    seen.clear()
    monkeypatch.setattr("sealst.tl._evaluate.evaluate.TrunkMemory", lambda room=0: TrunkMemory(room=0))
    without = evaluated(cohort, seeds=[0, 1], baselines=["st-net"])
    assert sum(seen) == 3 * 2 * 3 * n
    pd.testing.assert_frame_equal(found.table, without.table)
    pd.testing.assert_frame_equal(found.genes, without.genes)


def test_features_are_those_of_the_model(model):
    images = crops()
    features = ModelFeatures({"seal": model}, TrunkMemory())
    first, again = features(images), features(images)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first[:, model.dim : 2 * model.dim], model.embed_images(images), atol=1e-5)
    with model.frozen_encoder():
        np.testing.assert_allclose(first[:, : model.dim], model.embed_images(images), atol=1e-5)


def test_other_crops_and_other_weights_are_other_tokens(model):
    memory, key = TrunkMemory(), trunk_key(model)
    kept = memory.tokens(key, crops(), lambda: model.trunk_tokens(crops()))
    other = memory.tokens(key, crops(seed=1), lambda: model.trunk_tokens(crops(seed=1)))
    assert not torch.equal(kept, other)

    def unexpected() -> torch.Tensor:
        raise AssertionError("made again")

    assert memory.tokens(key, crops(), unexpected) is kept
    with pytest.raises(AssertionError, match="made again"):
        memory.tokens(key, crops()[::-1], unexpected)
    block = model.encoder.vit.blocks[0].mlp.fc1
    before = block.weight.detach().clone()
    try:
        with torch.no_grad():
            block.weight[0, 0] += 1
        assert trunk_key(model) != key
    finally:
        with torch.no_grad():
            block.weight.copy_(before)
    assert trunk_key(model) == key


def test_adapted_blocks_do_not_count(ready):
    one, longer = (trained(ready(), params=RECIPE["params"] | {"epochs": n}) for n in (1, 2))
    assert one.fingerprint != longer.fingerprint
    assert trunk_key(one) == trunk_key(longer)


def test_no_more_is_kept_than_there_is_room_for(model):
    size = model.trunk_tokens(crops()).nbytes
    memory, key, made = TrunkMemory(room=2 * size), trunk_key(model), []
    for seed in (0, 1, 2, 0, 1, 2):
        memory.tokens(key, crops(seed=seed), lambda s=seed: made.append(s) or model.trunk_tokens(crops(seed=s)))
    assert made == [0, 1, 2, 2]


def test_a_model_without_a_trunk_is_embedded_whole(ready):
    full = trained(ready(), adapter={"kind": "full"})
    assert trunk_key(full) == ""
    features = ModelFeatures({"seal": full}, TrunkMemory())(crops())
    np.testing.assert_allclose(features[:, full.dim : 2 * full.dim], full.embed_images(crops()), atol=1e-5)
