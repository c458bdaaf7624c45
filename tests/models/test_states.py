"""Nothing is left changed, nothing is fetched, nothing partial is loaded."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import sealst as sl
from sealst._files import new_folder
from sealst.models import CropSpec, GeneVAEParams, SealModel, build_encoder
from sealst.models._adapters import resolve_adapter

TINY = "vit_tiny_patch16_224"


@pytest.fixture
def model_of(panel):
    def build(adapter, encoder=TINY, pretrained=False):
        model = SealModel(
            build_encoder(encoder, pretrained=pretrained), panel, crop=CropSpec(16.0, 32),
            adapter=resolve_adapter(adapter), gene_encoder=GeneVAEParams(hidden=(8,)),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, p in model.encoder.named_parameters():
                if name in model.encoder.adapted:
                    p.add_(torch.randn(p.shape, generator=generator) * 0.05)
        return model

    return build


@pytest.fixture
def folder(tmp_path):
    """A timm folder with a classifier, as most have."""
    vit = timm.create_model(TINY, num_classes=10, depth=2)
    timm.models.save_for_hf(vit, tmp_path / "timm", model_args={"depth": 2}, safe_serialization=True)
    return tmp_path / "timm"


def test_folders_with_a_classifier_are_loaded_without_it(folder):
    encoder = build_encoder(f"local-dir:{folder}")
    stored = load_file(folder / "model.safetensors")
    own = encoder.base_state()
    assert set(stored) - set(own) == {"head.weight", "head.bias"}
    assert all(torch.equal(own[k], stored[k]) for k in own)
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, 192)


@pytest.mark.parametrize("damage", ["missing", "prefixed"])
def test_partial_folders_are_refused(folder, damage):
    state = load_file(folder / "model.safetensors")
    if damage == "missing":
        state = {k: v for k, v in state.items() if not k.startswith("blocks.1.")}
    else:
        state = {f"backbone.{k}": v for k, v in state.items()}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(sl.WeightsError, match="could not be loaded"):
        build_encoder(f"local-dir:{folder}")


@pytest.mark.parametrize(
    "change",
    [
        {"model_args": {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:%d/evil.pth"}}},
        {"model_args": {"checkpoint_path": "/etc/passwd"}},
        {"arch": "hf-hub:evil/model"},
    ],
)
def test_a_models_facts_fetch_nothing(model_of, small, panel, tmp_path, change):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        path = model_of("lora").save(tmp_path / "m")
        config = json.loads((path / "config.json").read_text())
        config["encoder"] |= json.loads(json.dumps(change).replace("%d", str(server.server_port)))
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(sl.CheckpointError, match="names weights to fetch .* which is never done"):
            sl.models.load(path, device="cpu")
        assert not asked
    finally:
        server.shutdown()


def test_a_token_with_a_line_break_is_not_told(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("SEALST_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_SEC\nRET")
    with pytest.raises(sl.WeightsError, match="HF_TOKEN holds spaces, line breaks") as caught:
        build_encoder("phikon")
    error: BaseException | None = caught.value
    while error is not None:
        assert "SEC" not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("adapter", ["lora", "blocks", "full", "bottleneck"])
def test_frozen_blocks_nest_and_keep_their_state_to_themselves(model_of, adapter, crops, tmp_path):
    model = model_of(adapter)
    adapted, fingerprint = model.embed_images(crops), model.fingerprint
    with model.frozen_encoder():
        frozen = model.embed_images(crops)
        with model.frozen_encoder():
            np.testing.assert_array_equal(model.embed_images(crops), frozen)
        np.testing.assert_array_equal(model.embed_images(crops), frozen)
        for call in (lambda: model.fingerprint, lambda: model.save(tmp_path / "m"), model.encoder.merged):
            with pytest.raises(sl.OrderError, match="leave the `with model.frozen_encoder\\(\\)` block first"):
                call()
    assert np.abs(adapted - frozen).max() > 1e-3
    np.testing.assert_array_equal(model.embed_images(crops), adapted)
    assert model.fingerprint == fingerprint
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("adapter", ["lora", {"kind": "lora", "n_blocks": 2}, "blocks", "full", "bottleneck", "none"])
def test_both_embeddings_share_the_frozen_blocks(model_of, adapter, crops):
    model = model_of(adapter)
    adapted = model.embed_images(crops)
    with model.frozen_encoder():
        frozen = model.embed_images(crops)
    runs = []
    model.encoder.vit.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    both = model.embed_both(crops)
    assert len(runs) == (1 if model.n_trunk else 2)
    np.testing.assert_allclose(both[0], frozen, atol=1e-5)
    np.testing.assert_allclose(both[1], adapted, atol=1e-5)
    if model.n_trunk:
        tokens = model.trunk_tokens(crops)
        np.testing.assert_array_equal(model.embed_both(crops, tokens=tokens), both)
        np.testing.assert_array_equal(model.embed_tokens(tokens), both[1])
        assert len(runs) == 2


def test_failing_to_switch_off_leaves_the_adapter_on(model_of, crops, monkeypatch):
    model = model_of("blocks")
    adapted = model.embed_images(crops)

    class Full(torch.Tensor):
        def to(self, *args, **kwargs):
            raise RuntimeError("out of memory")

    last = list(model.encoder.originals)[-1]
    monkeypatch.setitem(model.encoder.originals, last, model.encoder.originals[last].as_subclass(Full))
    with pytest.raises(RuntimeError, match="out of memory"), model.frozen_encoder():
        pass
    np.testing.assert_array_equal(model.embed_images(crops), adapted)


def test_autocast_around_sees_the_weights_of_the_moment(model_of):
    encoder = model_of("blocks").encoder
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16), encoder.without_adapter():
            expected = encoder(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(images)
            with encoder.without_adapter():
                torch.testing.assert_close(encoder(images), expected)


def test_training_mode_comes_back(model_of, crops, tmp_path):
    model = model_of("lora")
    model.train()
    modes = {n: m.training for n, m in model.named_modules()}
    z = model.embed_images(crops)
    np.testing.assert_array_equal(model.embed_images(crops), z)
    image_model = model.image_model()
    image_model(torch.stack([image_model.transform(c) for c in crops]))
    model.export_timm(tmp_path / "e")
    assert {n: m.training for n, m in model.named_modules()} == modes


def test_loading_leaves_the_callers_random_state(model_of, tmp_path):
    path = model_of("lora").save(tmp_path / "m")
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    sl.models.load(path, device="cpu")
    assert torch.equal(torch.rand(2), expected)


def test_same_weights_in_another_architecture_are_refused(model_of, folder, tmp_path):
    path = model_of("lora", f"local-dir:{folder}", pretrained=True).save(tmp_path / "m")
    assert sl.models.load(path, device="cpu").dim == 192
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["num_heads"] = 6
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(sl.CheckpointError, match="has the right weights, but is built with .*'num_heads': 6"):
        sl.models.load(path, device="cpu")


@pytest.mark.parametrize("damage", [
    lambda c: {k: v for k, v in c.items() if k != "encoder"},
    lambda c: c | {"gene_encoder": {"depth": 3}},
    lambda c: c | {"gene_encoder": {"kind": "of another version"}},
    lambda c: c | {"projection": {"kind": "linear", "width": 3}},
    lambda c: {k: v for k, v in c.items() if k != "organs"},
    lambda c: c | {"crop": 3},
    lambda c: [c],
])  # fmt: skip
def test_damaged_facts_are_told_plainly(model_of, tmp_path, damage):
    path = model_of("lora").save(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(damage(config)))
    with pytest.raises(sl.CheckpointError, match="is damaged"):
        sl.models.load(path, device="cpu")


def test_an_interrupted_replacement_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "m"
    with new_folder(target, overwrite=False, marker="x") as work:
        (work / "x").write_text("old")
    plain, calls = type(target).rename, []

    def rename(self, other):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, other)

    monkeypatch.setattr(type(target), "rename", rename)
    # As on disks that cannot exchange names.
    monkeypatch.setattr("sealst._files.exchange", lambda a, b: False)
    with pytest.raises(KeyboardInterrupt), new_folder(target, overwrite=True, marker="x") as work:
        (work / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["m"]


def test_inputs_without_numbers_are_refused(model_of):
    image_model = model_of("lora").image_model()
    with pytest.raises(sl.DataError, match="must have values from 0 to 1"):
        image_model(torch.full((1, 3, 32, 32), float("nan")))
    with pytest.raises(sl.DataError, match="`n_blocks` must be at least 1"):
        model_of("lora").encoder.trunk(torch.rand(1, 3, 32, 32), 0)


def test_networks_that_need_larger_pictures_are_built():
    assert build_encoder("inception_v3", pretrained=False).spec.dim == 2048
