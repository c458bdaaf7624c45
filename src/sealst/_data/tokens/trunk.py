"""Trunk cache: tokens that enter the first adapted block, made once per crop and augmented view.

With adapters in the last k of L blocks the first L - k never change, so their output is kept (half precision) and only
the tail is run in training. Each section is an entry of its own, so that runs on other combinations of sections share
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sealst._core.device import to_images
from sealst._core.seeds import seeded
from sealst._data.augment import AUGMENTATION_VERSIONS, AUGMENTATIONS
from sealst._data.crops.source import CropSource, iter_source
from sealst._data.tokens.store import Entry, write_entry


@dataclass(frozen=True)
class Trunk:
    """How tokens are made."""

    #: images (b, 3, px, px) in [0, 1] → tokens (b, t, w)
    run: Callable[[torch.Tensor], torch.Tensor]
    #: what decides what `run` returns: weights, number of blocks, how pixels are fed, precision
    facts: Mapping[str, Any]
    #: name of the augmentation of every view but the first
    augmentation: str
    device: torch.device
    #: images per call of `run`
    batch_size: int
    #: more about the encoder, for readers of an entry
    notes: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, root: Path, *, digest: str, n: int, px: int, views: int) -> Entry:
        """Where the tokens of crops with a digest belong."""
        # One view is the crop itself, whatever the augmentation.
        varied = f"{self.augmentation}, version {AUGMENTATION_VERSIONS[self.augmentation]}" if views > 1 else "none"
        facts = dict(self.facts) | {"crops": digest, "px": px, "augmentation": varied}
        return Entry(root, facts, n, views, self.notes)

    def fill(self, entry: Entry, crops: Callable[[], Any], *, bar: Any) -> None:
        """Write an entry, unless it is there; see `write_entry`."""

        def tokens(block: np.ndarray, view: int, number: int) -> torch.Tensor:
            with torch.inference_mode():
                images = to_images(block, self.device)
                if view:
                    # The same views whenever and wherever a build went on, and the caller's random state untouched.
                    name = f"{entry.key} {view} {number}".encode()
                    with seeded(int.from_bytes(hashlib.sha256(name).digest()[:4], "big")):
                        images = AUGMENTATIONS[self.augmentation](images)
                return torch.cat([self.run(part) for part in images.split(self.batch_size)])

        write_entry(entry, crops, tokens, bar=bar)


def crops_digest(parts: Iterable[tuple[Any, np.ndarray]], n: int) -> str:
    """Digest of crops in their order, given as positions and crops in any order."""
    found = np.zeros((n, 16), dtype=np.uint8)
    for positions, crops in parts:
        made = b"".join(hashlib.blake2b(np.ascontiguousarray(c).data, digest_size=16).digest() for c in crops)
        found[positions] = np.frombuffer(made, dtype=np.uint8).reshape(-1, 16)
    return hashlib.sha256(found.tobytes()).hexdigest()


def source_digest(source: CropSource, px: int, *, bar: Any) -> str:
    """Digest of the crops of a source, which are read for it and not kept."""

    def read() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for positions, crops in iter_source(source, px):
            yield positions, crops
            bar.update(len(positions))

    return crops_digest(read(), len(source.boxes))


def token_bytes(n: int, views: int, n_tokens: int, width: int) -> int:
    """Size of a trunk cache in bytes."""
    return n * views * n_tokens * width * 2
