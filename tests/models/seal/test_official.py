"""The published SEAL models, against their parts written out in plain torch; the files are made here, at small size."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

import sealst as sl
from sealst._core.seeds import seeded
from sealst.models import CropSpec, GeneVAE, GeneVAEParams, HeadParams, LoraParams, SealModel
from sealst.models._encoders.build import build_from_spec
from sealst.models._encoders.encoder import weights_hash
from sealst.models._seal.heads import image_head
from sealst.models._seal.official import OMICS, RELEASES, VISION_HEAD, Release, file_names, load_release

KEYS = ("conch", "uni2-h")
N_GENES, HIDDEN, HEAD = 12, (20, 10), 8
PX = {"conch": 32, "uni2-h": 28}
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
NAMES = [f"GENE{i}" for i in range(N_GENES)]
TOWER = "encoder.base_model.model."


# -- what was published, in plain torch -------------------------------------------------------------------------------
class Conch(nn.Module):
    """Image side of CONCH from torch's own attention, with the names of the published file."""

    mean, std = CLIP
    trunk_prefix = "trunk."

    def __init__(self, width: int = 48, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        args = {"embed_dim": width, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
        self.trunk = timm.create_model("vit_base_patch16_224", num_classes=0, img_size=64, **args)
        pool = self.attn_pool_contrast = nn.ParameterDict()
        pool.query = nn.Parameter(torch.randn(1, dim))
        pool.ln_q, pool.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)
        pool.attn = nn.MultiheadAttention(dim, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_contrast = nn.LayerNorm(dim)
        self.proj_contrast = nn.Parameter(torch.randn(dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool, tokens = self.attn_pool_contrast, self.trunk.forward_features(x)
        keys = pool.ln_k(tokens)
        query = pool.ln_q(pool.query)[None].expand(len(x), -1, -1)
        return self.ln_contrast(pool.attn(query, keys, keys, need_weights=False)[0][:, 0])


class Uni2(nn.Module):
    """UNI2-h as timm builds it; its class token."""

    mean, std = IMAGENET
    trunk_prefix = ""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        args = {"embed_dim": width, "depth": 2, "num_heads": 2, "mlp_ratio": 5.33334, "reg_tokens": 8}
        vit = timm.create_model(
            "vit_giant_patch14_reg4_dinov2", num_classes=0, img_size=28, dynamic_img_size=True, **args
        )
        self.vit = vit

    def state_dict(self, *args, **kwargs):
        return self.vit.state_dict()

    def load_state_dict(self, state, *args, **kwargs):
        return self.vit.load_state_dict(state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit.forward_features(x)[:, 0]


def head_of(dim: int, n_genes: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, n_genes), nn.ReLU())


class Omics(nn.Module):
    """The gene side with the published names; evaluation by formulas, see `code`."""

    def __init__(self, n_genes: int, dim: int, hidden: tuple[int, int], n_flows: int = 3) -> None:
        super().__init__()
        a, b = hidden

        def block(i: int, o: int) -> list[nn.Module]:
            return [nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU(), nn.Dropout(0.4)]

        self.encoder = nn.Sequential(*block(n_genes, a), *block(a, b))
        self.fc_mu, self.fc_logvar = nn.Linear(b, dim), nn.Linear(b, dim)
        self.flows = nn.ModuleList(nn.ParameterDict() for _ in range(n_flows))
        for flow in self.flows:
            flow.u, flow.w, flow.b = (nn.Parameter(torch.randn(s)) for s in ((1, dim), (1, dim), (1,)))
        layers = [nn.Linear(dim, b), nn.ReLU(), nn.Linear(b, a), nn.ReLU(), nn.Dropout(0.4), nn.Linear(a, n_genes)]
        self.decoder = nn.Sequential(*layers)


def code(s: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Posterior mean through the flows, from the tensors alone."""
    for linear, norm in (("encoder.0", "encoder.1"), ("encoder.4", "encoder.5")):
        x = x @ s[f"{linear}.weight"].T + s[f"{linear}.bias"]
        x = (x - s[f"{norm}.running_mean"]) / torch.sqrt(s[f"{norm}.running_var"] + 1e-5)
        x = torch.clamp(x * s[f"{norm}.weight"] + s[f"{norm}.bias"], min=0)
    z = x @ s["fc_mu.weight"].T + s["fc_mu.bias"]
    for i in range(sum(k.endswith(".u") for k in s)):
        u, w, b = (s[f"flows.{i}.{name}"].reshape(-1) for name in "uwb")
        z = z + u * torch.tanh((z * w).sum(1) + b)[:, None]
    return z


class Published:
    """The two files of a model, and what it gives."""

    def __init__(self, key: str) -> None:
        self.key = key
        with seeded(5):
            self.base = Conch() if key == "conch" else Uni2()
            dim = 16 if key == "conch" else 48
            head, self.omics_net = head_of(dim, N_GENES, HEAD), Omics(N_GENES, dim, HIDDEN)
            for module in (self.base, head, self.omics_net):
                for parameter in module.parameters():
                    parameter.data = torch.randn_like(parameter) * 0.15
            for name, buffer in self.omics_net.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_()
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
            for flow in self.omics_net.flows:
                # wᵀu < -1: a flow that is not invertible, which a constraint would change.
                flow.u.data = -3 * flow.w.data / (flow.w.data**2).sum()
            self.head = head.eval()
            self.tower = {k: v.clone() for k, v in self.base.state_dict().items()}
            self.lora = {}
            for layer in LAYERS:
                name = f"{self.base.trunk_prefix}blocks.1.{layer}"
                out, into = self.tower[f"{name}.weight"].shape
                self.lora[name] = (torch.randn(8, into) * 0.2, torch.randn(out, 8) * 0.2)

    def vision(self, prefix: str = "") -> dict[str, torch.Tensor]:
        state = {}
        for name, tensor in self.tower.items():
            layer, _, leaf = name.rpartition(".")
            inner = f"{layer}.base_layer.{leaf}" if layer in self.lora else name
            state[f"{TOWER}{prefix}{inner}"] = tensor
        for layer, (a, b) in self.lora.items():
            state[f"{TOWER}{prefix}{layer}.lora_A.default.weight"] = a
            state[f"{TOWER}{prefix}{layer}.lora_B.default.weight"] = b
        return state | {f"decoder.decoder.{k}": v for k, v in self.head.state_dict().items()}

    def omics(self) -> dict[str, torch.Tensor]:
        return dict(self.omics_net.state_dict())

    @torch.inference_mode()
    def image_codes(self, crops: np.ndarray, *, adapted: bool = True) -> np.ndarray:
        state = dict(self.tower)
        for layer, (a, b) in self.lora.items() if adapted else ():
            state[f"{layer}.weight"] = state[f"{layer}.weight"] + b @ a
        self.base.load_state_dict(state)
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.base.mean, self.base.std))
        return self.base.eval()((x - mean) / std).numpy()

    @torch.inference_mode()
    def gene_codes(self, x: np.ndarray) -> np.ndarray:
        return code(self.omics(), torch.from_numpy(x)).numpy()

    @torch.inference_mode()
    def expression(self, z: np.ndarray) -> np.ndarray:
        return self.head(torch.from_numpy(z)).numpy()


@pytest.fixture(params=KEYS)
def published(request: pytest.FixtureRequest) -> Published:
    return Published(request.param)


@pytest.fixture
def load(small, tmp_path: Path) -> Callable[..., SealModel]:
    """Write files and load them as the small counterpart of a published model."""

    def loaded(key, vision, omics, *, genes=NAMES) -> SealModel:
        paths = {"vision": tmp_path / "v.pth", "omics": tmp_path / "o.pth"}
        torch.save(vision, paths["vision"])
        torch.save(omics, paths["omics"])
        return load_release(shrunk(key, small), paths, genes=genes, crop=CropSpec(112.0, PX[key]), device="cpu")

    return loaded


def shrunk(key: str, small) -> Release:
    return replace(RELEASES[key], spec=small(RELEASES[key].spec), n_genes=N_GENES, hidden=HIDDEN, head=HEAD)


def crops_for(key: str, n: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (n, PX[key], PX[key], 3), dtype=np.uint8)


def profiles(n: int = 4) -> np.ndarray:
    return np.random.default_rng(4).uniform(0, 4, (n, N_GENES)).astype(np.float32)


# -- values -----------------------------------------------------------------------------------------------------------
def test_model_gives_what_its_parts_give(published, load):
    model = load(published.key, published.vision(), published.omics())
    crops, x = crops_for(published.key), profiles()
    z = model.embed_images(crops)
    np.testing.assert_allclose(z, published.image_codes(crops), atol=1e-5)
    np.testing.assert_allclose(model.embed_genes(x), published.gene_codes(x), atol=1e-5)
    expected = published.expression(z)
    assert (expected == 0).any()
    assert (expected > 0).any()
    np.testing.assert_allclose(model.predict_expression(z), expected, atol=1e-5)
    with model.frozen_encoder():
        frozen = model.embed_images(crops)
    np.testing.assert_allclose(frozen, published.image_codes(crops, adapted=False), atol=1e-5)
    assert np.abs(frozen - z).max() > 1e-2


def test_record(published, load, tmp_path):
    model = load(published.key, published.vision(), published.omics())
    assert not model.training
    assert model.encoder.spec.key == published.key
    assert model.encoder.spec.pretrained
    assert model.adapter == LoraParams(r=8, alpha=8.0, n_blocks=1)
    assert model.panel.genes == tuple(NAMES)
    assert model.crop == CropSpec(112.0, PX[published.key])
    source = model.provenance
    assert source["source"] == "MahmoodLab/SEAL"
    for kind, name in (("vision", "v.pth"), ("omics", "o.pth")):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert source["files"][kind] == {"name": name, "sha256": digest}
    assert source["note"] == "training sections and patients are not published"


@pytest.mark.parametrize("shell", [None, "state_dict"])
@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("prefix", ["", "visual."])
def test_wrappings(shell, wrapper, prefix, load):
    published = Published("conch")
    files = []
    for state in (published.vision(prefix), published.omics()):
        state = {f"{wrapper}{k}": v for k, v in state.items()}
        files.append({shell: state, "epoch": 3} if shell else state)
    model = load("conch", *files)
    crops, x = crops_for("conch"), profiles()
    np.testing.assert_allclose(model.embed_images(crops), published.image_codes(crops), atol=1e-5)
    np.testing.assert_allclose(model.embed_genes(x), published.gene_codes(x), atol=1e-5)


def test_caption_side_is_left_out(load):
    published = Published("conch")
    extra = {f"{TOWER}{n}": torch.zeros(2) for n in ("attn_pool_caption.query", "ln_caption.bias", "proj_caption")}
    model = load("conch", published.vision() | extra, published.omics())
    crops = crops_for("conch")
    np.testing.assert_allclose(model.embed_images(crops), published.image_codes(crops), atol=1e-5)


@pytest.mark.parametrize("vector", ["flat", "row", "column"])
@pytest.mark.parametrize("offset", [(), (1,), (1, 1)])
def test_shapes_of_flows(vector, offset, published, load):
    omics = published.omics()
    shape = {"flat": (-1,), "row": (1, -1), "column": (-1, 1)}[vector]
    for name, tensor in omics.items():
        if name.startswith("flows."):
            omics[name] = tensor.reshape(offset if name.endswith(".b") else shape)
    model, x = load(published.key, published.vision(), omics), profiles()
    np.testing.assert_allclose(model.embed_genes(x), published.gene_codes(x), atol=1e-5)


@pytest.mark.parametrize("n_flows", [1, 5])
def test_number_of_flows_is_that_of_the_file(n_flows, load):
    published = Published("conch")
    with seeded(7):
        published.omics_net = Omics(N_GENES, 16, HIDDEN, n_flows)
    model, x = load("conch", published.vision(), published.omics()), profiles()
    assert model.gene_params.n_flows == n_flows
    np.testing.assert_allclose(model.embed_genes(x), published.gene_codes(x), atol=1e-5)


# -- LoRA elsewhere ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layers", "rank", "expected"),
    [
        (["blocks.1.attn.qkv", "blocks.1.attn.proj"], 4, LoraParams(4, 4.0, targets=r"attn\.proj|attn\.qkv")),
        ([f"blocks.{i}.{layer}" for i in (0, 1) for layer in LAYERS], 8, LoraParams(n_blocks=2)),
    ],
)
def test_place_and_rank_of_lora_come_from_the_file(layers, rank, expected, published, load):
    with seeded(6):
        published.lora = {}
        for layer in (f"{published.base.trunk_prefix}{name}" for name in layers):
            out, into = published.tower[f"{layer}.weight"].shape
            published.lora[layer] = (torch.randn(rank, into) * 0.2, torch.randn(out, rank) * 0.2)
    model = load(published.key, published.vision(), published.omics())
    assert model.adapter == expected
    crops = crops_for(published.key)
    np.testing.assert_allclose(model.embed_images(crops), published.image_codes(crops), atol=1e-5)


def _uneven(published):
    published.lora["trunk.blocks.0.attn.qkv"] = (torch.zeros(8, 48), torch.zeros(144, 8))


def _outside(published):
    published.lora["attn_pool_contrast.attn.out_proj"] = (torch.zeros(8, 16), torch.zeros(16, 8))


def _none(published):
    published.lora = {}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_uneven, "v.pth' has LoRA on layers that differ from block to block, or on none of ours: 'blocks.0.attn.qkv'"),
        (_outside, "v.pth' has LoRA layers outside the encoder's blocks: 'attn_pool_contrast.attn.out_proj.lora_A"),
        (_none, "v.pth' has no LoRA layers; expected those of the last block of 'conch'"),
    ],
)
def test_lora_that_cannot_be_ours(change, text, load):
    published = Published("conch")
    change(published)
    with pytest.raises(sl.WeightsError, match=re.escape(text)):
        load("conch", published.vision(), published.omics())


# -- LoRA alone -------------------------------------------------------------------------------------------------------
def alone(published: Published, layout: str) -> dict[str, torch.Tensor]:
    """The vision file without the base encoder, as peft stores adapters in a model or by themselves."""
    state = {name: tensor for name, tensor in published.vision().items() if "lora_" in name or "decoder" in name}
    if layout == "in the model":
        return state
    return {name.removeprefix("encoder.").replace(".default.", "."): tensor for name, tensor in state.items()}


def load_alone(published, small, folder, vision, **given) -> SealModel:
    folder.mkdir(exist_ok=True)
    torch.save(vision, folder / "v.pth")
    torch.save(published.omics(), folder / "o.pth")
    paths = {"vision": folder / "v.pth", "omics": folder / "o.pth"} | given
    crop = CropSpec(112.0, PX[published.key])
    return load_release(shrunk(published.key, small), paths, genes=NAMES, crop=crop, device="cpu")


@pytest.mark.parametrize("layout", ["in the model", "by itself"])
@pytest.mark.parametrize("place", ["argument", "variable"])
def test_lora_alone_takes_the_base_encoder_from_the_registry(
    published, small, tmp_path, monkeypatch, layout, place, load
):
    given = {}
    if place == "argument":
        torch.save(published.tower, tmp_path / "base.pth")
        given["base"] = tmp_path / "base.pth"
    else:
        (tmp_path / "all").mkdir()
        torch.save(published.tower, tmp_path / "all" / f"{published.key}.pth")
        monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path / "all"))
    model = load_alone(published, small, tmp_path / "f", alone(published, layout), **given)
    crops = crops_for(published.key)
    np.testing.assert_allclose(model.embed_images(crops), published.image_codes(crops), atol=1e-5)
    # The same model as from the file that holds everything.
    whole = load(published.key, published.vision(), published.omics())
    assert whole.fingerprint == model.fingerprint


def test_a_base_encoder_that_is_not_there_says_which_page_to_visit(published, small, offline):
    with pytest.raises(sl.WeightsError) as caught:
        load_alone(published, small, offline / "f", alone(published, "in the model"))
    text, page = str(caught.value), RELEASES[published.key].spec.hf_id
    assert f"holds LoRA alone, which is there; its base encoder {published.key!r} is not." in text
    assert f"Visit the model page of {page}" in text
    assert "MahmoodLab/SEAL" not in text
    assert "pass it as `base='<file>'`" in text


def test_a_part_of_the_base_encoder_is_refused_by_name(published, small, tmp_path):
    """What is missing is never taken from elsewhere."""
    torch.save(published.tower, tmp_path / "base.pth")
    vision = published.vision()
    name = f"{TOWER}{published.base.trunk_prefix}blocks.0.mlp.fc1.weight"
    del vision[name]
    text = r"v\.pth' does not hold the weights of .* missing 'blocks.0.mlp.fc1.weight'"
    with pytest.raises(sl.WeightsError, match=text):
        load_alone(published, small, tmp_path / "f", vision)
    with pytest.raises(sl.DataError, match="holds the base encoder itself; leave `base` out"):
        load_alone(published, small, tmp_path / "f", published.vision(), base=tmp_path / "base.pth")


def test_another_base_encoder_is_refused(small, tmp_path):
    conch, uni = Published("conch"), Published("uni2-h")
    torch.save(uni.tower, tmp_path / "base.pth")
    with pytest.raises(sl.WeightsError, match="base encoder 'conch' is not.*does not hold the weights of 'conch'"):
        load_alone(conch, small, tmp_path / "f", alone(conch, "in the model"), base=tmp_path / "base.pth")


def test_a_file_of_the_published_name_is_compared_with_the_digest_that_is_known(published, small, tmp_path):
    _put(published, tmp_path / "files")
    release, crop = shrunk(published.key, small), CropSpec(112.0, PX[published.key])
    options = {"genes": NAMES, "crop": crop, "device": "cpu"}
    given = dict.fromkeys(("vision", "omics"), tmp_path / "files")
    text = f"is not the file of that name that is known .* expected {release.sha256}"
    with pytest.warns(sl.SealstWarning, match=text):
        load_release(release, given, **options)
    own = hashlib.sha256((tmp_path / "files" / release.filename("vision")).read_bytes()).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("error", sl.SealstWarning)
        load_release(replace(release, sha256=own[:12]), given, **options)


def test_digests_that_others_pinned():
    assert {name: one.sha256 for name, one in RELEASES.items()} == {"conch": "0f7c1386ff79", "uni2-h": "e7ae736968c3"}


# -- strictness -------------------------------------------------------------------------------------------------------
QKV = "blocks.1.attn.qkv"
DAMAGES = [
    ("vision", TOWER + "{}blocks.0.norm1.bias", "missing", "missing 'blocks.0.norm1.bias'"),
    ("vision", TOWER + "{}" + QKV + ".base_layer.weight", "missing", f"missing '{QKV}.weight'"),
    ("vision", TOWER + "{}" + QKV + ".lora_B.default.weight", "missing", f"missing '{QKV}.lora_B.default.weight'"),
    ("vision", "decoder.decoder.3.bias", "missing", "missing 'decoder.decoder.3.bias'"),
    ("omics", "encoder.5.running_var", "missing", "missing 'encoder.5.running_var'"),
    ("omics", "encoder.1.num_batches_tracked", "missing", "missing 'encoder.1.num_batches_tracked'"),
    ("omics", "flows.1.b", "missing", "missing 'flows.1.b'"),
    ("vision", TOWER + "{}blocks.7.norm1.bias", "extra", "unexpected 'blocks.7.norm1.bias'"),
    ("vision", TOWER + "{}" + QKV + ".weight", "extra", f"unexpected '{QKV}.base_layer.weight'"),
    ("vision", TOWER + "{}" + QKV + ".lora_A.other.weight", "extra", f"unexpected '{QKV}.lora_A.other.weight'"),
    ("vision", "decoder.decoder.6.bias", "extra", "unexpected 'decoder.decoder.6.bias'"),
    ("vision", "logit_scale", "extra", "unexpected 'logit_scale'"),
    ("omics", "decoder.7.bias", "extra", "unexpected 'decoder.7.bias'"),
    ("omics", "flows.0.scale", "extra", "unexpected 'flows.0.scale'"),
    ("vision", TOWER + "{}blocks.0.norm1.bias", "shape", r"blocks.0.norm1.bias has shape \(3,\), expected \(48,\)"),
    ("vision", TOWER + "{}" + QKV + ".lora_B.default.weight", "shape", r"lora_B.default.weight has shape \(3,\)"),
    ("vision", "decoder.decoder.3.bias", "shape", r"decoder.decoder.3.bias has shape \(3,\), expected \(12,\)"),
    ("omics", "encoder.0.bias", "shape", r"encoder.0.bias has shape \(3,\), expected \(20,\)"),
    ("omics", "flows.2.u", "shape", r"flows.2.u has shape \(3,\), expected \(\d+,\)"),
]


@pytest.mark.parametrize(("kind", "name", "damage", "text"), DAMAGES)
def test_first_tensor_that_differs_is_named(kind, name, damage, text, published, load):
    files = {"vision": published.vision(), "omics": published.omics()}
    name = name.format(published.base.trunk_prefix)
    if damage == "missing":
        del files[kind][name]
    else:
        assert (name in files[kind]) == (damage == "shape")
        files[kind][name] = torch.zeros(3)
    with pytest.raises(sl.WeightsError, match=rf"{kind[0]}\.pth'.*({text})"):
        load(published.key, **files)


def test_files_of_different_encoders(load):
    conch, uni = Published("conch"), Published("uni2-h")
    omics = (
        r"o\.pth' is not of 'seal-conch': fc_mu\.weight has shape \(48, 10\), so embeddings have 48 values, expected 16"
        r"\. Pass 'seal_conch_omics\.pth'; both files must be of the same encoder"
    )
    with pytest.raises(sl.WeightsError, match=omics):
        load("conch", conch.vision(), uni.omics())
    with pytest.raises(sl.WeightsError, match=r"v\.pth' is not of 'seal-univ2': .*16 values, expected 48"):
        load("uni2-h", conch.vision(), uni.omics())


def test_interchanged_files(published, load):
    with pytest.raises(
        sl.WeightsError, match=r"v\.pth' is the omics file of a SEAL model; pass 'seal_\w+_vision\.pth'"
    ):
        load(published.key, published.omics(), published.vision())


def test_damaged_file(load, small, tmp_path):
    published = Published("conch")
    load("conch", published.vision(), published.omics())
    with (tmp_path / "o.pth").open("r+b") as file:
        file.truncate(500)
    paths = {"vision": tmp_path / "v.pth", "omics": tmp_path / "o.pth"}
    with pytest.raises(sl.WeightsError, match=r"o\.pth' could not be read as weights of 'seal-conch'"):
        load_release(shrunk("conch", small), paths, genes=NAMES, crop=CropSpec(112.0, 32), device="cpu")


# -- places -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SEALST_WEIGHTS", raising=False)
    return tmp_path


def _put(published: Published, folder: Path) -> None:
    folder.mkdir(parents=True)
    stem = RELEASES[published.key].name.replace("-", "_")
    torch.save(published.vision(), folder / f"{stem}_vision.pth")
    torch.save(published.omics(), folder / f"{stem}_omics.pth")


@pytest.mark.parametrize("place", ["argument", "variable", "cache"])
def test_files_are_found(place, published, small, offline, monkeypatch):
    given: dict[str, Path | None] = {"vision": None, "omics": None}
    if place == "argument":
        _put(published, offline / "files")
        given = dict.fromkeys(given, offline / "files")
    elif place == "variable":
        _put(published, offline / "all" / RELEASES[published.key].name)
        monkeypatch.setenv("SEALST_WEIGHTS", str(offline / "all"))
    else:
        folder = offline / "hub" / "models--MahmoodLab--SEAL"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0123abcd")
        _put(published, folder / "snapshots" / "0123abcd")
    crop = CropSpec(112.0, PX[published.key])
    model = load_release(shrunk(published.key, small), given, genes=NAMES, crop=crop, device="cpu")
    crops = crops_for(published.key)
    np.testing.assert_allclose(model.embed_images(crops), published.image_codes(crops), atol=1e-5)


@pytest.mark.parametrize(("name", "key"), [("conch", "conch"), ("uni2-h", "uni2-h"), ("univ2", "uni2-h")])
def test_load_official(name, key, small, tmp_path, monkeypatch):
    published = Published(key)
    _put(published, tmp_path / "files")
    monkeypatch.setattr("sealst.models._seal.official.RELEASES", {k: shrunk(k, small) for k in KEYS})
    stem = RELEASES[key].name.replace("-", "_")
    model = sl.models.load_official(
        name, vision=tmp_path / "files" / f"{stem}_vision.pth", omics=str(tmp_path / "files"), genes=NAMES, device="cpu"
    )
    assert model.crop == CropSpec(112.0, 224)
    crops = np.random.default_rng(3).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8)
    np.testing.assert_allclose(model.embed_images(crops), published.image_codes(crops), atol=1e-5)
    np.testing.assert_allclose(model.embed_genes(profiles()), published.gene_codes(profiles()), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stem"), [("conch", "conch"), ("uni2-h", "univ2"), ("uni2", "univ2"), ("univ2", "univ2")]
)
def test_missing_files_say_where_to_go(name, stem, offline):
    with pytest.raises(sl.WeightsError) as caught:
        sl.models.load_official(name, genes=[f"G{i}" for i in range(2000)])
    text = str(caught.value)
    assert f"Weights of 'seal-{stem} (vision)' could not be had" in text
    assert "Visit the model page of MahmoodLab/SEAL: ask for access there and set HF_TOKEN" in text
    assert f"pass `vision='<folder>/seal_{stem}_vision.pth'` to `sl.models.load_official`" in text
    assert f"'<folder>/seal-{stem}/seal_{stem}_vision.pth' and set SEALST_WEIGHTS=<folder>." in text
    assert "build_encoder" not in text


def test_a_folder_with_one_of_the_files_does_not_stand_for_the_other(small, offline):
    published = Published("conch")
    _put(published, offline / "f")
    (offline / "f" / "seal_conch_vision.pth").unlink()
    with pytest.raises(
        sl.WeightsError, match=r"'seal-conch \(vision\)' at .* holds 'seal_conch_omics\.pth'\. Pass a file"
    ):
        load_release(
            shrunk("conch", small), dict.fromkeys(("vision", "omics"), offline / "f"), genes=NAMES,
            crop=CropSpec(112.0, 32), device="cpu",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "uni"}, "`name` must be one of 'conch', 'uni2-h', 'univ2', 'uni2', found 'uni'"),
        ({"name": "conch", "genes": ["A", "B"]}, "`genes` must be the 2000 names in the order .* found 2"),
        ({"name": "conch", "genes": "A" * 2000}, "`genes` must be the 2000 names"),
        ({"name": "conch", "genes": ["A"] * 2000}, "'A' occurs twice"),
        ({"name": "conch", "crop_um": 0}, "`crop_um` must be a positive number"),
    ],
)
def test_arguments_are_checked_before_files_are_looked_for(arguments, text, offline):
    with pytest.raises(sl.DataError, match=text):
        sl.models.load_official(**arguments)


# -- saved and exported -----------------------------------------------------------------------------------------------
def test_saved_without_base_it_loads_with_the_published_encoder(published, load, small, tmp_path):
    model = load(published.key, published.vision(), published.omics())
    folder = model.save(tmp_path / "m")
    assert not (folder / "base").exists()
    assert "training sections and patients are not published" in (folder / "README.md").read_text()
    torch.save(published.tower, tmp_path / "base.pth")
    plain = build_from_spec(small(RELEASES[published.key].spec), weights=tmp_path / "base.pth")
    assert weights_hash(plain.base_state()) == weights_hash(model.encoder.base_state())
    back = sl.models.load(folder, weights=tmp_path / "base.pth", device="cpu")
    crops, x = crops_for(published.key), profiles()
    z = model.embed_images(crops)
    np.testing.assert_array_equal(back.embed_images(crops), z)
    np.testing.assert_array_equal(back.embed_genes(x), model.embed_genes(x))
    np.testing.assert_array_equal(back.predict_expression(z), model.predict_expression(z))
    assert back.fingerprint == model.fingerprint
    assert back.provenance == model.provenance


def test_saved_with_base_it_needs_nothing_else(published, load, tmp_path):
    model = load(published.key, published.vision(), published.omics())
    back = sl.models.load(model.save(tmp_path / "m", include_base=True), device="cpu")
    crops = crops_for(published.key)
    np.testing.assert_array_equal(back.embed_images(crops), model.embed_images(crops))


def test_other_base_weights_are_refused(published, load, tmp_path):
    folder = load(published.key, published.vision(), published.omics()).save(tmp_path / "m")
    name = next(n for n in published.tower if n.endswith("norm1.bias"))
    torch.save(published.tower | {name: published.tower[name] + 1}, tmp_path / "base.pth")
    with pytest.raises(sl.CheckpointError, match="are not those the adapter was trained on"):
        sl.models.load(folder, weights=tmp_path / "base.pth")


def test_exports(published, load, tmp_path):
    model = load(published.key, published.vision(), published.omics())
    with pytest.warns(sl.SealstWarning, match="does not allow derivatives"):
        folder = model.export_timm(tmp_path / "timm")
    crops = crops_for(published.key)
    if published.key == "uni2-h":
        vit = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
        with torch.inference_mode():
            found = vit((x - mean) / std).numpy()
        np.testing.assert_allclose(found, published.image_codes(crops), atol=1e-5)
    assert (model.export_adapter(tmp_path / "adapter") / "adapter_model.safetensors").is_file()


# -- genes without names ----------------------------------------------------------------------------------------------
@pytest.fixture
def unnamed(load) -> SealModel:
    published = Published("conch")
    with pytest.warns(sl.SealstWarning, match=r"do not name the 12 genes of 'seal-conch'.*Pass `genes=`"):
        return load("conch", published.vision(), published.omics(), genes=None)


def test_placeholders_cannot_be_taken_for_genes(unnamed):
    assert unnamed.panel.genes[0] == "unnamed_0001"
    assert unnamed.panel.genes[-1] == "unnamed_0012"
    assert unnamed.embed_genes(profiles()).shape == (4, 16)


def test_matching_by_name_asks_for_genes(unnamed, tmp_path):
    unnamed.panel.to_tsv(tmp_path / "panel.tsv")
    text = "they cannot be matched with genes by name. Load the model with `genes=`"
    for panel in (unnamed.panel, sl.GenePanel.from_tsv(tmp_path / "panel.tsv")):
        with pytest.raises(sl.PanelError, match=text):
            panel.extract(profiles(), NAMES)
        with pytest.raises(sl.PanelError, match=text):
            panel.extract(profiles(), panel.genes)
        with pytest.raises(sl.PanelError, match=text):
            panel.subset(["EPCAM"])
        with pytest.raises(sl.PanelError, match=text):
            panel.measured(NAMES)


def test_analysis_with_an_unnamed_panel(unnamed, toy_section):
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=60, crop_px=32)
    sl.pp.normalize(sdata)
    unnamed.crop = CropSpec(60.0, 32)
    sl.tl.predict(sdata, unnamed)
    table = sdata["table"]
    assert list(table.obsm["seal_expression"].columns) == list(unnamed.panel.genes)
    net = pd.DataFrame({"source": "P", "target": list(unnamed.panel.genes), "weight": 1.0})
    text = "Which genes 12 of the panel's 12 values stand for is not known"
    calls = [
        lambda: sl.tl.embed(sdata, unnamed, modality="gene"),
        lambda: sl.tl.predict(sdata, unnamed, genes=["EPCAM"]),
        lambda: sl.tl.predict(sdata, unnamed, net=net),
        lambda: sl.tl.pathways(sdata, net),
        lambda: sl.tl.retrieve(sdata, unnamed, "EPCAM"),
        lambda: sl.tl.retrieve(sdata, unnamed, {"EPCAM": 1.0}),
        lambda: sl.tl.retrieve(sdata, unnamed, pd.Series([1.5, 0.2], index=["EPCAM", "VIM"])),
        lambda: sl.tl.evaluate(sdata, unnamed, test=sdata, allow_shared_patients=True),
    ]
    for call in calls:
        with pytest.raises(sl.PanelError, match=text):
            call()
    # What needs no names works.
    sl.tl.retrieve(sdata, unnamed, table.obs_names[3], kind="spot")


# -- full size --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("key", "dim"), [("conch", 512), ("uni2-h", 1536)])
def test_names_and_shapes_at_full_size(key, dim):
    release = RELEASES[key]
    assert (release.spec.dim, release.n_genes) == (dim, 2000)
    with torch.device("meta"):
        head, omics = head_of(dim, 2000, 512), Omics(2000, dim, (1024, 512))
        params = GeneVAEParams(hidden=release.hidden, invertible=False)
        own_head = image_head(dim, 2000, HeadParams(release.head, norm=False, relu=True)).state_dict()
        own_omics = GeneVAE(2000, dim, params).state_dict()
    expected = {f"decoder.decoder.{k}": v.shape for k, v in head.state_dict().items()}
    assert {f: own_head[o].shape for f, o in file_names(own_head, VISION_HEAD).items()} == expected
    expected = {k: v.squeeze().shape for k, v in omics.state_dict().items()}
    assert {f: own_omics[o].shape for f, o in file_names(own_omics, OMICS).items()} == expected
