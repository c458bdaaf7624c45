"""What a model keeps of its training: saved with it, bound to what makes its embeddings, refused where damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sealst as sl
from sealst._core.scores.novelty import N_PICTURE, fit_novelty
from sealst.models._novelty import NOVELTY_FILE, Novelty


def known(model) -> Novelty:
    rng, who = np.random.default_rng(0), np.repeat(np.arange(3), 40)
    z, picture = rng.normal(size=(120, model.dim)), rng.normal(size=(120, N_PICTURE))
    cloud, scale = fit_novelty(z, picture, groups=who, units=who)
    return Novelty(cloud, scale, "patients", 3, 120, model.image_fingerprint)


def test_it_is_saved_with_the_model_and_says_the_same(model, crops, tmp_path):
    before, plain = model.fingerprint, model.save(tmp_path / "plain")
    assert not (plain / NOVELTY_FILE).exists()
    assert "novelty" not in json.loads((plain / "config.json").read_text())
    assert "| Novelty of other sections | unknown |" in (plain / "README.md").read_text()
    assert sl.models.load(plain, device="cpu").novelty is None
    model.novelty = made = known(model)
    assert model.fingerprint == before
    folder = model.save(tmp_path / "m")
    back = sl.models.load(folder, device="cpu").novelty
    assert (back.digest, back.summary()) == (made.digest, made.summary())
    z = np.random.default_rng(1).normal(size=(len(crops), model.dim))
    np.testing.assert_array_equal(back.log_distances(z, crops), made.log_distances(z, crops))
    said = "known from 120 training spots; 3 patients were left out in turn"
    assert repr(back) == f"Novelty: {said}"
    assert said in (folder / "README.md").read_text()


def test_it_is_of_what_makes_the_embeddings(model, tmp_path):
    model.novelty = known(model)
    with torch.no_grad():
        model.image_head[1].bias[0] += 1e-3
    model.save(tmp_path / "head")
    name = next(name for name in model.encoder.adapted if "lora_B" in name)
    with torch.no_grad():
        dict(model.encoder.named_parameters())[name][0] += 1e-2
    with pytest.raises(sl.CheckpointError, match="`model.novelty` is of embeddings before .*Set it to None"):
        model.save(tmp_path / "adapter")


def stated(key, value):
    def change(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["novelty"][key] = value
        path.write_text(json.dumps(config))

    return change


def held(name, change):
    def spoil(folder):
        tensors = load_file(folder / NOVELTY_FILE)
        tensors[name] = change(tensors.get(name, torch.zeros(2)))
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / NOVELTY_FILE)

    return spoil


def missing(folder):
    (folder / NOVELTY_FILE).unlink()


def cut(folder):
    (folder / NOVELTY_FILE).write_bytes((folder / NOVELTY_FILE).read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (missing, "lacks novelty.safetensors"),
        (cut, "cannot be read"),
        (stated("n_components", 10**6), "`novelty.n_components` must be at most 32"),
        (stated("n_components", 3), "novelty.safetensors.*has shape"),
        (stated("freedom", -1.0), "`novelty.freedom` must be a positive number"),
        (stated("freedom", 7.0), "is not the one that config.json speaks of"),
        (stated("held_out", 5), "`novelty.held_out` must be text"),
        (stated("images", "0" * 16), "is not the one that config.json speaks of"),
        (stated("digest", None), "`novelty.digest` must be text"),
        (held("cloud.centre", lambda t: t[:-1]), "cloud.centre has shape"),
        (held("cloud.centre", lambda t: t + 1), "is not the one that config.json speaks of"),
        (held("cloud.mean", lambda t: t * float("nan")), "cloud.mean must hold numbers"),
        (held("cloud.scale", lambda t: t * 0), "cloud.scale must hold numbers, deviations those above 0"),
        (held("scale.spread", lambda t: -t), "scale.spread must hold numbers"),
        (held("cloud.covariance", lambda t: -t), "cloud.covariance is none"),
        (held("cloud.covariance", lambda t: t + torch.triu(torch.ones_like(t), 1)), "cloud.covariance is none"),
        (held("more", lambda t: t), "missing or unexpected tensors: 'more'"),
    ],
)
def test_what_is_damaged_is_refused_by_name(model, tmp_path, damage, said):
    model.novelty = known(model)
    folder = model.save(tmp_path / "m")
    damage(folder)
    with pytest.raises(sl.CheckpointError, match=said):
        sl.models.load(folder, device="cpu")
