"""Published layouts against the classes they come from, with random weights at small size; run with -s for numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import sealst as sl
from sealst._core.seeds import seeded
from sealst.models._encoders.build import build_from_spec
from sealst.models._encoders.records import REGISTRY
from sealst.models._encoders.weights import convert

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
#: where classes of transformers name their weights as files of version 5 do
NEW_NAMES = pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="needs transformers 5")


def _random(module):
    """Random values everywhere, large enough that a misplaced tensor shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.2 * noise if re.search(r"(norm|ln|lambda|gamma)\S*$", name) and p.ndim == 1 else 0.2 * noise)
    return module.eval()


def _images(px, n=3):
    return torch.rand(n, 3, px, px, generator=torch.Generator().manual_seed(1))


def _loaded(spec, state, folder, name="model.safetensors"):
    path = folder / name
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return build_from_spec(spec, weights=path)


def _difference(encoder, images, expected, what):
    with torch.inference_mode():
        found = encoder(images)
    difference = float((found - expected).abs().max())
    print(f"{what}: max |difference| {difference:.2g}, values up to {float(expected.abs().max()):.2g}")
    assert found.shape == expected.shape
    assert float(expected.std()) > 0.1
    assert difference <= TOLERANCE
    return difference


# -- transformers -----------------------------------------------------------------------------------------------------
def _vit(spec):
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=192,
            image_size=spec.input_px, patch_size=spec.patch_px, layer_norm_eps=1e-6,
        )
    )  # fmt: skip


def _dinov2(spec, **options):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Dinov2Model(Dinov2Config(image_size=spec.input_px, patch_size=spec.patch_px, **sizes, **options))


def _gated_dinov2(spec):
    return _dinov2(spec, use_swiglu_ffn=True)


def _registers(spec):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(image_size=spec.input_px, patch_size=spec.patch_px, num_register_tokens=4, **sizes)
    )


#: the reverse of what transformers does when it reads files of version 4
VERSION_4 = (
    (r"^(encoder\.)?layers?\.", "encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.down_proj", "mlp.weights_out"),
)
VERSION_4_VIT = ((r"mlp\.fc1", "intermediate.dense"), (r"mlp\.fc2", "output.dense"))


def _spelled(state, version, vit):
    if version == 5:
        return state
    out = {}
    for name, tensor in state.items():
        for pattern, old in VERSION_4 + (VERSION_4_VIT if vit else ()):
            name = re.sub(pattern, old, name)
        out[name] = tensor
    for name in [n for n in out if ".mlp.gate_proj." in n]:
        up = out.pop(name.replace("gate", "up"))
        out[name.replace("gate_proj", "weights_in")] = torch.cat([out.pop(name), up])
    return out


@pytest.mark.parametrize("version", [4, pytest.param(5, marks=NEW_NAMES)])
@pytest.mark.parametrize(
    ("key", "theirs"),
    [
        ("phikon", _vit),
        ("phikon-v2", _dinov2),
        ("midnight", _gated_dinov2),
        ("midnight-cls+mean", _gated_dinov2),
        ("hibou-b", _registers),
        ("hibou-l", _registers),
    ],
)
def test_transformers_classes(key, theirs, version, small, tmp_path):
    spec = small(REGISTRY[key])
    model = _random(theirs(spec))
    state = _spelled(model.state_dict(), version, vit=key == "phikon")
    assert any(".q_proj." in k for k in state) == (version == 5)
    encoder = _loaded(spec, state, tmp_path)
    images = _images(spec.input_px)
    with torch.inference_mode():
        tokens = model((images - encoder.mean) / encoder.std).last_hidden_state
    expected = tokens[:, 0]
    if spec.pool == "cls+mean":
        expected = torch.cat([expected, tokens[:, spec.n_prefix :].mean(1)], dim=1)
    _difference(encoder, images, expected, f"{key}, transformers {version} names")


def test_weights_that_transformers_saved_itself(small, tmp_path):
    """Names as `save_pretrained` writes them, and under the attribute of a class around the tower."""
    spec = small(REGISTRY["phikon-v2"])
    model = _random(_dinov2(spec))
    model.save_pretrained(tmp_path / "hf")
    images = _images(spec.input_px)
    encoder = build_from_spec(spec, weights=tmp_path / "hf")
    with torch.inference_mode():
        expected = model((images - encoder.mean) / encoder.std).last_hidden_state[:, 0]
    _difference(encoder, images, expected, "save_pretrained")
    wrapped = {f"dinov2.{k}": v for k, v in model.state_dict().items()}
    _difference(_loaded(spec, wrapped, tmp_path), images, expected, "inside another class")


@NEW_NAMES
def test_gate_and_value_are_not_interchanged(small, tmp_path):
    """The order in a gated MLP matters: with the halves exchanged, the output is another."""
    spec = small(REGISTRY["midnight"])
    state = _random(_gated_dinov2(spec)).state_dict()
    encoder = _loaded(spec, state, tmp_path)
    swapped = {k.replace("gate", "X").replace("up_proj", "gate_proj").replace("X", "up"): v for k, v in state.items()}
    other = _loaded(spec, swapped, tmp_path)
    images = _images(spec.input_px)
    with torch.inference_mode():
        assert (encoder(images) - other(images)).abs().max() > 0.1


def test_position_grid_of_the_file_is_kept_and_its_use_announced(small, tmp_path):
    spec = small(REGISTRY["midnight"])
    larger = 3 * spec.patch_px
    model = _random(_gated_dinov2(replace(spec, input_px=larger)))
    with pytest.warns(sl.SealstWarning, match="has positions for crops of 42 px.*transformers interpolates without"):
        encoder = _loaded(spec, model.state_dict(), tmp_path)
    assert torch.equal(encoder.vit.pos_embed, model.embeddings.position_embeddings)
    assert encoder.spec.model_args["img_size"] == larger
    images = _images(larger)
    with torch.inference_mode():
        expected = model((images - encoder.mean) / encoder.std).last_hidden_state[:, 0]
    _difference(encoder, images, expected, "grid of the file")
    with torch.inference_mode():
        assert encoder(_images(spec.input_px)).shape == (3, 48)


# -- training checkpoints of DINO -------------------------------------------------------------------------------------
def test_teacher_in_chunks_with_its_heads(small, tmp_path):
    spec = small(REGISTRY["gpfm"])
    source = _random(build_from_spec(spec, pretrained=False))
    state = {}
    for name, tensor in source.vit.state_dict().items():
        state["backbone." + re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name)] = tensor
    state |= {"backbone.mask_token": torch.zeros(1, 48), "dino_head.mlp.0.weight": torch.zeros(3, 3)}
    path = tmp_path / "GPFM.pth"
    torch.save({"teacher": state, "iteration": 3}, path)
    images = _images(spec.input_px)
    with torch.inference_mode():
        expected = source(images)
    _difference(build_from_spec(spec, weights=tmp_path), images, expected, "teacher")


def test_gated_and_registered_dinov2_names(small):
    spec = small(REGISTRY["h0-mini"])
    vit = _random(build_from_spec(spec, pretrained=False)).vit
    target = vit.state_dict()
    state = {}
    for name, tensor in target.items():
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3").replace("reg_token", "register_tokens")
        state[name] = tensor
    position = torch.randn(1, 1, 48)
    state["cls_token"] = target["cls_token"] - position
    state["pos_embed"] = torch.cat([position, target["pos_embed"]], dim=1)
    found = convert(state, "dino", target)
    assert set(found) == set(target)
    for name, tensor in target.items():
        torch.testing.assert_close(found[name], tensor)


def test_image_tower_beside_text(small, tmp_path):
    """KEEP: a tower with a prefix, scales of layers under a name of its own, a projection and a text tower."""
    spec = small(REGISTRY["keep"])
    source = _random(build_from_spec(spec, pretrained=False))
    state = {f"visual.{n.replace('.gamma', '.weight')}": t for n, t in source.vit.state_dict().items()}
    assert sum(n.endswith("ls1.weight") for n in state) == len(source.vit.blocks)
    state |= {
        "visual_head.0.weight": torch.zeros(3, 3),
        "text.pooler.bias": torch.zeros(3),
        "logit_scale": torch.ones(()),
    }
    images = _images(spec.input_px)
    with torch.inference_mode():
        expected = source(images)
    _difference(_loaded(spec, state, tmp_path), images, expected, "keep")


# -- CONCH ------------------------------------------------------------------------------------------------------------
class _Conch(nn.Module):
    """Image side of CONCH from torch's own attention, with the names of the published file."""

    def __init__(self, spec, width=48, dim=16, heads=4):
        super().__init__()
        args = {"embed_dim": width, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
        self.trunk = timm.create_model("vit_base_patch16_224", num_classes=0, img_size=spec.input_px, **args)
        self.attn_pool_contrast = nn.ParameterDict()
        self.attn_pool_contrast.query = nn.Parameter(torch.randn(1, dim))
        self.attn_pool_contrast.ln_q, self.attn_pool_contrast.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.attn_pool_contrast.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_contrast = nn.LayerNorm(dim)
        self.proj_contrast = nn.Parameter(torch.randn(dim, dim))

    def forward(self, x, projected):
        pool, tokens = self.attn_pool_contrast, self.trunk.forward_features(x)
        keys = pool.ln_k(tokens)
        pooled = pool.attn(pool.ln_q(pool.query)[None].expand(len(x), -1, -1), keys, keys, need_weights=False)[0][:, 0]
        pooled = self.ln_contrast(pooled)
        return pooled @ self.proj_contrast if projected else pooled


def _conch_file(reference):
    state = {f"visual.{k}": v for k, v in reference.state_dict().items()}
    unused = ("text.cls_emb", "text_decoder.ln.weight", "visual.attn_pool_caption.query", "visual.ln_caption.bias")
    return state | {name: torch.zeros(2) for name in (*unused, "logit_scale")}


@pytest.mark.parametrize("key", ["conch", "conch-attn-proj"])
@pytest.mark.parametrize("px", [32, 48, 64])
def test_conch_equals_torch_attention(key, px, small, tmp_path):
    spec = small(REGISTRY[key])
    with seeded(0):
        reference = _random(_Conch(spec))
    encoder = _loaded(spec, _conch_file(reference), tmp_path)
    images = _images(px)
    with torch.inference_mode():
        expected = reference((images - encoder.mean) / encoder.std, projected=spec.pool == "attn-proj")
    _difference(encoder, images, expected, f"{key} at {px} px")


def test_conch_class_token_of_the_trunk(small, tmp_path):
    spec = small(REGISTRY["conch-cls"])
    with seeded(0):
        reference = _random(_Conch(spec))
    encoder = _loaded(spec, _conch_file(reference), tmp_path)
    images = _images(32)
    with torch.inference_mode():
        expected = reference.trunk.forward_features((images - encoder.mean) / encoder.std)[:, 0]
    _difference(encoder, images, expected, "conch-cls")


class _ConchV15(nn.Module):
    """Image side of CONCH v1.5, positions kept on the grid of the published code."""

    def __init__(self, side, width=48, dim=16, heads=4):
        super().__init__()
        args = {"embed_dim": width, "depth": 2, "num_heads": 2, "init_values": 1.0, "dynamic_img_size": True}
        self.trunk = timm.create_model("vit_large_patch16_224", num_classes=0, img_size=16 * side, **args)
        pool = self.attn_pool_contrast = nn.ParameterDict()
        pool.query = nn.Parameter(torch.randn(1, dim))
        pool.ln_q, pool.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)
        pool.to_q, pool.to_out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        pool.to_kv = nn.Linear(width, 2 * dim, bias=False)
        self.ln_contrast, self.heads = nn.LayerNorm(dim), heads

    def tokens(self, x):
        """Two steps of the published code: 14 x 14 positions from the file, enlarged for the picture."""
        trunk, out = self.trunk, x.shape[-1] // 16
        grid = trunk.pos_embed[:, 1:].unflatten(1, (math_side := int((trunk.pos_embed.shape[1] - 1) ** 0.5), math_side))
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size=(14, 14), mode="bilinear", align_corners=False)
        grid = F.interpolate(grid, size=(out, out), mode="bicubic", align_corners=False)
        positions = torch.cat([trunk.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        patches = trunk.patch_embed.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([trunk.cls_token.expand(len(x), -1, -1), patches], dim=1) + positions
        return trunk.norm(trunk.blocks(tokens))

    def forward(self, x):
        pool, keys = self.attn_pool_contrast, self.attn_pool_contrast.ln_k(self.tokens(x))
        q, (k, v) = pool.to_q(pool.ln_q(pool.query))[None], pool.to_kv(keys).chunk(2, dim=-1)
        pooled = []
        for q1, k1, v1 in zip(*(t.chunk(self.heads, dim=-1) for t in (q, k, v)), strict=True):
            weights = (q1 @ k1.transpose(1, 2) * q1.shape[-1] ** -0.5).softmax(-1)
            pooled.append(weights @ v1)
        return self.ln_contrast(pool.to_out(torch.cat(pooled, dim=-1)[:, 0]))


@pytest.mark.parametrize("stored", [2, 14])
def test_conch_v1_5_equals_its_two_steps(stored, small, tmp_path):
    spec = small(REGISTRY["conch-v1.5"])
    with seeded(0):
        reference = _random(_ConchV15(stored))
    encoder = _loaded(spec, reference.state_dict(), tmp_path)
    images = _images(spec.input_px)
    with torch.inference_mode():
        expected = reference((images - encoder.mean) / encoder.std)
    _difference(encoder, images, expected, f"conch-v1.5, {stored} x {stored} positions in the file")


# -- own layout -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", REGISTRY)
def test_converted_weights_are_taken_as_they_are(key, small, tmp_path):
    spec = small(REGISTRY[key])
    source = _random(build_from_spec(spec, pretrained=False))
    back = _loaded(spec, source.vit.state_dict(), tmp_path)
    for name, tensor in source.vit.state_dict().items():
        assert torch.equal(back.vit.state_dict()[name], tensor), name
