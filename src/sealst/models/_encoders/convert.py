"""Published weights → timm's names: renamed, joined and split; what is unknown stays, for strict loading to report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]

#: Hugging Face's ViT, Dinov2 and Dinov2WithRegisters, in the spellings of transformers 4 and 5
_HF_NAMES = (
    (r"^(encoder\.layer|encoder\.layers|layers)\.(\d+)\.", r"blocks.\2."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.(intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"\.(output\.dense|mlp\.weights_out|mlp\.down_proj)\.", ".mlp.fc2."),
)
#: side of the position grid inside CONCH v1.5's published code
_V1_5_GRID = 14
#: used in pretraining only
_HF_UNUSED = re.compile(r"^(embeddings\.mask_token$|pooler\.)")
_DINO_UNUSED = re.compile(r"^(mask_token$|(dino_|ibot_)?head\.)")
_CONCH_UNUSED = re.compile(r"^(text\.|text_decoder\.|logit_scale$|attn_pool_caption\.|ln_caption\.|proj_caption$)")
_CONCH_PARTS = (
    (r"^trunk\.", ""),
    (r"^attn_pool_contrast\.", "attn_pool."),
    (r"^proj_contrast$", "attn_pool.to_text"),
    (r"^ln_contrast\.", "attn_pool.ln."),
)
_CONCH_NAMES = (
    (r"^attn_pool\.attn\.([qkv])_proj_weight$", r"attn_pool.\1.weight"),
    (r"^attn_pool\.(attn\.out_proj|to_out)\.", "attn_pool.proj."),
    (r"^attn_pool\.to_q\.", "attn_pool.q."),
)
#: encoders have none
_CLASSIFIER = re.compile(r"^(head|fc|classifier)\.(weight|bias)$")
#: what training frameworks and wrapping classes put before the names of a tower
_WRAPPERS = ("module.", "teacher.", "backbone.", "visual.", "vit.", "dinov2.", "dinov2_with_registers.")
#: names that tell a tower
_STEMS = ("cls_token", "embeddings.cls_token", "trunk.cls_token", "conv1.weight", "conv_stem.weight")


def convert(state: Mapping[str, torch.Tensor], converter: str, target: Mapping[str, torch.Tensor]) -> State:
    """Weights under timm's names.

    Parameters
    ----------
    state
        Tensors of a published file, or of a timm module, which come back as they are.
    converter
        Layout of the published file: ``"timm"``, ``"hf"``, ``"dino"``, ``"conch"`` or ``"conch-v1.5"``.
    target
        State of the module to fill; only names and shapes are read.
    """
    plain = dict(state)
    # Prefixes are taken off until the tower stands at the front.
    for _ in range(len(_WRAPPERS)):
        found = [w for w in _WRAPPERS if any(k.startswith(w) and k.endswith(_STEMS) for k in plain)]
        if not found:
            break
        plain = {k.removeprefix(found[0]): v for k, v in plain.items()}
    return plain if set(plain) == set(target) else CONVERTERS[converter](plain, target)


def _hf(state: State, target: Mapping[str, torch.Tensor]) -> State:
    out: State = {}
    for name, tensor in state.items():
        if _HF_UNUSED.match(name):
            continue
        for pattern, new in _HF_NAMES:
            name = re.sub(pattern, new, name)
        out[name] = tensor
    _join(out, ("attn.q", "attn.k", "attn.v"), "attn.qkv")
    _join(out, ("mlp.gate_proj", "mlp.up_proj"), "mlp.fc1")
    return _fold_class_position(out)


def _fold_class_position(state: State) -> State:
    """With registers, timm's towers give the class token no position of its own: it is part of the token."""
    position = state.get("pos_embed")
    if "reg_token" not in state or "cls_token" not in state or position is None:
        return state
    # A square number of positions is the grid alone; one more is that of the class token.
    if math.isqrt(position.shape[1]) ** 2 == position.shape[1]:
        return state
    return state | {"cls_token": state["cls_token"] + position[:, :1], "pos_embed": position[:, 1:]}


def _join(state: State, parts: tuple[str, ...], whole: str) -> None:
    """Concatenate the outputs of sibling linear layers, in place, wherever all of them are there."""
    pattern = re.compile(rf"^(blocks\.\d+\.){re.escape(parts[0])}\.(weight|bias)$")
    for found in [m for m in map(pattern.match, list(state)) if m]:
        names = [f"{found[1]}{part}.{found[2]}" for part in parts]
        if all(name in state for name in names):
            state[f"{found[1]}{whole}.{found[2]}"] = torch.cat([state.pop(name) for name in names])


def _conch(state: State, target: Mapping[str, torch.Tensor]) -> State:
    """Image side of a CONCH checkpoint: trunk and the contrastive pooler."""
    out: State = {}
    for name, tensor in state.items():
        if _CONCH_UNUSED.match(name):
            continue
        for pattern, new in _CONCH_PARTS:
            name = re.sub(pattern, new, name)
        if name == "attn_pool.attn.in_proj_bias":
            out |= {f"attn_pool.{p}.bias": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
        elif name == "attn_pool.to_kv.weight":
            out["attn_pool.k.weight"], out["attn_pool.v.weight"] = tensor.chunk(2)
        elif name != "attn_pool.to_text" or name in target:
            for pattern, new in _CONCH_NAMES:
                name = re.sub(pattern, new, name)
            out[name] = tensor
    return out


def _conch_v1_5(state: State, target: Mapping[str, torch.Tensor]) -> State:
    """As CONCH, with positions as its published code feeds them at the crop size of the module.

    The published tower keeps 14 x 14 positions, resampled linearly from the file, and enlarges them for each picture
    by bicubic interpolation; both steps are taken here once.
    """
    out = _conch(state, target)
    found, side = out.get("pos_embed"), math.isqrt(target["pos_embed"].shape[1] - 1)
    if found is None or found.ndim != 3 or math.isqrt(found.shape[1] - 1) ** 2 != found.shape[1] - 1:
        return out
    old = math.isqrt(found.shape[1] - 1)
    grid = found[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = grid if old == _V1_5_GRID else _resized(grid, _V1_5_GRID, "bilinear")
    grid = _resized(grid, side, "bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    return out | {"pos_embed": torch.cat([found[:, :1], grid], dim=1)}


def _resized(grid: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    return F.interpolate(grid, size=(side, side), mode=mode, align_corners=False)


def _dino(state: State, target: Mapping[str, torch.Tensor]) -> State:
    """DINO and DINOv2 training checkpoints: blocks in chunks, gated MLPs as w12 and w3, registers."""
    out = {}
    for name, tensor in state.items():
        if _DINO_UNUSED.match(name):
            continue
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        name = re.sub(r"^register_tokens$", "reg_token", name)
        out[name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")] = tensor
    return _fold_class_position(out)


#: layouts of published files
CONVERTERS: Mapping[str, Callable[[State, Mapping[str, torch.Tensor]], State]] = {
    "timm": lambda state, target: {k: v for k, v in state.items() if k in target or not _CLASSIFIER.match(k)},
    "hf": _hf,
    "dino": _dino,
    "conch": _conch,
    "conch-v1.5": _conch_v1_5,
}
