"""A stored adapter without peft: the same embeddings, gradients, names and files as peft's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sealst as sl
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._low_rank import LowRank, LowRankModel

SETTINGS = [{"n_blocks": 2}, {"rslora": True, "r": 4}, {"dora": True, "r": 4}, {"dora": True, "dropout": 0.0}]
ENCODERS = ["test_vit", "test_resnet"]
PX = 32

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=ENCODERS)
def saved(request, panel, tmp_path):
    """Build a model with peft's layers, every trained weight with a value that matters, and load it again."""

    def make(settings):
        model = SealModel(
            build_encoder(request.param, pretrained=False), panel, crop=CropSpec(16.0, PX),
            adapter=LoraParams(**settings), gene_encoder=GeneVAEParams(hidden=(8,)), head=HeadParams(8),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in model.encoder.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
        return model, sl.models.load(model.save(tmp_path / "model"), device="cpu"), tmp_path

    return make


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_loaded_is_what_peft_gives(settings, saved, crops):
    model, back, _ = saved(settings)
    assert isinstance(back.encoder.backbone, LowRankModel)
    assert not isinstance(model.encoder.backbone, LowRankModel)
    assert back.encoder.adapted == model.encoder.adapted
    assert (back.fingerprint, back.image_fingerprint) == (model.fingerprint, model.image_fingerprint)
    adapted = model.embed_images(crops)
    np.testing.assert_allclose(back.embed_images(crops), adapted, rtol=1e-6, atol=1e-6)
    with back.frozen_encoder(), model.frozen_encoder():
        frozen = model.embed_images(crops)
        np.testing.assert_array_equal(back.embed_images(crops), frozen)
    assert np.abs(adapted - frozen).max() > 1e-3
    np.testing.assert_array_equal(back.embed_images(crops), back.embed_images(crops))
    images = torch.rand(2, 3, PX, PX, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for one in ("merged", "plain"):
            ours, theirs = (getattr(m.encoder, one)().eval() for m in (back, model))
            assert not [m for m in ours.modules() if isinstance(m, LowRank)]
            torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(back.encoder.merged().eval()(images), back.encoder.vit(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_and_dropout_are_those_of_peft(settings, saved):
    model, back, _ = saved(settings)
    images = torch.rand(3, 3, PX, PX, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(model.dim, generator=torch.Generator().manual_seed(2))
    for one in (model, back):
        torch.manual_seed(5)
        (one.encoder.train()(images) * direction).sum().backward()
    for name in model.encoder.adapted:
        ours, theirs = (m.encoder.get_parameter(name).grad for m in (back, model))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert not [n for n, p in back.encoder.named_parameters() if p.grad is not None and n not in back.encoder.adapted]


@pytest.mark.parametrize("settings", SETTINGS[1:3], ids=str)
def test_what_is_saved_again_is_what_peft_wrote(settings, saved):
    _, back, folder = saved(settings)
    again = back.save(folder / "again")
    first, second = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder / "model", again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    texts = [json.loads((p / "adapter" / "adapter_config.json").read_text()) for p in (folder / "model", again)]
    assert texts[0] == texts[1]
    assert sorted(p.name for p in (again / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_saved_model_loads_and_embeds_without_peft():
    folder = Path(__file__).with_name("seal") / "format_3"
    code = f"""
import sys
sys.modules["peft"] = None
import numpy as np, sealst as sl
model = sl.models.load({str(folder)!r}, device="cpu")
print(model.embed_images(np.zeros((1, 32, 32, 3), np.uint8)).shape[0], model.adapter.kind)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "lora"]
