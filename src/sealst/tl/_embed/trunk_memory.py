"""What blocks that no training changes make of crops, kept between folds, seeds and methods of an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import torch

from sealst.models import SealModel

#: bytes of tokens that are kept, all sections together
ROOM = 2 * 2**30


class TrunkMemory:
    """Tokens by trunk and crops, as they were made: nothing is rounded, so results are those without it.

    Parameters
    ----------
    room
        Most bytes to keep; what comes when it is full is made each time.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._kept: dict[tuple[str, bytes], torch.Tensor] = {}

    def tokens(self, trunk: str, crops: np.ndarray, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Tokens of a batch of crops behind a trunk (see `trunk_key`), from `make` where they are not kept."""
        name = trunk, hashlib.blake2b(np.ascontiguousarray(crops).data, digest_size=16).digest()
        if name in self._kept:
            return self._kept[name]
        made = make()
        if made.nbytes <= self._room:
            self._room -= made.nbytes
            self._kept[name] = made.cpu()
        return made


def trunk_key(model: SealModel) -> str:
    """Digest of all that decides the tokens in front of a model's first adapted block; empty where it has no trunk."""
    if not (n := model.n_trunk):
        return ""
    facts = model.encoder.trunk_facts(n) | {"precision": model.encoder.spec.precision, "device": str(model.device)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
