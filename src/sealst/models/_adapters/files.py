"""Trained weights of an adapter on disk: peft's own format where the adapter is peft's, else one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from sealst._errors import CheckpointError
from sealst._validate import listed
from sealst.models._encoders.encoder import Encoder

ADAPTER_FILE = "adapter_model.safetensors"


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Write what the adapter trains; nothing where it trains nothing."""
    if not encoder.adapted:
        return
    if hasattr(encoder.backbone, "peft_config"):
        encoder.backbone.save_pretrained(folder, safe_serialization=True)
        # peft adds an empty card; the model has one of its own.
        (folder / "README.md").unlink(missing_ok=True)
        return
    folder.mkdir()
    save_file({k: v.cpu().contiguous() for k, v in encoder.adapted_state().items()}, folder / ADAPTER_FILE)


def load_adapter(encoder: Encoder, folder: Path) -> None:
    """Fill an encoder that has the adapter already, strictly, in place."""
    if not encoder.adapted:
        return
    if not (folder / ADAPTER_FILE).is_file():
        # peft would look for it on the hub.
        raise CheckpointError(f"{str(folder / ADAPTER_FILE)!r} is missing; the model is not complete.")
    if hasattr(encoder.backbone, "peft_config"):
        stored = load_peft_weights(str(folder), device="cpu")
        check_tensors(ADAPTER_FILE, get_peft_model_state_dict(encoder.backbone), stored)
        set_peft_model_state_dict(encoder.backbone, stored)
        return
    own: dict[str, Any] = encoder.adapted_state()
    stored = load_file(folder / ADAPTER_FILE)
    check_tensors(ADAPTER_FILE, own, stored)
    for name, tensor in stored.items():
        own[name].copy_(tensor)


def check_tensors(where: str, own: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Raise unless names and shapes are the same."""
    if differing := sorted(set(own) ^ set(found)):
        raise CheckpointError(f"{where} has missing or unexpected tensors: {listed(differing, 4)}.")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}."
            )
