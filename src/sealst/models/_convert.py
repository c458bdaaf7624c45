"""Published weights → timm's names, exactly: nothing is approximated, nothing unknown is dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]

#: Hugging Face's ViT, Dinov2 and Dinov2WithRegisters, in the spellings of transformers 4 and 5
_HF_NAMES = (
    (r"^(vit|dinov2|dinov2_with_registers)\.", ""),
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
#: used in pretraining only
_HF_UNUSED = re.compile(r"^((vit|dinov2|dinov2_with_registers)\.)?(embeddings\.mask_token$|pooler\.)")
_CONCH_UNUSED = re.compile(
    r"^(text\.|text_decoder\.|logit_scale$|(visual\.)?(attn_pool_caption\.|ln_caption\.|proj_caption$))"
)
_CONCH_NAMES = (
    (r"^attn_pool\.attn\.([qkv])_proj_weight$", r"attn_pool.\1.weight"),
    (r"^attn_pool\.(attn\.out_proj|to_out)\.", "attn_pool.proj."),
    (r"^attn_pool\.to_q\.", "attn_pool.q."),
)
#: encoders have none
_CLASSIFIER = re.compile(r"^(head|fc|classifier)\.(weight|bias)$")


def convert(state: Mapping[str, torch.Tensor], converter: str, target: Mapping[str, torch.Tensor]) -> State:
    """Weights under timm's names.

    Parameters
    ----------
    state
        Tensors of a published file, or of a timm module, which come back as they are.
    converter
        Layout of the published file: ``"timm"``, ``"hf"``, ``"dino"`` or ``"conch"``.
    target
        State of the module to fill; only names and shapes are read.
    """
    plain = {k.removeprefix("module."): v for k, v in state.items()}
    if set(plain) == set(target):
        return plain
    return _CONVERTERS[converter](plain, target)


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
    if "reg_token" in out and {"cls_token", "pos_embed"} <= set(out):
        # timm's towers with registers give the class token no position of its own; it is part of the token here.
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:]
    return _fit_positions(out, target, lambda grid, side: _resized(grid, side, "bicubic"))


def _join(state: State, parts: tuple[str, ...], whole: str) -> None:
    """Concatenate the outputs of sibling linear layers, in place, wherever all of them are there."""
    pattern = re.compile(rf"^(blocks\.\d+\.){re.escape(parts[0])}\.(weight|bias)$")
    for found in [m for m in map(pattern.match, list(state)) if m]:
        names = [f"{found[1]}{part}.{found[2]}" for part in parts]
        if all(name in state for name in names):
            state[f"{found[1]}{whole}.{found[2]}"] = torch.cat([state.pop(name) for name in names])


def _conch(state: State, target: Mapping[str, torch.Tensor]) -> State:
    out: State = {}
    for name, tensor in _visual(state).items():
        if name == "attn_pool.attn.in_proj_bias":
            out |= {f"attn_pool.{p}.bias": t for p, t in zip("qkv", tensor.chunk(3), strict=True)}
        elif name == "attn_pool.to_kv.weight":
            out["attn_pool.k.weight"], out["attn_pool.v.weight"] = tensor.chunk(2)
        elif name != "attn_pool.to_text" or name in target:
            for pattern, new in _CONCH_NAMES:
                name = re.sub(pattern, new, name)
            out[name] = tensor
    newer = any(name.endswith("attn_pool_contrast.to_kv.weight") for name in state)
    return _fit_positions(out, target, _as_conch_v1_5, always=True) if newer else out


def _as_conch_v1_5(grid: torch.Tensor, side: int) -> torch.Tensor:
    # The published tower keeps 14 x 14 positions, resampled linearly, and enlarges them for each picture.
    return _resized(grid if grid.shape[-1] == 14 else _resized(grid, 14, "bilinear"), side, "bicubic")


def _visual(state: State) -> State:
    """Image side of a CONCH checkpoint: trunk and the contrastive pooler."""
    out = {}
    for name, tensor in state.items():
        if _CONCH_UNUSED.match(name):
            continue
        name = re.sub(r"^trunk\.", "", name.removeprefix("visual."))
        name = re.sub(r"^attn_pool_contrast\.", "attn_pool.", name)
        name = re.sub(r"^proj_contrast$", "attn_pool.to_text", name)
        out[re.sub(r"^ln_contrast\.", "attn_pool.ln.", name)] = tensor
    return out


def _fit_positions(
    state: State,
    target: Mapping[str, torch.Tensor],
    resize: Callable[[torch.Tensor, int], torch.Tensor],
    *,
    always: bool = False,
) -> State:
    """Bring stored positions to the module's grid as the published code does for each picture of that size."""
    found, wanted = state.get("pos_embed"), target["pos_embed"]
    if found is None or found.ndim != 3 or found.shape[2] != wanted.shape[2]:
        return state
    if found.shape == wanted.shape and not always:
        return state
    side = int(wanted.shape[1] ** 0.5)
    prefix = wanted.shape[1] - side**2
    old = round((found.shape[1] - prefix) ** 0.5)
    if old**2 + prefix != found.shape[1]:
        return state
    grid = found[:, prefix:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = resize(grid, side).permute(0, 2, 3, 1).flatten(1, 2)
    return state | {"pos_embed": torch.cat([found[:, :prefix].float(), grid], dim=1)}


def _resized(grid: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    return F.interpolate(grid, size=(side, side), mode=mode, align_corners=False)


def _timm(state: State, target: Mapping[str, torch.Tensor]) -> State:
    return {k: v for k, v in state.items() if k in target or not _CLASSIFIER.match(k)}


def _dino(state: State, target: Mapping[str, torch.Tensor]) -> State:
    return {k: v for k, v in _timm(state, target).items() if k != "mask_token"}


_CONVERTERS: Mapping[str, Callable[[State, Mapping[str, torch.Tensor]], State]] = {
    "timm": _timm,
    "hf": _hf,
    "dino": _dino,
    "conch": _conch,
}
