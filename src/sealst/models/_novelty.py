"""What a model's training looked like, kept with it: by it a section is told from what the model has seen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sealst._core.scores.novelty import MAX_COMPONENTS, N_PICTURE, N_WITHIN, PARTS, Cloud, Scale, picture_features
from sealst._errors import CheckpointError
from sealst._given.schema import Count, Name, Positive, Stored, Text
from sealst._html import text_as_html
from sealst.models._adapters import check_tensors, tensor_shapes

NOVELTY_FILE = "novelty.safetensors"


class NoveltyFacts(Stored):
    """What ``config.json`` says of the file."""

    held_out: Text
    n_held_out: Count
    n_spots: Count
    n_components: Annotated[int, Field(ge=1, le=MAX_COMPONENTS)]
    freedom: Positive
    images: Name
    digest: Name


@dataclass(frozen=True, eq=False, repr=False)
class Novelty:
    """How unlike the training spots of a model others are, kept with it; made by `sealst.tl.finetune`.

    Attributes
    ----------
    cloud
        Mean and covariance of some training spots, of their embeddings and their pictures.
    scale
        What distances are expected of a further patient's spots, from training patients who were left out in turn.
    held_out, n_held_out
        What was left out (``"patients"``, or sections or strips where there was one patient), and how many of them.
    n_spots
        Number of spots.
    images
        What made the embeddings: `SealNet.image_fingerprint`.
    """

    cloud: Cloud
    scale: Scale
    held_out: str
    n_held_out: int
    n_spots: int
    images: str

    def log_distances(self, z: np.ndarray, crops: np.ndarray) -> np.ndarray:
        """Logarithms of distances, float32 (n, parts), of spots.

        Parameters
        ----------
        z
            Embeddings (n, d) of the crops as they are: means over several views are less noisy, and would look nearer.
        crops
            uint8 (n, px, px, 3).
        """
        return self.cloud.log_distances(np.asarray(z, dtype=np.float64), picture_features(crops)).astype(np.float32)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that change with any of its numbers."""
        digest = hashlib.sha256(repr((self.held_out, self.n_held_out, self.n_spots, self.scale.freedom)).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """In one line, what is known."""
        return f"known from {self.n_spots:,} training spots; {self.n_held_out} {self.held_out} were left out in turn"

    def facts(self) -> dict[str, Any]:
        """What ``config.json`` says of it."""
        counts = {"n_held_out": self.n_held_out, "n_spots": self.n_spots, "n_components": len(self.cloud.directions)}
        named = {"held_out": self.held_out, "images": self.images, "digest": self.digest}
        return named | counts | {"freedom": self.scale.freedom}

    def save(self, path: Path) -> None:
        """Write its numbers."""
        save_file(self._tensors(), path)

    @classmethod
    def load(cls, path: Path, facts: NoveltyFacts, *, dim: int, images: str) -> Novelty:
        """Read what `save` wrote, for embeddings of length `dim` that are made by `images`."""
        where = f"{path.name} in {str(path.parent)!r}"
        if not path.is_file():
            raise CheckpointError(f"{str(path.parent)!r} lacks {path.name}, of which config.json speaks (`novelty`).")
        with torch.device("meta"):
            check_tensors(where, _described(dim, facts.n_components), tensor_shapes(path))
        try:
            found = {name: tensor.double().numpy() for name, tensor in load_file(path).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{where} cannot be read: {error}") from error
        _check(found, where)
        cloud = Cloud(*(found[f"cloud.{name}"] for name in _CLOUD))
        scale = Scale(found["scale.level"], found["scale.spread"], facts.freedom, found["scale.within"])
        made = cls(cloud, scale, facts.held_out, facts.n_held_out, facts.n_spots, facts.images)
        if made.digest != facts.digest or made.images != images:
            raise CheckpointError(
                f"{where} is not the one that config.json speaks of (`novelty`); the folder is damaged, or two of them "
                "were put together."
            )
        return made

    def _tensors(self) -> dict[str, torch.Tensor]:
        arrays = {f"cloud.{name}": getattr(self.cloud, name) for name in _CLOUD}
        arrays |= {f"scale.{name}": getattr(self.scale, name) for name in _SCALE}
        return {name: torch.from_numpy(np.ascontiguousarray(a, dtype=np.float64)) for name, a in arrays.items()}

    def __repr__(self) -> str:
        return f"Novelty: {self.summary()}"

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))


_CLOUD = ("centre", "directions", "mean", "scale", "covariance")
_SCALE = ("level", "spread", "within")
#: deviations, which are divided by
_ABOVE_ZERO = ("cloud.scale", "scale.spread")


def _described(dim: int, n_components: int) -> dict[str, torch.Tensor]:
    n, n_parts = n_components + N_PICTURE, len(PARTS)
    cloud = {"centre": (dim,), "directions": (n_components, dim), "mean": (n,), "scale": (n,), "covariance": (n, n)}
    scale = {"level": (n_parts,), "spread": (n_parts,), "within": (n_parts, N_WITHIN)}
    shapes = {f"cloud.{k}": v for k, v in cloud.items()} | {f"scale.{k}": v for k, v in scale.items()}
    return {name: torch.empty(shape) for name, shape in shapes.items()}


def _check(found: dict[str, np.ndarray], where: str) -> None:
    """Raise unless distances can be computed from these numbers."""
    for name, values in found.items():
        if not np.isfinite(values).all() or (name in _ABOVE_ZERO and values.min() <= 0):
            raise CheckpointError(f"{where} is damaged: {name} must hold numbers, deviations those above 0.")
    covariance = found["cloud.covariance"]
    try:
        np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        symmetric = False
    else:
        symmetric = np.allclose(covariance, covariance.T)
    if not symmetric:
        raise CheckpointError(f"{where} is damaged: cloud.covariance is none.")
