"""What holds for every encoder of the registry; a new record needs no new test."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from timm.layers import SwiGLUPacked

import sealst as sl
from sealst.models import CropSpec, EncoderSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._adapters import add_adapter
from sealst.models._encoders.build import add_pooler, build_from_spec
from sealst.models._encoders.encoder import weights_hash
from sealst.models._encoders.records import RECORDS, REFUSED, REGISTRY
from sealst.models._encoders.spec import POOLS
from sealst.models._encoders.weights import CONVERTERS, convert, find_weights

every = pytest.mark.parametrize("spec", REGISTRY.values(), ids=REGISTRY.keys())
published = pytest.mark.parametrize("spec", RECORDS, ids=[r.key for r in RECORDS])

ISSUED = {"uni", "uni2-h", "conch", "conch-v1.5", "virchow", "virchow2", "phikon", "phikon-v2", "gigapath", "gpfm"}
ISSUED |= {"h-optimus-0", "h-optimus-1", "h0-mini", "hibou-b", "hibou-l", "lunit-s8", "lunit-s16", "midnight"}
ISSUED |= {"kaiko-s16", "kaiko-s8", "kaiko-b16", "kaiko-b8", "kaiko-l14"}
ISSUED |= {"gigapath-flash", "open-midnight", "crown", "keep", "mascaret", "phaet", "sealst-tiny"}


def _on_meta(arch, args, pooler=None):
    with torch.device("meta"):
        vit = timm.create_model(arch, pretrained=False, num_classes=0, dynamic_img_size=True, **args)
        if pooler is not None:
            add_pooler(vit, pooler)
    return vit


def _images(spec, n=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, spec.input_px, spec.input_px, generator=generator)


def _stirred(module):
    """Give every parameter a value that matters, also those that start at 0 or 1e-5."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)


def test_every_published_encoder_is_there():
    assert set(REGISTRY) >= ISSUED
    assert {"virchow2-cls", "h0-mini-cls+mean", "midnight-cls+mean", "conch-attn-proj"} <= set(REGISTRY)
    assert not set(REFUSED) & set(REGISTRY)
    assert set(REFUSED) == {"musk", "rudolfv2", "rudolfv2-b", "rudolfv2-s", "genbio-pathfm", "ctranspath"}


@pytest.mark.parametrize(("key", "base"), [("mascaret", "midnight"), ("phaet", "phikon-v2")])
def test_what_was_trained_further_has_the_tower_that_it_began_as(key, base):
    own, other = REGISTRY[key], REGISTRY[base]
    for name in ("arch", "model_args", "width", "n_blocks", "n_prefix", "patch_px", "mean", "std", "converter"):
        assert getattr(own, name) == getattr(other, name)


@pytest.mark.parametrize("wrapper", ["", "dinov2.", "encoder.", "model.", "module.model.encoder."])
def test_a_tower_is_found_within_what_wraps_it(wrapper):
    names = ["embeddings.cls_token", "encoder.layer.0.norm1.weight", "layernorm.weight"]
    state = {wrapper + name: torch.zeros(1) for name in names}
    assert set(convert(state, "hf", {})) == set(convert({name: torch.zeros(1) for name in names}, "hf", {}))


def test_encoders_that_no_module_of_timm_is_are_refused_by_name():
    for key in REFUSED:
        with pytest.raises(sl.WeightsError, match="is not listed"):
            build_encoder(key)


@published
def test_full_size_is_what_the_record_says(spec):
    vit = _on_meta(spec.arch, spec.model_args, spec if spec.pooler_args else None)
    n_params = sum(p.numel() for p in vit.parameters())
    assert n_params == pytest.approx(spec.n_params, rel=0.01)
    found = (vit.num_features, len(vit.blocks), vit.num_prefix_tokens, vit.patch_embed.patch_size[0])
    assert found == (spec.width, spec.n_blocks, spec.n_prefix, spec.patch_px)
    assert spec.dim == (vit.attn_pool.query.shape[1] if spec.pool == "attn" else found[0] * len(spec.pool.split("+")))
    assert spec.input_px % spec.patch_px == 0
    assert spec.converter in CONVERTERS
    assert spec.pools[0] == spec.pool
    assert set(spec.pools) <= set(POOLS)
    # What is on no hub is shipped.
    assert spec.hf_id.count("/") == 1 or find_weights(spec).name == spec.filename
    assert spec.filename
    assert spec.citation
    assert spec.licence != "unknown"


@pytest.mark.parametrize(
    ("key", "arch", "args"),
    [
        ("uni2-h", "vit_giant_patch14_224", {"patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5,
         "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8}),
        ("virchow", "vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": ""}),
        ("virchow2", "vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4}),
        ("h0-mini", "vit_base_patch14_reg4_dinov2", {"init_values": 1e-5, "mlp_ratio": 5.33334}),
    ],
)  # fmt: skip
def test_gated_towers_equal_the_published_constructor_calls(key, arch, args):
    theirs = _on_meta(arch, args | {"img_size": 224, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU})
    ours = _on_meta(REGISTRY[key].arch, REGISTRY[key].model_args)
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]
    for a, b in zip(theirs.modules(), ours.modules(), strict=True):
        assert type(a) is type(b)
        assert getattr(a, "eps", None) == getattr(b, "eps", None)


@every
def test_embedding_has_the_size_of_the_record_and_repeats(spec, small):
    spec = small(spec)
    encoder = build_from_spec(spec, pretrained=False)
    images = _images(spec)
    with torch.inference_mode():
        found = encoder(images)
        assert torch.equal(found, encoder(images))
        alone = torch.cat([encoder(i[None]) for i in images])
        for n in (1, 2):
            torch.testing.assert_close(encoder.tail(encoder.trunk(images, n), n), found)
    assert found.shape == (3, spec.dim)
    assert encoder.spec.dim == spec.dim
    assert not encoder.training
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-5)


@every
def test_embedding_is_the_pooling_that_the_record_names(spec, small):
    spec = small(spec)
    encoder = build_from_spec(spec, pretrained=False)
    images = _images(spec)
    with torch.inference_mode():
        tokens = encoder.vit.forward_features((images - encoder.mean) / encoder.std)
        parts = {"cls": tokens[:, 0], "mean": tokens[:, spec.n_prefix :].mean(1)}
        if spec.pooler_args:
            # timm's own forward pools by the module inside.
            parts["attn"] = encoder.vit((images - encoder.mean) / encoder.std)
        if "attn-proj" in spec.pools:
            parts["attn-proj"] = parts["attn"] @ encoder.vit.attn_pool.to_text
        expected = torch.cat([parts[p] for p in spec.pool.split("+")], dim=1)
        torch.testing.assert_close(encoder(images), expected)


@every
def test_attention_pooler_is_adapted_where_there_is_one(spec, small):
    spec = small(spec)
    encoder = build_from_spec(spec, pretrained=False)
    if not spec.pool.startswith("attn"):
        with pytest.raises(sl.DataError, match="`adapter.pooler` is True, but embeddings of .* not by attention"):
            add_adapter(encoder, LoraParams(pooler=True))
        return
    _stirred(encoder)
    add_adapter(encoder, LoraParams(r=2, n_blocks=2, dropout=0.0, pooler=True))
    assert len(encoder.adapted) == 2 * (4 * 2 + 4)
    trained = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    direction = torch.randn(spec.dim, generator=torch.Generator().manual_seed(2))
    (encoder(_images(spec)) * direction).sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in trained.items() if "lora_B" in n)


@every
def test_saved_model_comes_back_exactly(spec, small, panel, tmp_path):
    spec = small(spec)
    encoder = build_from_spec(spec, pretrained=False, seed=4)
    model = SealModel(
        encoder,
        panel,
        crop=CropSpec(16.0, spec.input_px),
        adapter=LoraParams(n_blocks=1, pooler=spec.pool == "attn"),
        gene_encoder=GeneVAEParams(hidden=(8,)),
        head=HeadParams(8),
    )
    _stirred(model)
    crops = np.random.default_rng(0).integers(0, 255, (3, spec.input_px, spec.input_px, 3), dtype=np.uint8)
    z = model.embed_images(crops)
    back = sl.models.load(model.save(tmp_path / "m"), device="cpu")
    np.testing.assert_array_equal(back.embed_images(crops), z)
    assert back.encoder.spec == model.encoder.spec
    assert back.fingerprint == model.fingerprint
    again = sl.models.load(back.save(tmp_path / "again"), device="cpu")
    np.testing.assert_array_equal(again.embed_images(crops), z)


@every
def test_record_survives_json_and_says_what_it_is(spec):
    assert EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.key in repr(spec)
    assert spec.licence in repr(spec)
    assert hash(spec) == hash(EncoderSpec.from_dict(spec.to_dict()))


@every
def test_variants_share_the_weights_of_their_base(spec):
    if not spec.variant_of:
        return
    base = REGISTRY[spec.variant_of]
    assert (base.hf_id, base.arch, base.model_args, base.filename) == (
        spec.hf_id, spec.arch, spec.model_args, spec.filename
    )  # fmt: skip
    assert spec.pool != base.pool
    assert spec.key == f"{base.key}-{spec.pool}"


def test_keys_with_one_embedding_size_differ_in_pooling(small):
    """The rule is stored, not only the name: another pooling is another vector from the same weights."""
    conch, text = (build_from_spec(small(REGISTRY[k]), pretrained=False) for k in ("conch", "conch-attn-proj"))
    assert weights_hash(conch.base_state()) == weights_hash(text.base_state())
    images = _images(conch.spec)
    with torch.inference_mode():
        assert (conch(images) - text(images)).abs().max() > 1e-2


@pytest.mark.parametrize("key", ["kaiko-s16", "lunit-s8"])
def test_small_encoders_at_full_size(key):
    encoder = build_encoder(key, pretrained=False)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(encoder.spec.n_params, rel=0.01)
    with torch.inference_mode():
        assert encoder(torch.rand(1, 3, 224, 224)).shape == (1, 384)


def test_pool_can_be_asked_for_by_argument(small):
    spec = small(REGISTRY["virchow2"])
    encoder = build_from_spec(spec, pretrained=False, pool="cls")
    assert encoder.spec.dim == encoder(_images(spec)).shape[1] == 48
    assert encoder.spec.pool == "cls"


def test_table_of_encoders():
    table = sl.models.list_encoders()
    assert table.index.name == "key"
    assert list(table.index) == list(REGISTRY)
    wanted = {"dim", "input_px", "native_mpp", "pool", "pools", "precision", "licence", "gated", "commercial"}
    assert wanted | {"n_params", "citation"} <= set(table.columns)
    assert table.loc["virchow2", ["dim", "pools", "gated", "commercial"]].tolist() == [
        2560,
        "cls+mean, cls",
        True,
        False,
    ]
    assert table.loc["virchow2-cls", "dim"] == 1280
    assert table.loc["midnight", "commercial"]
    # A copy: changing it changes nothing.
    table.loc["uni", "dim"] = 3
    assert sl.models.list_encoders().loc["uni", "dim"] == 1024
