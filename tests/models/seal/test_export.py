"""Exported folders give the same embeddings with nothing of sealst involved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from peft import PeftModel
from PIL import Image

import sealst as sl
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._adapters import resolve_adapter
from sealst.models._encoders.build import build_from_spec
from sealst.models._encoders.encoder import weights_hash
from sealst.models._encoders.records import REGISTRY
from sealst.models._seal.export import POOLER_FILE

CNNS, EVA = ("resnet18", "tf_efficientnet_lite0"), "eva02_tiny_patch14_224"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model_of(small, panel):
    def build(name, adapter="lora"):
        if name in REGISTRY:
            encoder = build_from_spec(small(REGISTRY[name]), pretrained=False)
        else:
            encoder = build_encoder(name, pretrained=False)
            encoder.spec = replace(encoder.spec, input_px=64 - 64 % encoder.spec.patch_px)
        model = SealModel(
            encoder, panel, crop=CropSpec(16.0, encoder.spec.input_px), adapter=resolve_adapter(adapter),
            gene_encoder=GeneVAEParams(hidden=(8,)), head=HeadParams(8),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in model.encoder.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=generator) * 0.05)
        return model

    return build


@pytest.fixture
def crops_of():
    def draw(model, n=3):
        px = model.crop.crop_px
        return np.random.default_rng(1).integers(0, 256, (n, px, px, 3), dtype=np.uint8)

    return draw


def snippet(folder):
    """The code of a folder's card."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    assert "sealst" not in code
    return code.replace("<this folder>", str(folder))


def close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The licence of")
@pytest.mark.parametrize("name", [*REGISTRY, *CNNS, EVA])
def test_card_of_an_exported_encoder_is_code_that_gives_the_same_embeddings(name, model_of, crops_of, tmp_path):
    model = model_of(name)
    crops = crops_of(model)
    folder = model.export_timm(tmp_path / "export")
    scope = {"pictures": [Image.fromarray(c) for c in crops]}
    exec(snippet(folder), scope)
    assert scope["z"].shape == (3, model.dim)
    close(scope["z"].numpy(), model.embed_images(crops))
    assert not [p for p in tmp_path.iterdir() if p != folder], "temporary folders left behind"


@pytest.mark.parametrize("adapter", ["blocks", "full", "none", {"dora": True, "rslora": True}])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_every_mergeable_adapter_is_exported(name, adapter, model_of, crops_of, tmp_path):
    model = model_of(name, adapter)
    folder = model.export_timm(tmp_path / "export")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.from_numpy(crops_of(model)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        found = loaded((images - model.encoder.mean) / model.encoder.std).numpy()
    close(found, model.embed_images(crops_of(model)))


def test_exported_folder_needs_nothing_of_sealst(model_of, crops_of, tmp_path):
    """In a process of its own, in which sealst and peft cannot be imported."""
    model = model_of("vit_tiny_patch16_224")
    crops = crops_of(model)
    folder = model.export_timm(tmp_path / "export")
    np.save(tmp_path / "crops.npy", crops)
    head = """
        import sys
        sys.modules["sealst"] = sys.modules["peft"] = None
        import numpy as np
        from PIL import Image
        pictures = [Image.fromarray(c) for c in np.load("crops.npy")]
    """
    code = textwrap.dedent(head) + snippet(folder) + '\nnp.save("z.npy", z.numpy())\n'
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)
    close(np.load(tmp_path / "z.npy"), model.embed_images(crops))


def test_exported_folder_states_how_crops_are_fed(model_of, tmp_path):
    model = model_of("h0-mini")
    with pytest.warns(sl.SealstWarning, match="does not allow derivatives to be passed on, and merged weights are one"):
        folder = model.export_timm(tmp_path / "export")
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}", pretrained=True))
    assert config["mean"] == pytest.approx(model.encoder.spec.mean)
    assert config["std"] == pytest.approx(model.encoder.spec.std)
    assert (config["input_size"], config["crop_pct"]) == ((3, model.crop.crop_px, model.crop.crop_px), 1.0)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (folder / "README.md").read_text()
    assert "license: cc-by-nc-nd-4.0" in card
    assert "base_model: bioptimus/H0-mini" in card
    assert "**That licence does not allow derivatives to be passed on; this folder is one.**" in card
    assert re.search(r"largest relative difference \d\.\de-0\d", card)


def test_free_licences_do_not_warn(model_of, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", sl.SealstWarning)
        folder = model_of("midnight").export_timm(tmp_path / "export")
    assert "license: mit" in (folder / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:The licence of")
def test_attention_pooler_lies_beside_the_timm_model(model_of, tmp_path):
    folder = model_of("conch").export_timm(tmp_path / "export")
    assert (folder / POOLER_FILE).is_file()
    tokens = timm.create_model(f"local-dir:{folder}", pretrained=True)(torch.rand(1, 3, 32, 32))
    assert tokens.shape == (1, 5, 48)


def test_an_architecture_that_timm_builds_otherwise_is_not_exported(model_of, tmp_path):
    model = model_of("vit_tiny_patch16_224")
    for block in model.encoder.vit.blocks:
        block.norm1.eps = 10.0
    with pytest.raises(sl.CheckpointError, match=r"timm's own 'vit_tiny_patch16_224' gives other embeddings .*nothing"):
        model.export_timm(tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_bottleneck_is_not_merged(model_of, tmp_path):
    with pytest.raises(sl.DataError, match="not linear and cannot be merged"):
        model_of("vit_tiny_patch16_224", "bottleneck").export_timm(tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_existing_folders_are_kept_unless_asked(model_of, tmp_path):
    model = model_of("vit_tiny_patch16_224")
    folder = model.export_timm(tmp_path / "export")
    with pytest.raises(sl.CheckpointError, match="exists; pass `overwrite=True`"):
        model.export_timm(folder)
    model.export_timm(folder, overwrite=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(sl.CheckpointError, match="holds something else"):
        model.export_timm(tmp_path / "other", overwrite=True)
    adapter = model.export_adapter(tmp_path / "adapter")
    with pytest.raises(sl.CheckpointError, match="exists; pass `overwrite=True`"):
        model.export_adapter(adapter)
    assert model.export_adapter(adapter, overwrite=True) == adapter


@pytest.mark.parametrize("name", ["uni2-h", "phikon-v2", "resnet18"])
@pytest.mark.parametrize("adapter", [{}, {"dora": True, "r": 4}])
def test_adapter_alone_gives_the_same_embeddings_through_peft(name, adapter, model_of, crops_of, tmp_path):
    model = model_of(name, adapter)
    folder = model.export_adapter(tmp_path / "adapter")
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json", "README.md"
    }  # fmt: skip
    base = model.encoder.plain()
    loaded = PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
    images = torch.from_numpy(crops_of(model)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        found = loaded((images - model.encoder.mean) / model.encoder.std).numpy()
    close(found, model.embed_images(crops_of(model)))
    stored = json.loads((folder / "base.json").read_text())
    assert stored["sha256"] == weights_hash(model.encoder.base_state())
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == (model.encoder.spec.hf_id or name)


@pytest.mark.parametrize("adapter", ["blocks", "full", "bottleneck", "none"])
def test_only_lora_is_exported_alone(adapter, model_of, tmp_path):
    with pytest.raises(sl.DataError, match=f"adapter of this model is '{adapter}', which peft does not know"):
        model_of("vit_tiny_patch16_224", adapter).export_adapter(tmp_path / "adapter")


def test_nothing_that_is_written_tells_where_a_folder_lay(tmp_path, panel, crops_of):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    tower = tmp_path / "secret" / "tower"
    timm.models.save_for_hf(vit, tower, safe_serialization=True)
    model = SealModel(
        build_encoder(f"local-dir:{tower}"), panel, crop=CropSpec(16.0, 64), adapter=LoraParams(),
        gene_encoder=GeneVAEParams(hidden=(8,)),
    )  # fmt: skip
    written = {
        "timm": model.export_timm(tmp_path / "a"),
        "adapter": model.export_adapter(tmp_path / "b"),
        "alone": model.save(tmp_path / "c"),
        "with base": model.save(tmp_path / "d", include_base=True),
    }
    for name, folder in written.items():
        for path in (p for p in folder.rglob("*") if p.is_file()):
            assert b"secret" not in path.read_bytes(), (name, path.name)
            assert path.stat().st_mode == (folder / "README.md").stat().st_mode
        assert "`tower`" in (folder / "README.md").read_text()
    # This machine knows where it lies, another is told.
    again = sl.models.load(written["alone"], device="cpu")
    assert (again.fingerprint, again.encoder.spec.key) == (model.fingerprint, f"local-dir:{tower}")
    moved = tower.rename(tmp_path / "moved")
    with pytest.raises(sl.WeightsError, match=r"'tower' with weights of sha256 \w{12}…, is no longer at .*secret"):
        sl.models.load(written["alone"], device="cpu")
    assert sl.models.load(written["alone"], encoder=f"local-dir:{moved}", device="cpu").fingerprint == model.fingerprint
    assert sl.models.load(written["alone"], device="cpu").encoder.spec.key == f"local-dir:{moved}"
    with sl.settings.override(cache_dir=tmp_path / "other"):
        with pytest.raises(sl.WeightsError, match="is not known on this machine. Say where it is: `encoder='local-dir"):
            sl.models.load(written["alone"], device="cpu")
        whole = sl.models.load(written["with base"], device="cpu")
        assert (whole.fingerprint, whole.encoder.spec.key) == (model.fingerprint, "local-dir:tower")
        # Its own copy of the base will do.
        assert sl.models.load(whole.save(tmp_path / "e"), device="cpu").fingerprint == model.fingerprint


def test_card_tells_training_and_evaluation(model_of, tmp_path):
    model = model_of("vit_tiny_patch16_224")
    model.history = pd.DataFrame({"epoch": [0, 1], "train_loss": [2.0, 1.5], "val_pearson": [0.1, 0.25]})
    model.provenance = {"sections": ["C2", "C3"], "patients": ["C"], "n_spots": 351}
    rows = [("C5", "frozen + ridge", "hvg50", "pearson", 0.176), ("C5", "adapted + ridge", "hvg50", "pearson", 0.209),
            ("C5", "adapted", None, "R@10", 0.254)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["section", "method", "genes", "metric", "value"])
    card = (model.export_timm(tmp_path / "export", evaluation=table) / "README.md").read_text()
    assert "After the last epoch: loss 1.500, held-out gene Pearson 0.250." in card
    assert "| Training sections | C2, C3 |" in card
    assert "## Evaluation on C5" in card
    assert re.search(r"\| adapted \+ ridge \| 0.209 \|", card)
    assert re.search(r"\| adapted \|.* 0.254 \|", card)
    assert LoraParams().describe(12) in card
