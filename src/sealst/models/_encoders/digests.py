"""Digests of encoders' weights, and names that hold them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sealst.models._encoders.encoder import Encoder


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and values of a state, hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoder_name(encoder: Encoder, crop_px: int) -> str:
    """Key of an encoder's image model: its name, and 8 digits that change with weights and feeding."""
    facts = (weights_hash(encoder.state_dict()), encoder.spec.feeding(), crop_px)
    return f"{plain_key(encoder.spec.key)}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}"


def base_name(encoder: Encoder) -> str:
    """Name of an encoder without adapter, and 8 digits that change with its pretrained weights and feeding."""
    facts = (weights_hash(encoder.base_state()), encoder.spec.feeding())
    return f"{plain_key(encoder.spec.key)}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}"


def plain_key(key: str) -> str:
    """Last part of an encoder's name, in characters that a table may have in its name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(key.split(":", 1)[-1]).name).strip("-._")
