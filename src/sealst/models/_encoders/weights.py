"""Weights of encoders: found locally or on the hub, read safely, loaded strictly."""

from __future__ import annotations

import math
import os
import pickle
import re
import struct
from collections.abc import Mapping
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

from sealst._errors import WeightsError
from sealst._logging import logger, warn
from sealst._validate import listed
from sealst.models._encoders.convert import State, convert
from sealst.models._encoders.spec import EncoderSpec

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

    The one given, else one in the folder that ``SEALST_WEIGHTS`` names, else one in the hub's cache on disk, else from
    the hub, with the token that ``HF_TOKEN`` holds.

    Raises
    ------
    WeightsError
        When nothing is found; says which model page to visit and where a local file may be put.
    """
    return find_file(_sought(record), weights)


def local_weights(record: EncoderSpec) -> Path | None:
    """File with the weights in the folder that ``SEALST_WEIGHTS`` names, if there is one."""
    return _by_variable(_sought(record))


def find_file(sought: Sought, given: str | Path | None = None) -> Path:
    """File with published weights; see `find_weights`."""
    if given is not None:
        return _local(sought, Path(given))
    return _by_variable(sought) or _cached(sought) or _downloaded(sought)


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
        return "they are not on this machine, and the hub cannot be reached"
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
