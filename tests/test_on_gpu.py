"""What runs on a CUDA device runs as on a CPU: to rounding, with every precision, and twice alike."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import sealst as sl
from sealst._core.seeds import seeded
from sealst._train import module as _module
from sealst._train.callbacks import read_checkpoint
from sealst._train.engine import Run, run_stages
from sealst._train.module import AlignStage
from sealst.models import build_encoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "train" / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

TINY = "vit_tiny_patch16_224"
FAST = {"epochs": 2, "batch_size": 16, "views": 2, "lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 1}


def fit(run=None, *, device="cuda", dropout=0.2, n=64, **params):
    """Train the toy model on a device; the model and its losses."""
    model = toy.make_model(dropout, init_values=0.5).to(torch.device(device))
    run = run or Run(seed=1, show=False)
    with seeded(run.seed):
        history = run_stages(model, toy.make_params(**params), train=toy.make_data(n), held_out=None, run=run)
    return model, history.loc[history["stage"] == AlignStage.name, "train_loss"].to_numpy()


def prepared(toy_section, **options):
    sdata = toy_section(**options)
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


def finetuned(sections, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        common = {"encoder": TINY, "pretrained": False, "gene_encoder": {"hidden": (16,)}, "n_genes": 8, "seed": 0}
        return sl.tl.finetune(sections, **(common | {"device": "cuda", "params": FAST} | options))


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("pool", ["cls", "cls+mean"])
def test_a_model_sees_on_a_gpu_what_it_sees_on_a_cpu(toy_section, pool):
    sdata = prepared(toy_section)
    model = finetuned([sdata], pool=pool, device="cpu")
    found = {}
    for device, precision in (("cpu", "auto"), ("cuda", "32-true"), ("cuda", "auto")):
        with sl.settings.override(precision=precision):
            key = f"{device} {precision}"
            sl.tl.embed(sdata, model, device=device, key_added=key)
            found[key] = sdata.tables["table"].obsm[key]
            again = sl.tl.embed(sdata, model, device=device, copy=True).tables["table"]
            np.testing.assert_array_equal(again.obsm["X_seal"], found[key])
    expected = found["cpu auto"]
    # Convolutions round their factors to 10 bits (TF32), as torch does by default.
    np.testing.assert_allclose(found["cuda 32-true"], expected, rtol=0, atol=5e-3 * np.abs(expected).max())
    assert cosine(found["cuda auto"], expected).min() > 0.999


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("options", [
    {}, {"chunk_size": 5}, {"augmentation": "hard"}, {"kl": True, "mask_genes": 0.3, "warmup_epochs": 1},
    {"contrastive": "siglip", "reconstruction": "mse"}, {"accumulate": 2},
], ids=str)  # fmt: skip
def test_training_learns_and_repeats_itself(precision, options):
    model, losses = fit(precision=precision, epochs=8, lr=5e-3, **options)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    again, repeated = fit(precision=precision, epochs=8, lr=5e-3, **options)
    np.testing.assert_array_equal(losses, repeated)
    assert model.fingerprint == again.fingerprint


def test_training_on_a_gpu_takes_the_way_of_a_cpu():
    _, expected = fit(device="cpu", dropout=0.0, epochs=4, precision="32-true")
    _, full = fit(dropout=0.0, epochs=4, precision="32-true")
    _, mixed = fit(dropout=0.0, epochs=4)
    np.testing.assert_allclose(full, expected, rtol=2e-3)
    np.testing.assert_allclose(mixed, expected, rtol=3e-2)


def test_chunks_give_the_losses_of_the_batch():
    _, expected = fit(dropout=0.2, epochs=4, precision="32-true")
    _, chunks = fit(dropout=0.2, epochs=4, precision="32-true", chunk_size=3)
    np.testing.assert_allclose(chunks, expected, rtol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole, losses = fit(epochs=4)
    original, steps = AlignStage.training_step, iter(range(100))

    def stopping(self, *args):
        if next(steps) == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    run = Run(seed=1, folder=tmp_path, show=False, max_steps=2, seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(_module.AlignStage, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(run, epochs=4)
    state = read_checkpoint(tmp_path)
    assert state is not None
    model, _ = fit(Run(seed=1, folder=tmp_path, state=state, show=False, max_steps=2), epochs=4)
    assert model.fingerprint == whole.fingerprint


def test_a_compiled_encoder_learns_alike():
    _, expected = fit(dropout=0.0, epochs=3, precision="32-true")
    model, compiled = fit(dropout=0.0, epochs=3, precision="32-true", compile=True)
    np.testing.assert_allclose(compiled, expected, rtol=2e-3)
    assert model.device.type == "cuda"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_section_is_learned_stored_and_predicted(toy_section, tmp_path, num_workers):
    train = [prepared(toy_section, section=s, patient=f"p{s}", seed=i) for i, s in enumerate("ab")]
    held = prepared(toy_section, section="c", patient="pc", seed=2)
    params = FAST | {"num_workers": num_workers, "patience": 3}
    model = finetuned(train, validation=held, params=params, run_dir=tmp_path / "run")
    assert model.device.type == "cuda"
    scored = model.history.loc[model.history["stage"] == AlignStage.name, "val_pearson"]
    assert np.isfinite(scored).all()
    loaded = sl.models.load(tmp_path / "run" / "model")
    assert loaded.fingerprint == model.fingerprint
    found = {}
    for one, device in ((model, None), (loaded, "cpu")):
        sl.tl.predict(held, one, device=device, key_added=f"X_{device}")
        sl.tl.embed(held, one, device=device)
        hits = sl.tl.retrieve(held, one, "EPCAM", copy=True).tables["table"]
        found[device] = held.tables["table"].obsm[f"X_{device}"], hits.obs["seal_similarity"].to_numpy()
    for on_gpu, on_cpu in zip(found[None], found["cpu"], strict=True):
        assert np.abs(np.asarray(on_gpu) - np.asarray(on_cpu)).max() < 0.1


def test_cached_tokens_give_the_losses_of_crops(toy_section, tmp_path):
    train = [prepared(toy_section)]
    params = FAST | {"views": 1, "augmentation": "none", "precision": "32-true"}
    adapter = {"kind": "lora", "n_blocks": 2, "dropout": 0.0}
    with sl.settings.override(cache_dir=tmp_path):
        losses = [
            finetuned(train, adapter=adapter, params=params | {"cache": cache}).history["train_loss"].to_numpy()
            for cache in ("none", "trunk")
        ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


def test_folds_are_trained_and_scored_twice_alike(toy_section):
    cohort = [prepared(toy_section, section=s, patient=f"p{s}", seed=i) for i, s in enumerate("abc")]
    recipe = {"encoder": TINY, "pretrained": False, "gene_encoder": {"hidden": (16,)}, "n_genes": 8, "params": FAST}
    with warnings.catch_warnings(), sl.settings.override(device="cuda"):
        warnings.simplefilter("ignore", sl.SealstWarning)
        tables = [
            sl.tl.evaluate(cohort, recipe, folds="patient", genes={"mine": ["EPCAM", "VIM"]}, seeds=[0]).table
            for _ in range(2)
        ]
    assert np.isfinite(tables[0]["value"]).any()
    np.testing.assert_array_equal(tables[0]["value"], tables[1]["value"])


def test_an_image_model_runs_where_its_encoder_is():
    images = build_encoder(TINY, pretrained=False).image_model().to("cuda")
    picture = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    found = images(images.transform(picture)[None])
    assert found.device.type == "cpu"
    assert found.dtype == torch.float32
    expected = images.to("cpu")(images.transform(picture)[None])
    assert cosine(found.numpy(), expected.numpy()).min() > 0.999


def test_a_slide_model_learns(tmp_path):
    pytest.importorskip("torchmil")
    rng = np.random.default_rng(0)
    features = {f"s{i}": (rng.normal(size=(30, 8)) + (i % 2)).astype(np.float32) for i in range(40)}
    labels = pd.DataFrame({"slide": list(features), "patient": list(features), "grade": ["low", "high"] * 20})
    bags = sl.io.read_bags(features, labels=labels)
    params = {"epochs": 10, "hidden": 16, "attention": 8, "lr": 1e-2}
    model = sl.tl.fit_slide(bags, target="grade", folds=3, params=params, n_bootstrap=0, seed=0, device="cuda")
    table = model.evaluation.table
    assert table.loc[table["metric"] == "auroc", "value"].max() > 0.9
