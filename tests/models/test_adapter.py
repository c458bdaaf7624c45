"""What holds for every adapter on every encoder; a new adapter or record needs no new test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

import sealst as sl
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._adapters import ADAPTERS, add_adapter, counts_blocks, resolve_adapter
from sealst.models._encoders.blocks import block_layers, parameter_depths
from sealst.models._encoders.build import build_from_spec
from sealst.models._encoders.encoder import weights_hash
from sealst.models._encoders.records import RECORDS

CNNS = ("resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050")
#: one setting of every adapter, and those of LoRA that add parameters or change the sum
SETTINGS = {kind: {"kind": kind} for kind in ADAPTERS}
SETTINGS |= {"dora": {"dora": True, "rslora": True, "r": 4}}
#: places are turned into the tokens in every block
EVA = "eva02_tiny_patch14_224"
ENCODERS = [*(r.key for r in RECORDS), *CNNS, EVA]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def encoder_of(small):
    """Encoder by key or timm name, small, every weight with a value that matters."""

    def build(name):
        records = {r.key: r for r in RECORDS}
        if name in records:
            encoder = build_from_spec(small(records[name]), pretrained=False)
        else:
            encoder = build_encoder(name, pretrained=False)
            encoder.spec = replace(encoder.spec, input_px=64 - 64 % encoder.spec.patch_px)
        stir(encoder)
        return encoder

    return build


def stir(module, scale=0.1):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * scale * max(float(p.std()) if p.numel() > 1 else 1, 0.1))


def images_of(encoder, n=3):
    px = encoder.spec.input_px
    return torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(1))


def train(encoder, steps=2):
    """A few steps on the adapter; the gradients stay."""
    encoder.train()
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trainable, lr=0.5) if trainable else None
    images, direction = images_of(encoder), torch.randn(encoder.spec.dim, generator=torch.Generator().manual_seed(2))
    for _ in range(steps if optimiser else 0):  # LoRA's A has no gradient until B has moved
        optimiser.zero_grad()
        (encoder(images) * direction).sum().backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
    return encoder.eval()


def wrap(encoder, adapter, panel):
    return SealModel(
        encoder, panel, crop=CropSpec(16.0, encoder.spec.input_px), adapter=adapter,
        gene_encoder=GeneVAEParams(hidden=(8,)), head=HeadParams(8),
    )  # fmt: skip


def without_dropout(settings):
    adapter = resolve_adapter(settings)
    return replace(adapter, dropout=0.0) if hasattr(adapter, "dropout") else adapter


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ENCODERS)
def test_adapter_contract(name, setting, encoder_of, panel, tmp_path):
    encoder = encoder_of(name)
    images = images_of(encoder)
    with torch.inference_mode():
        plain = encoder(images)
    base = weights_hash(encoder.base_state())
    model = wrap(encoder, without_dropout(SETTINGS[setting]), panel).eval()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), plain, msg="an untrained adapter is the identity")

    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    train(encoder)
    trained = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert set(trained) == set(encoder.adapted)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    # A few steps are too small for some values, and softmax does not feel the bias of keys.
    assert changed <= set(trained)
    assert len(changed) >= 0.9 * len(trained)

    assert weights_hash(encoder.base_state()) == base
    with torch.inference_mode():
        adapted = encoder(images)
        with model.frozen_encoder():
            torch.testing.assert_close(encoder(images), plain)
        assert torch.equal(encoder(images), adapted)
    if setting != "none":
        assert (adapted - plain).abs().max() > 1e-5
    n = model.n_trunk
    if n:
        with torch.inference_mode():
            torch.testing.assert_close(encoder.tail(encoder.trunk(images, n), n), adapted)

    if encoder.bottleneck is None:
        merged = encoder.merged()
        assert set(merged.state_dict()) == set(encoder.base_state())
        with torch.inference_mode():
            again = type(encoder)(merged, encoder.spec).eval()(images)
        scale = float(adapted.abs().max())
        torch.testing.assert_close(again / scale, adapted / scale, rtol=0, atol=1e-5)
    else:
        with pytest.raises(sl.DataError, match="not linear and cannot be merged"):
            encoder.merged()

    back = sl.models.load(model.save(tmp_path / "m"), device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(back.encoder(images), adapted, rtol=0, atol=0)
    assert back.fingerprint == model.fingerprint
    assert back.adapter == model.adapter


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_are_found_in_order(name, encoder_of):
    encoder = encoder_of(name)
    blocks = block_layers(encoder.vit)
    assert len(blocks) == encoder.spec.n_blocks
    assert not [n for block in blocks for n in block if n.startswith(("patch_embed", "conv_stem", "stem", "attn_pool"))]
    if encoder.supports_trunk:
        layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
        assert blocks == [[f"blocks.{i}.{layer}" for layer in layers] for i in range(len(blocks))]
    depths = parameter_depths(encoder.vit)
    assert set(depths) == {n for n, _ in encoder.vit.named_parameters()}
    for depth, block in enumerate(reversed(blocks)):
        assert all(depths[f"{name}.weight"] == depth for name in block)
    assert max(depths.values()) == len(blocks)


@pytest.mark.parametrize("name", CNNS)
def test_depthwise_and_padding_convolutions_get_no_lora(name):
    encoder = build_encoder(name, pretrained=False)
    layers = dict(encoder.vit.named_modules())
    chosen = LoraParams(n_blocks=encoder.spec.n_blocks).layers(encoder)
    assert chosen
    for layer in chosen:
        if isinstance(layers[layer], torch.nn.Conv2d):
            assert layers[layer].groups == 1
            assert type(layers[layer]) is torch.nn.Conv2d or layers[layer].kernel_size == (1, 1)


def test_lora_on_a_transformer_hits_four_layers_per_block():
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
    add_adapter(encoder, LoraParams(n_blocks=3))
    assert len(encoder.adapted) == 4 * 2 * 3
    assert all(".blocks.9." in n or ".blocks.10." in n or ".blocks.11." in n for n in encoder.adapted)


def test_targets_narrow_the_layers_down_and_must_match_some():
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
    assert LoraParams(targets=r"attn\.qkv", n_blocks=2).layers(encoder) == ["blocks.10.attn.qkv", "blocks.11.attn.qkv"]
    assert LoraParams(targets="fc1|fc2").layers(encoder) == ["blocks.11.mlp.fc1", "blocks.11.mlp.fc2"]
    with pytest.raises(sl.DataError, match=r"`adapter.targets` 'query' matches no layer .*'blocks.11.attn.qkv'"):
        add_adapter(encoder, LoraParams(targets="query"))
    with pytest.raises(sl.DataError, match=r"`adapter.targets` '\(' is not a regular expression"):
        LoraParams(targets="(")


@pytest.mark.parametrize("kind", [k for k, c in ADAPTERS.items() if counts_blocks(resolve_adapter(k))])
def test_more_blocks_than_there_are_is_refused(kind):
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(sl.DataError, match="`adapter.n_blocks` is 13, but the encoder .* has only 12 blocks"):
        add_adapter(encoder, resolve_adapter({"kind": kind, "n_blocks": 13}))


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank():
    outputs = {}
    for rslora in (False, True):
        encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
        add_adapter(encoder, LoraParams(r=16, alpha=8, rslora=rslora, targets=r"mlp\.fc2", dropout=0.0))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in encoder.parameters():
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        layer = encoder.vit.blocks[11].mlp.fc2
        x = torch.randn(2, 768, generator=generator)
        outputs[rslora] = layer(x) - layer.base_layer(x)
    # alpha / sqrt(r) over alpha / r
    torch.testing.assert_close(outputs[True], 4 * outputs[False], rtol=1e-3, atol=1e-5)


def test_rates_fall_with_depth_and_new_parameters_keep_the_full_rate(panel):
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
    settings = {"kind": "blocks", "n_blocks": 2, "layer_decay": 0.5, "lr_scale": 0.1}
    model = wrap(encoder, resolve_adapter(settings), panel)
    rates = model.rates()
    assert rates["encoder.backbone.norm.weight"] == rates["encoder.backbone.blocks.11.mlp.fc2.weight"] == 0.1
    assert rates["encoder.backbone.blocks.10.attn.qkv.weight"] == pytest.approx(0.05)
    assert set(rates) == {f"encoder.{n}" for n in encoder.adapted}
    assert not [n for n in encoder.adapted if "blocks.9." in n]
    full = wrap(build_encoder("vit_tiny_patch16_224", pretrained=False), resolve_adapter("full"), panel).rates()
    assert full["encoder.backbone.cls_token"] == pytest.approx(0.02 * 0.7**12)
    assert wrap(build_encoder("vit_tiny_patch16_224", pretrained=False), LoraParams(), panel).rates() == {}


def test_batch_statistics_stay_those_of_pretraining():
    encoder = add_adapter(build_encoder("resnet18", pretrained=False), resolve_adapter("full"))
    encoder.train()
    before = encoder.vit.bn1.running_mean.clone()
    encoder(torch.rand(4, 3, 64, 64) * 5)
    assert torch.equal(encoder.vit.bn1.running_mean, before)
    assert encoder.training
    assert encoder.vit.bn1.weight.requires_grad


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("prefix", sl.DataError, "`adapter` must be one of 'blocks', 'bottleneck', 'full', 'lora', 'none'"),
        ({"rank": 3}, sl.DataError, "`adapter` has no field 'rank'; known: 'r', 'alpha'"),
        ({"kind": "bottleneck", "r": 3}, sl.DataError, "`adapter` has no field 'r'; known: 'width'"),
        ({"r": 0}, sl.DataError, "`adapter.r` must be a positive number"),
        ({"dropout": 2}, sl.DataError, "`adapter.dropout` must be at most 1"),
        ({"kind": "full", "layer_decay": -1}, sl.DataError, "`adapter.layer_decay` must be a positive number"),
        (3, TypeError, "`adapter` must be a name, a mapping or an adapter's parameters, found int"),
    ],
)
def test_wrong_adapters_are_refused(given, error, text):
    with pytest.raises(error, match=text):
        resolve_adapter(given)


def test_adapters_survive_a_dictionary():
    for settings in SETTINGS.values():
        adapter = resolve_adapter(settings)
        assert resolve_adapter(adapter.to_dict()) == adapter
        assert resolve_adapter(adapter) is adapter
        assert adapter.describe(12)


def test_networks_that_timm_cannot_group_have_no_blocks():
    assert block_layers(torch.nn.Sequential(torch.nn.Linear(3, 3))) == []
    assert len(block_layers(timm.create_model("vgg11", num_classes=0))) == 8
