"""Weights of published encoders: found locally or on the hub, read safely, loaded strictly."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sealst._errors import WeightsError
from sealst._validate import listed
from sealst.models._convert import convert
from sealst.models._spec import EncoderSpec

_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
_COMMON = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("state_dict", "model", "teacher")


def load_weights(module: nn.Module, record: EncoderSpec, path: Path) -> None:
    """Fill a timm module with the record's weights, in place; strict."""
    target = module.state_dict()
    state = convert(_read(path), record.converter, target)
    if problem := _mismatch(state, target):
        origin = f" They are the file {record.filename!r} of {_page(record)}." if record.hf_id else ""
        raise WeightsError(f"{str(path)!r} does not hold the weights of {record.key!r}: {problem}.{origin}")
    module.load_state_dict(state)


def find_weights(record: EncoderSpec, weights: str | Path | None) -> Path:
    """File with the weights: the one given, else in ``SEALST_WEIGHTS``, else in the hub's cache, else from the hub."""
    if weights is not None:
        return _local(record, Path(weights))
    return local_weights(record) or _cached(record) or _downloaded(record)


def local_weights(record: EncoderSpec) -> Path | None:
    """File with the weights in the folder that ``SEALST_WEIGHTS`` names, if there is one."""
    if not (root := os.environ.get("SEALST_WEIGHTS")):
        return None
    for key in dict.fromkeys((record.key, record.variant_of or record.key)):
        places = [Path(root) / key, *(Path(root) / f"{key}{ending}" for ending in _ENDINGS)]
        if found := [place for place in places if place.exists()]:
            return _local(record, found[0])
    return None


def _page(record: EncoderSpec) -> str:
    return f"https://huggingface.co/{record.hf_id}"


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
        except (LocalEntryNotFoundError, EntryNotFoundError):
            continue
    return None


def _downloaded(record: EncoderSpec) -> Path:
    reason = ""
    # Only the environment's token is used; none is read from the user's stored logins.
    token = os.environ.get("HF_TOKEN") or False
    for name in _names(record):
        try:
            return Path(hf_hub_download(record.hf_id, name, token=token))
        except (HfHubHTTPError, OSError, ValueError) as error:
            # The class alone: messages of the network layers may quote the request.
            reason = type(error).__name__
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                break
    access = "ask for access there and set HF_TOKEN" if record.gated else "they are free to download there"
    raise WeightsError(
        f"Weights of {record.key!r} could not be had ({reason}). Its page is {_page(record)}: {access}. Without a "
        f"network, put {record.filename!r} into a folder and pass `weights=<file or folder>`, or store it as "
        f"'<folder>/{record.variant_of or record.key}/{record.filename}' and set SEALST_WEIGHTS=<folder>. `pretrained=False` builds "
        "random weights."
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{str(path)!r} could not be read as weights ({type(error).__name__}). It is damaged, or holds more than "
            "tensors, which is never loaded."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{str(path)!r} holds no mapping of names to tensors.")
    return dict(state)


def _mismatch(state: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> str:
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
