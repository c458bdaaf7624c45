"""Weights of encoders: found locally or on the hub, read safely, brought under timm's names, loaded strictly."""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from sealst._errors import WeightsError
from sealst._files import as_path
from sealst._logging import logger, warn
from sealst._validate import listed
from sealst.models._encoders.network import hub_or_cache
from sealst.models._encoders.spec import EncoderSpec

State = dict[str, torch.Tensor]

#: weights that come with the package
_SHIPPED = Path(__file__).parent / "shipped"

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
_KEEP_UNUSED = re.compile(r"^(text\.|visual_head\.|logit_scale$)")
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
_WRAPPERS = (
    *("module.", "teacher.", "backbone.", "visual.", "vit.", "dinov2.", "dinov2_with_registers."),
    *("model.", "encoder."),
)
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


def _keep(state: State, target: Mapping[str, torch.Tensor]) -> State:
    """Image tower of KEEP: its prefix was taken off, its scales of layers are called weights, text is left out."""
    names = {re.sub(r"\.ls([12])\.weight$", r".ls\1.gamma", name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in names.items() if not _KEEP_UNUSED.match(name)}


#: layouts of published files
CONVERTERS: Mapping[str, Callable[[State, Mapping[str, torch.Tensor]], State]] = {
    "timm": lambda state, target: {k: v for k, v in state.items() if k in target or not _CLASSIFIER.match(k)},
    "hf": _hf,
    "dino": _dino,
    "keep": _keep,
    "conch": _conch,
    "conch-v1.5": _conch_v1_5,
}


#: folder with local weights, `<key>/` or `<key>.<ending>` inside
FOLDER_VARIABLE = "SEALST_WEIGHTS"
_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
_COMMON = ("model.safetensors", "pytorch_model.bin")
#: what readers raise on damaged files
_DAMAGED = (
    *(OSError, RuntimeError, ValueError, EOFError, LookupError, AssertionError, AttributeError, TypeError),
    *(struct.error, SafetensorError, pickle.UnpicklingError),
)
# Failed connections are raised as the HTTP library raises them, and which one that is depends on the version of
# huggingface_hub; the error that it always has in common with them is a base class of its own.
HTTP_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind.__module__ != "builtins"
)
_FETCHING: tuple[type[Exception], ...] = (*HTTP_ERRORS, OSError, ValueError, RuntimeError)
UNREACHED = "they are not on this machine, and the hub cannot be reached"
#: dictionaries that training scripts put around the tensors
_SHELLS = ("state_dict", "model", "teacher")


@dataclass(frozen=True, kw_only=True)
class Sought:
    """A file that is looked for: what it is called, where it may be, and what to say when it is not there."""

    #: what errors call it
    what: str
    #: folders below the one that ``SEALST_WEIGHTS`` names, the published one last
    folders: tuple[str, ...]
    #: names that the file may have, in order of preference
    names: tuple[str, ...]
    #: repository on the model hub, and whether access to it must be granted
    hf_id: str
    gated: bool
    #: how users pass a file, with ``{name}`` in place of its name
    passing: str
    #: what else users can do
    otherwise: str = ""
    #: endings under which a file of any name is taken, where it is the only one in its folder
    endings: tuple[str, ...] = ()


def find_weights(record: EncoderSpec, weights: str | Path | None = None) -> Path:
    """File with an encoder's weights.

    The one given, else the one that is shipped with sealst, else one in the folder that ``SEALST_WEIGHTS`` names, else
    one in the hub's cache on disk, else from the hub, with the token that ``HF_TOKEN`` holds.

    Raises
    ------
    WeightsError
        When nothing is found; says which model page to visit and where a local file may be put.
    """
    if weights is None and (own := _shipped(record)) is not None:
        return own
    return find_file(_sought(record), weights)


def local_weights(record: EncoderSpec) -> Path | None:
    """File with the weights in the folder that ``SEALST_WEIGHTS`` names, if there is one."""
    return _by_variable(_sought(record))


def find_file(sought: Sought, given: str | Path | None = None) -> Path:
    """File with published weights; see `find_weights`."""
    if given is not None:
        return _local(sought, as_path(given, argument="weights"))
    return _by_variable(sought) or _cached(sought) or _downloaded(sought)


def _shipped(record: EncoderSpec) -> Path | None:
    """File inside the package, of an encoder that is shipped."""
    # Listed rather than joined: the key of a stored record is anybody's word.
    files = {path.stem: path for path in _SHIPPED.glob("*.safetensors")}
    return files.get(record.variant_of or record.key)


def _sought(record: EncoderSpec) -> Sought:
    return Sought(
        what=record.key,
        folders=tuple(dict.fromkeys((record.key, record.variant_of or record.key))),
        names=tuple(dict.fromkeys(filter(None, (record.filename, *_COMMON)))),
        hf_id=record.hf_id,
        gated=record.gated,
        passing="`weights='<folder>/{name}'` to `sl.models.build_encoder`",
        otherwise=" `pretrained=False` builds random weights.",
        endings=_ENDINGS,
    )


def _by_variable(sought: Sought) -> Path | None:
    if not (root := os.environ.get(FOLDER_VARIABLE)):
        return None
    for key in sought.folders:
        places = [Path(root) / key, *(Path(root) / f"{key}{ending}" for ending in sought.endings)]
        if found := [place for place in places if place.exists()]:
            return _local(sought, found[0])
    return None


def _local(sought: Sought, path: Path) -> Path:
    if path.is_file():
        return path
    for name in sought.names:
        if (path / name).is_file():
            return path / name
    files = sorted(p for p in path.glob("*") if p.suffix in _ENDINGS) if path.is_dir() else []
    if len(files) == 1 and files[0].suffix in sought.endings:
        return files[0]
    found = f"it holds {listed(p.name for p in files)}" if path.is_dir() else "it does not exist"
    raise WeightsError(
        f"No weights of {sought.what!r} at {str(path)!r}: {found}. Pass a file, or a folder with {sought.names[0]!r}."
    )


def _cached(sought: Sought) -> Path | None:
    for name in sought.names:
        try:
            return Path(hf_hub_download(sought.hf_id, name, local_files_only=True))
        except EntryNotFoundError:
            continue
    return None


def _downloaded(sought: Sought) -> Path:
    token = hub_token() or False
    with hub_or_cache():
        for name in sought.names:
            try:
                logger.info("fetching %s of %s", name, sought.hf_id)
                return Path(hf_hub_download(sought.hf_id, name, token=token))
            except _FETCHING as error:
                if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                    continue
                raise WeightsError(_advice(sought, _reason(error))) from error
    raise WeightsError(_advice(sought, f"the model has none of {listed(sought.names)}"))


def hub_token() -> str | None:
    """The environment's token; none is read from the user's stored logins."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        # The network layers would show the token in their complaint.
        raise WeightsError("HF_TOKEN holds spaces, line breaks or other characters that no token has.")
    return token or None


def _reason(error: Exception) -> str:
    """What went wrong, in our own words: messages of the network layers may quote the request."""
    if isinstance(error, LocalEntryNotFoundError):
        return UNREACHED
    if isinstance(error, GatedRepoError):
        return "they are gated, and access has not been granted"
    if isinstance(error, RepositoryNotFoundError):
        return "the model is hidden from you or has moved"
    return type(error).__name__


def _advice(sought: Sought, reason: str) -> str:
    access = "ask for access there and set HF_TOKEN" if sought.gated else "the file can be fetched from there"
    name = sought.names[0]
    return (
        f"Weights of {sought.what!r} could not be had: {reason}. Visit the model page of {sought.hf_id}: {access}. "
        f"Without a network, pass {sought.passing.format(name=name)}, or store the file as "
        f"'<folder>/{sought.folders[-1]}/{name}' and set {FOLDER_VARIABLE}=<folder>.{sought.otherwise}"
    )


def load_weights(module: Any, record: EncoderSpec, path: Path) -> None:
    """Fill a timm module with an encoder's weights, in place; strict.

    The position grid is taken as it is in the file: the module's own is set to its size, and timm interpolates it for
    crops of another size when they are embedded.

    Raises
    ------
    WeightsError
        When the file is damaged, or names or shapes differ; names the first of them.
    """
    fill(module, record, read_tensors(path, record.key), path)


def fill(module: Any, record: EncoderSpec, tensors: State, path: Path) -> None:
    """Fill a timm module with tensors that were read from `path`; see `load_weights`."""
    state = convert(tensors, record.converter, module.state_dict())
    _take_grid(module, record, state)
    if problem := mismatch(state, module.state_dict()):
        origin = f" They are the file {record.filename!r} of {record.hf_id}." if record.hf_id else ""
        raise WeightsError(f"{str(path)!r} does not hold the weights of {record.key!r}: {problem}.{origin}")
    module.load_state_dict(state)


def check_finite(module: Any, key: str) -> None:
    """Raise where weights of an encoder are NaN or infinite, wherever they came from; names the first."""
    state = module.state_dict()
    lost = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if lost:
        raise WeightsError(
            f"{len(lost)} tensors of {key!r} hold NaN or infinite weights (first: {lost[0]!r}); the file is damaged. "
            "Download or save it again."
        )


def _take_grid(module: Any, record: EncoderSpec, state: State) -> None:
    stored = state.get("pos_embed")
    own = getattr(module, "pos_embed", None)
    if stored is None or own is None or stored.ndim != 3 or stored.shape == own.shape:
        return
    prefix = module.pos_embed.shape[1] - math.prod(module.patch_embed.grid_size)
    side = math.isqrt(max(stored.shape[1] - prefix, 0))
    if side == 0 or side**2 + prefix != stored.shape[1]:
        return
    pixels = side * record.patch_px
    module.set_input_size(img_size=(pixels, pixels))
    if record.converter == "hf" and side != record.input_px // record.patch_px:
        warn(
            f"The file of {record.key!r} has positions for crops of {pixels} px. Other crops get them by timm's "
            "interpolation (bicubic with antialiasing); transformers interpolates without antialiasing, so embeddings "
            f"of {record.input_px} px crops differ a little from those of its users."
        )


def read_tensors(path: Path, key: str) -> State:
    """Tensors of a checkpoint, in float32; nothing in it is executed."""
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except _DAMAGED as error:
        raise WeightsError(
            f"{str(path)!r} could not be read as weights of {key!r} ({type(error).__name__}). It is damaged, or holds "
            "more than tensors, which is never loaded. Fetch it again, or save its tensors as safetensors."
        ) from error
    while isinstance(content, Mapping) and (inner := [s for s in _SHELLS if isinstance(content.get(s), Mapping)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise WeightsError(f"{str(path)!r} holds no mapping of names to tensors; expected the weights of {key!r}.")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in content.items()}


def mismatch(state: State, target: State) -> str:
    """First names and shapes that differ, in words; empty when none does."""
    parts = []
    if missing := [name for name in target if name not in state]:
        parts.append(f"missing {listed(missing, 4)}")
    if unexpected := [name for name in state if name not in target]:
        parts.append(f"unexpected {listed(unexpected, 4)}")
    for name in target:
        if name in state and state[name].shape != target[name].shape:
            parts.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(target[name].shape)}")
            break
    return "; ".join(parts)
