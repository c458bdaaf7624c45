from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import sealst as sl


def test_save_load_predict_is_exact(model, crops, tmp_path):
    model.history = pd.DataFrame({"stage": ["align"], "epoch": [1], "train_loss": [0.5]})
    x = np.random.default_rng(0).uniform(0, 3, (7, 20)).astype(np.float32)
    z = model.embed_images(crops)
    folder = model.save(tmp_path / "m")
    back = sl.models.load(folder, device="cpu")
    np.testing.assert_array_equal(back.embed_images(crops), z)
    np.testing.assert_array_equal(back.embed_genes(x), model.embed_genes(x))
    np.testing.assert_array_equal(back.predict_expression(z), model.predict_expression(z))
    assert back.fingerprint == model.fingerprint
    assert back.panel.genes == model.panel.genes
    assert back.history.equals(model.history)
    assert not back.training


def test_folder_is_laid_out_as_documented(model, tmp_path):
    folder = model.save(tmp_path / "m")
    names = files_of(folder)
    assert {"config.json", "panel.tsv", "base.json", "heads.safetensors", "README.md"} <= names
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= names
    assert {"base/config.json", "base/model.safetensors"} <= names  # random weights exist nowhere else
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".ckpt"))]
    assert "random weights" in (folder / "README.md").read_text()
    assert all("lora_" in name for name in load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert not [p for p in tmp_path.iterdir() if p != folder], "temporary folders left behind"


def test_a_folder_that_an_earlier_version_saved_loads_to_the_same_model(tmp_path):
    """`format_3` was written before modules were moved; layout, names of tensors and fingerprint must stay."""
    folder = Path(__file__).with_name("format_3")
    back = sl.models.load(folder, device="cpu")
    assert back.fingerprint == "c61b5e00e7a8e2e7"
    assert back.panel.genes == ("ERBB2", "EPCAM", "VIM", "COL1A1", "CD3E")
    assert back.organs == ("breast", "skin")
    assert back.history["train_loss"].tolist() == [0.5]
    assert back.provenance["sections"] == ["A1"]
    pixels = (np.arange(2 * 32 * 32 * 3) % 251).astype(np.uint8).reshape(2, 32, 32, 3)
    z = back.embed_images(pixels)
    np.testing.assert_allclose(z[0, :4], [-0.4017752, 1.3879012, -0.6280486, 1.4834311], rtol=1e-3)
    np.testing.assert_allclose(z[1, 4:], [-0.71235, 0.8984181, -1.3676344, -0.2300164], rtol=1e-3)
    expected = [0.337153, 0.7078751, 0.700501, 1.8771963, 2.3318579]
    np.testing.assert_allclose(back.predict_expression(z)[0], expected, rtol=1e-3)
    genes = back.embed_genes(np.ones((1, 5), np.float32))
    np.testing.assert_allclose(genes[0, :3], [0.5398062, 0.3499491, -0.1652496], rtol=1e-3)
    again = back.save(tmp_path / "again")
    assert files_of(again) == files_of(folder)
    for name in ("heads.safetensors", "adapter/adapter_model.safetensors", "base/model.safetensors"):
        old, new = load_file(folder / name), load_file(again / name)
        assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in old.items()}
        assert all((new[k] == old[k]).all() for k in old)
    stored, written = (json.loads((path / "config.json").read_text()) for path in (folder, again))
    assert {k: v for k, v in written.items() if k != "sealst"} == {k: v for k, v in stored.items() if k != "sealst"}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_embeddings_do_not_depend_on_batch_size_and_repeat_exactly(model, crops):
    z = model.embed_images(crops)
    np.testing.assert_array_equal(z, model.embed_images(crops))
    np.testing.assert_allclose(model.embed_images(crops, batch_size=2), z, rtol=1e-4, atol=1e-5)


def test_adapter_can_be_switched_off(model, crops):
    adapted = model.embed_images(crops)
    with model.frozen_encoder():
        frozen = model.embed_images(crops)
    plain = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False, pool="cls+mean")
    np.testing.assert_allclose(frozen, plain.embed(crops), atol=1e-5)
    assert np.abs(adapted - frozen).max() > 1e-3
    np.testing.assert_array_equal(model.embed_images(crops), adapted)


def test_predictions_are_log_expression_and_not_negative(model, crops):
    import torch

    with torch.no_grad():
        model.image_head[-1].bias[:10] = -100.0
    predicted = model.predict_expression(model.embed_images(crops))
    assert (predicted[:, :10] == 0).all()
    assert (predicted[:, 10:] > 0).any()
    assert predicted.shape == (7, 20)


def test_fingerprint_changes_with_one_weight(model):
    import torch

    before = model.fingerprint
    with torch.no_grad():
        model.image_head[1].bias[0] += 1e-3
    assert model.fingerprint != before


def test_existing_folder_needs_overwrite_and_foreign_folders_are_never_replaced(model, tmp_path):
    model.save(tmp_path / "m")
    with pytest.raises(sl.CheckpointError, match="exists; pass `overwrite=True`"):
        model.save(tmp_path / "m")
    model.save(tmp_path / "m", overwrite=True)
    (tmp_path / "photos").mkdir()
    with pytest.raises(sl.CheckpointError, match="holds something else"):
        model.save(tmp_path / "photos", overwrite=True)


def test_failed_save_leaves_the_old_model(model, tmp_path, monkeypatch):
    folder = model.save(tmp_path / "m")
    kept = (folder / "heads.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("sealst.models._seal.store.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "m", overwrite=True)
    assert (folder / "heads.safetensors").read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def _drop(name):
    def damage(folder):
        (folder / name).unlink()

    return damage


def _truncate(folder):
    path = folder / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def _lose_tensor(folder):
    tensors = load_file(folder / "heads.safetensors")
    tensors.pop("gene_encoder.to_mu.bias")
    save_file(tensors, folder / "heads.safetensors")


def _reshape_tensor(folder):
    tensors = load_file(folder / "heads.safetensors")
    tensors["gene_encoder.to_mu.bias"] = tensors["gene_encoder.to_mu.bias"][:-1].clone()
    save_file(tensors, folder / "heads.safetensors")


def _alter_tensor(folder):
    tensors = load_file(folder / "heads.safetensors")
    tensors["gene_encoder.to_mu.bias"] += 1
    save_file(tensors, folder / "heads.safetensors")


def _lose_adapter_tensor(folder):
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def _other_base(folder):
    path = folder / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["blocks.0.attn.qkv.bias"] += 1
    save_file(tensors, path)


def _future_format(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))


def _broken_json(folder):
    (folder / "config.json").write_text("{")


def _fewer_genes(folder):
    lines = (folder / "panel.tsv").read_text().splitlines(keepends=True)
    (folder / "panel.tsv").write_text("".join(lines[:-1]))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_drop("heads.safetensors"), "is not a complete sealst model: it lacks 'heads.safetensors'"),
        (_drop("panel.tsv"), "lacks 'panel.tsv'"),
        (_truncate, "cannot be read"),
        (_lose_tensor, "missing or unexpected tensors: 'gene_encoder.to_mu.bias'"),
        (_reshape_tensor, r"gene_encoder.to_mu.bias has shape \(383,\), expected \(384,\)"),
        (_alter_tensor, "do not match config.json's fingerprint"),
        (_lose_adapter_tensor, "adapter_model.safetensors has missing or unexpected tensors"),
        (_other_base, "are not those the adapter was trained on"),
        (_future_format, "another version: `format` must be 3, found 99"),
        (_broken_json, "config.json' is damaged: it is no JSON"),
        (_fewer_genes, "panel"),
    ],
)
def test_damaged_folders_are_refused(model, tmp_path, damage, text):
    folder = model.save(tmp_path / "m")
    damage(folder)
    with pytest.raises(sl.SealstError, match=text):
        sl.models.load(folder, device="cpu")


def test_a_folder_that_is_not_there_and_a_model_in_place_of_an_encoder(model, tmp_path):
    with pytest.raises(sl.CheckpointError, match=r"No model at .*nowhere'"):
        sl.models.load(tmp_path / "nowhere")
    folder = model.save(tmp_path / "m")
    with pytest.raises(sl.WeightsError, match=r"is a saved SEAL model, no encoder: use `sl.models.load"):
        sl.models.build_encoder(str(folder))


def test_wrong_shapes_are_refused(model, crops):
    with pytest.raises(sl.DataError, match=r"Crops must be uint8 \(n, height, width, 3\), found float32"):
        model.embed_images(crops.astype(np.float32))
    with pytest.raises(sl.PanelError, match=r"must be \(n, 20\) in panel order, found \(7, 3\)"):
        model.embed_genes(np.zeros((7, 3)))
    with pytest.raises(sl.DataError, match=r"Embeddings must be \(n, 384\)"):
        model.predict_expression(np.zeros((7, 3)))


def test_repr_names_encoder_panel_and_crops(model):
    assert "vit_tiny_patch16_224 (cls+mean, 384)" in repr(model)
    assert "20 genes" in repr(model)
    assert "16 µm at 32 px" in repr(model)


def test_input_normalisation_comes_from_the_model_not_from_the_weights_folder(model, crops, tmp_path):
    """Same weights in a folder that states another mean: crops are fed as in training."""
    z = model.embed_images(crops)
    folder = model.save(tmp_path / "m")
    config = json.loads((folder / "base" / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (folder / "base" / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(sl.models.load(folder, device="cpu").embed_images(crops), z)


def test_model_survives_moving_and_saving_again(model, crops, tmp_path):
    z = model.embed_images(crops)
    first = model.save(tmp_path / "m")
    first.rename(tmp_path / "moved")
    back = sl.models.load(tmp_path / "moved", device="cpu")
    again = back.save(tmp_path / "again", include_base=True)
    loaded = sl.models.load(again, device="cpu")
    np.testing.assert_array_equal(loaded.embed_images(crops), z)
    elsewhere = sl.models.load(again, encoder=f"local-dir:{tmp_path / 'moved' / 'base'}", device="cpu")
    assert elsewhere.fingerprint == model.fingerprint
    assert elsewhere.encoder.spec.key.endswith("moved/base")


def test_edited_alpha_is_noticed(model, tmp_path):
    folder = model.save(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["adapter"]["alpha"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(sl.CheckpointError, match="fingerprint"):
        sl.models.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"licence": "another", "gated": True, "commercial": False, "citation": "x", "n_params": 3}, True),
        ({"hf_id": "a/b", "filename": "c", "native_mpp": 0.25, "precision": "float16", "seed": 9}, True),
        ({"key": "another"}, True),
        ({"mean": (0.1, 0.1, 0.1)}, False),
        ({"std": (0.1, 0.1, 0.1)}, False),
        ({"pool": "mean+cls"}, False),
    ],
)
def test_fingerprint_counts_only_what_changes_embeddings(model, changes, same):
    before = model.fingerprint
    model.encoder.spec = replace(model.encoder.spec, **changes)
    assert (model.fingerprint == before) == same


def test_base_weights_can_be_named_when_they_have_moved(panel, crops, small, tmp_path, monkeypatch):
    from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel
    from sealst.models._encoders.build import build_from_spec
    from sealst.models._encoders.records import REGISTRY

    spec = small(REGISTRY["conch"])
    save_file(build_from_spec(spec, pretrained=False).vit.state_dict(), tmp_path / "conch.safetensors")
    model = SealModel(
        build_from_spec(spec, weights=tmp_path / "conch.safetensors"),
        panel, crop=CropSpec(16.0, 32), adapter=LoraParams(), gene_encoder=GeneVAEParams(hidden=(8,)),
        head=HeadParams(8),
    )  # fmt: skip
    folder, z = model.save(tmp_path / "m"), model.embed_images(crops)
    assert not (folder / "base").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SEALST_WEIGHTS", raising=False)
    with pytest.raises(sl.WeightsError, match="Visit the model page of MahmoodLab/conch"):
        sl.models.load(folder, device="cpu")
    back = sl.models.load(folder, weights=tmp_path / "conch.safetensors", device="cpu")
    np.testing.assert_array_equal(back.embed_images(crops), z)
    monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path))
    np.testing.assert_array_equal(sl.models.load(folder, device="cpu").embed_images(crops), z)
    save_file(build_from_spec(spec, pretrained=False, seed=5).vit.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(sl.CheckpointError, match="base weights of 'conch' .* are not those the adapter was trained on"):
        sl.models.load(folder, weights=tmp_path / "other.safetensors", device="cpu")
