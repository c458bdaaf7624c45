"""What predicts the expression of a single patch token, kept with a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sealst._core.weak_supervision import LOG_MOST
from sealst._errors import CheckpointError
from sealst._files import write_text
from sealst._given.schema import Count, Name, Stored, Text
from sealst._html import text_as_html
from sealst.models._adapters import check_tensors, tensor_shapes
from sealst.models._seal.reliability import Reliability, read_reliability, written

LOCAL_FILE = "local.safetensors"
#: how far it can be believed, where that was measured
LOCAL_RELIABILITY_FILE = "local_reliability.tsv"


class LocalFacts(Stored):
    """What ``config.json`` says of the file."""

    held_out: Text
    score: float
    n_spots: Count
    images: Name
    digest: Name


@dataclass(frozen=True, eq=False, repr=False)
class LocalHead:
    """Expression of each patch of a crop, learned from spots; made by `sealst.tl.fit_local`.

    Attributes
    ----------
    weight, bias
        float32 (width, genes) and (genes,): a token has ``exp(token @ weight + bias)`` counts per 10,000.
    held_out, score
        What was held out when its start, a linear readout, was chosen, and the mean Pearson of that over genes.
    n_spots
        Number of spots.
    images
        What made the tokens: `SealNet.image_fingerprint`.
    reliability
        How well it predicts spots of patients that neither it nor the model has seen; None where nothing was held out.
        Its `model` is the head's `digest`.
    """

    weight: np.ndarray
    bias: np.ndarray
    held_out: str
    score: float
    n_spots: int
    images: str
    reliability: Reliability | None = None

    def counts(self, tokens: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
        """Counts per 10,000 of tokens (..., width), of all genes or those at some positions: float32 (..., genes).

        These are sums: the mean over the tokens of an area is what is predicted for the area.
        """
        kept = slice(None) if genes is None else genes
        flat = np.asarray(tokens, dtype=np.float32).reshape(-1, tokens.shape[-1])
        found = np.exp(np.minimum(flat @ self.weight[:, kept] + self.bias[kept], np.float32(LOG_MOST)))
        return found.reshape(*tokens.shape[:-1], -1)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change with any of its numbers."""
        digest = hashlib.sha256(repr((self.held_out, self.n_spots)).encode())
        for part in (self.weight, self.bias):
            digest.update(np.ascontiguousarray(part, dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """In one line, what is known."""
        known = "reliability unknown" if self.reliability is None else self.reliability.summary()
        begun = f"begun with a mean r of {self.score:.3f} on held-out {self.held_out}"
        return f"fitted to {self.n_spots:,} spots ({begun}; {known})"

    def facts(self) -> dict[str, Any]:
        """What ``config.json`` says of it."""
        numbers = {"score": round(float(self.score), 6), "n_spots": self.n_spots}
        return {"held_out": self.held_out, "images": self.images, "digest": self.digest} | numbers

    def save(self, path: Path) -> None:
        """Write its numbers, and beside them how far they can be believed."""
        if self.reliability is not None:
            write_text(path.with_name(LOCAL_RELIABILITY_FILE), written(self.reliability))
        parts = {"weight": self.weight, "bias": self.bias}
        save_file({k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for k, v in parts.items()}, path)

    @classmethod
    def load(cls, path: Path, facts: LocalFacts, *, width: int, n_genes: int, images: str) -> LocalHead:
        """Read what `save` wrote, for tokens of this width that are made by `images`."""
        where = f"{path.name} in {str(path.parent)!r}"
        if not path.is_file():
            raise CheckpointError(f"{str(path.parent)!r} lacks {path.name}, of which config.json speaks (`local`).")
        described = {"weight": torch.empty((width, n_genes), device="meta")}
        described["bias"] = torch.empty(n_genes, device="meta")
        check_tensors(where, described, tensor_shapes(path))
        try:
            found = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{where} cannot be read: {error}") from error
        if not all(np.isfinite(values).all() for values in found.values()):
            raise CheckpointError(f"{where} is damaged: it must hold numbers.")
        made = cls(found["weight"], found["bias"], facts.held_out, facts.score, facts.n_spots, facts.images)
        if made.digest != facts.digest or made.images != images:
            raise CheckpointError(
                f"{where} is not the one that config.json speaks of (`local`); the folder is damaged, or two of them "
                "were put together."
            )
        if (known := path.with_name(LOCAL_RELIABILITY_FILE)).is_file():
            return replace(made, reliability=read_reliability(known, model=facts.digest))
        return made

    def __repr__(self) -> str:
        return f"LocalHead: {self.summary()}"

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))
