"""Layout of the published SEAL checkpoints: which of their names are which of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sealst._errors import WeightsError
from sealst._validate import listed
from sealst.models._adapters.adapters import LoraParams
from sealst.models._encoders.convert import State
from sealst.models._encoders.encoder import Encoder

#: what peft puts before the names of the tower
_TOWER = "encoder.base_model.model."
_WRAPPER = "module."
#: adapted layers, below the prefixes that published towers have
_LAYER = re.compile(r"^(?:visual\.)?(?:trunk\.)?(blocks\.(\d+)\.(.+?))\.(?:base_layer|lora_\w+\.\w+)\.(?:weight|bias)$")
_FLOW = re.compile(r"^flows\.(\d+)\.")

#: modules of the files → ours; those of the same name are left out
VISION_HEAD: Mapping[str, str] = {"decoder.decoder.0": "0", "decoder.decoder.3": "2"}
OMICS: Mapping[str, str] = {
    "encoder.0": "body.0",
    "encoder.1": "body.1",
    "encoder.4": "body.3",
    "encoder.5": "body.4",
    "fc_mu": "to_mu",
    "fc_logvar": "to_logvar",
    "decoder.0": "decoder.0",
    "decoder.2": "decoder.3",
    "decoder.5": "decoder.6",
}


class VisionParts(NamedTuple):
    """What a vision file holds."""

    #: the base encoder, under its published names
    tower: State
    #: LoRA, under timm's names of the layers
    lora: State
    #: timm's names of the layers that the file marks as adapted
    layers: tuple[str, ...]
    #: everything else, under the file's names
    head: State


def unwrapped(state: State) -> State:
    """Tensors without the prefix of parallel training, which stands before all names or none."""
    if not all(name.startswith(_WRAPPER) for name in state):
        return state
    return {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}


def split_vision(state: State) -> VisionParts:
    """Take a vision file apart."""
    inside = {name.removeprefix(_TOWER): tensor for name, tensor in state.items() if name.startswith(_TOWER)}
    tower, lora, layers = {}, {}, []
    for name, tensor in inside.items():
        if found := _LAYER.match(name):
            layers.append(found[1])
        if "lora_" in name:
            lora[name[found.start(1) :] if found else name] = tensor
            continue
        plain = name.replace(".base_layer.", ".")
        # Two tensors for one layer: the second keeps its name, which strict loading then reports.
        tower[name if plain in inside else plain] = tensor
    head = {name: tensor for name, tensor in state.items() if not name.startswith(_TOWER)}
    return VisionParts(tower, lora, tuple(sorted(set(layers))), head)


def published_adapter(parts: VisionParts, encoder: Encoder, path: str) -> LoraParams:
    """Rank and place of the LoRA layers in a file.

    Raises
    ------
    WeightsError
        When there are none, or `LoraParams` cannot describe where they are.
    """
    if outside := [name for name in parts.lora if not name.startswith("blocks.")]:
        raise WeightsError(f"{path!r} has LoRA layers outside the encoder's blocks: {listed(outside, 4)}.")
    ranks = [tensor.shape[0] for name, tensor in sorted(parts.lora.items()) if ".lora_A." in name and tensor.ndim]
    if not parts.layers or not ranks:
        raise WeightsError(f"{path!r} has no LoRA layers; expected those of the last block of {encoder.spec.key!r}.")
    first = min(int(layer.split(".")[1]) for layer in parts.layers)
    ends = sorted({layer.split(".", 2)[2] for layer in parts.layers})
    n_blocks = max(encoder.spec.n_blocks - first, 1)
    for targets in (None, "|".join(map(re.escape, ends))):
        # Files do not hold the scaling; the published models have 1.
        adapter = LoraParams(r=ranks[0], alpha=float(ranks[0]), n_blocks=n_blocks, targets=targets)
        if set(adapter.layers(encoder)) == set(parts.layers):
            return adapter
    raise WeightsError(
        f"{path!r} has LoRA on layers that differ from block to block, or on none of ours: {listed(parts.layers, 6)}."
    )


def file_names(own: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    """Name in a file → our name, for all of our names."""
    theirs = {ours: name for name, ours in modules.items()}
    found = {}
    for name in own:
        module, _, leaf = name.rpartition(".")
        found[f"{theirs.get(module, module)}.{leaf}"] = name
    return found


def count_flows(state: State) -> int:
    """How many planar flows an omics file has; 1 where it has none, for strict loading to report."""
    return max(len({found[1] for found in map(_FLOW.match, state) if found}), 1)


def flat_flows(state: State) -> State:
    """Flows with vectors as vectors and the offset as a number, whichever axes of length 1 they have in the file."""
    return {name: tensor.squeeze() if _FLOW.match(name) else tensor for name, tensor in state.items()}
