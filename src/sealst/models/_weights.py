"""Weights of encoders: found locally or on the hub, read safely, loaded strictly."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Mapping
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

from sealst._errors import WeightsError
from sealst._logging import logger, warn
from sealst._validate import listed
from sealst.models._convert import State, convert
from sealst.models._spec import EncoderSpec

#: folder with local weights, `<key>/` or `<key>.<ending>` inside
FOLDER_VARIABLE = "SEALST_WEIGHTS"
_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
_COMMON = ("model.safetensors", "pytorch_model.bin")
#: dictionaries that training scripts put around the tensors
_SHELLS = ("state_dict", "model", "teacher")


def find_weights(record: EncoderSpec, weights: str | Path | None = None) -> Path:
    """File with an encoder's weights.

    The one given, else one in the folder that ``SEALST_WEIGHTS`` names, else one in the hub's cache on disk, else from
    the hub, with the token that ``HF_TOKEN`` holds.

    Raises
    ------
    WeightsError
        When nothing is found; says which model page to visit and where a local file may be put.
    """
    if weights is not None:
        return _local(record, Path(weights))
    return local_weights(record) or _cached(record) or _downloaded(record)


def local_weights(record: EncoderSpec) -> Path | None:
    """File with the weights in the folder that ``SEALST_WEIGHTS`` names, if there is one."""
    if not (root := os.environ.get(FOLDER_VARIABLE)):
        return None
    for key in dict.fromkeys((record.key, record.variant_of or record.key)):
        places = [Path(root) / key, *(Path(root) / f"{key}{ending}" for ending in _ENDINGS)]
        if found := [place for place in places if place.exists()]:
            return _local(record, found[0])
    return None


def _local(record: EncoderSpec, path: Path) -> Path:
    if path.is_file():
        return path
    for name in _names(record):
        if (path / name).is_file():
            return path / name
    files = sorted(p for p in path.glob("*") if p.suffix in _ENDINGS) if path.is_dir() else []
    if len(files) == 1:
        return files[0]
    found = f"it holds {listed(p.name for p in files)}" if path.is_dir() else "it does not exist"
    raise WeightsError(
        f"No weights of {record.key!r} at {str(path)!r}: {found}. Pass a file, or a folder with {_names(record)[0]!r}."
    )


def _names(record: EncoderSpec) -> list[str]:
    return list(dict.fromkeys(filter(None, (record.filename, *_COMMON))))


def _cached(record: EncoderSpec) -> Path | None:
    for name in _names(record):
        try:
            return Path(hf_hub_download(record.hf_id, name, local_files_only=True))
        except EntryNotFoundError:
            continue
    return None


def _downloaded(record: EncoderSpec) -> Path:
    # Only the environment's token is used; none is read from the user's stored logins.
    token = os.environ.get("HF_TOKEN") or False
    for name in _names(record):
        try:
            logger.info("fetching %s of %s", name, record.hf_id)
            return Path(hf_hub_download(record.hf_id, name, token=token))
        except (HfHubHTTPError, OSError, ValueError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise WeightsError(_advice(record, _reason(error))) from error
    raise WeightsError(_advice(record, f"the model has none of {listed(_names(record))}"))


def _reason(error: Exception) -> str:
    """What went wrong, in our own words: messages of the network layers may quote the request."""
    if isinstance(error, LocalEntryNotFoundError):
        return "they are not on this machine, and the hub cannot be reached"
    if isinstance(error, GatedRepoError):
        return "they are gated, and access has not been granted"
    if isinstance(error, RepositoryNotFoundError):
        return "the model is hidden from you or has moved"
    return type(error).__name__


def _advice(record: EncoderSpec, reason: str) -> str:
    access = "ask for access there and set HF_TOKEN" if record.gated else "the file can be fetched from there"
    name = _names(record)[0]
    return (
        f"Weights of {record.key!r} could not be had: {reason}. Visit the model page of {record.hf_id}: {access}. "
        f"Without a network, pass `weights='<folder>/{name}'` to `sl.models.build_encoder`, or store the file as "
        f"'<folder>/{record.variant_of or record.key}/{name}' and set {FOLDER_VARIABLE}=<folder>. `pretrained=False` "
        "builds random weights."
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
    state = convert(_read(path, record.key), record.converter, module.state_dict())
    _take_grid(module, record, state)
    if problem := _mismatch(state, module.state_dict()):
        origin = f" They are the file {record.filename!r} of {record.hf_id}." if record.hf_id else ""
        raise WeightsError(f"{str(path)!r} does not hold the weights of {record.key!r}: {problem}.{origin}")
    module.load_state_dict(state)


def _take_grid(module: Any, record: EncoderSpec, state: State) -> None:
    stored = state.get("pos_embed")
    if stored is None or stored.ndim != 3 or stored.shape == module.pos_embed.shape:
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


def _read(path: Path, key: str) -> State:
    """Tensors of a checkpoint, in float32; nothing in it is executed."""
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{str(path)!r} could not be read as weights of {key!r} ({type(error).__name__}). It is damaged, or holds "
            "more than tensors, which is never loaded. Fetch it again, or save its tensors as safetensors."
        ) from error
    while isinstance(content, Mapping) and (inner := [s for s in _SHELLS if isinstance(content.get(s), Mapping)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise WeightsError(f"{str(path)!r} holds no mapping of names to tensors; expected the weights of {key!r}.")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in content.items()}


def _mismatch(state: State, target: State) -> str:
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
