"""Linear prediction of expression from the embeddings of a trained encoder, which is fitted once training is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sealst._core.search.programs import Programs
from sealst._core.space.surroundings import beside_surroundings
from sealst._errors import DataError
from sealst._validate import listed

#: the network that is trained together with the encoder; every model has it
HEAD = "head"
#: readouts of the crop alone, of the crop beside what lies around it, and of both beside further fields of view
RIDGE, SURROUNDINGS, FIELDS = "ridge", "surroundings", "fields"
#: what `Programs` is made of
_OF_PROGRAMS = ("patterns", "image_scale", "gene_scale")


class Readout(nn.Module):
    """Image embedding → log1p-CP10k, by one matrix; nothing of it is trained by gradient.

    Parameters
    ----------
    dim, n_genes
        Length of an embedding, and of the panel.
    facts
        ``"kind"`` (its name), and how it was chosen: target, rank, scores of all candidates; plain values. With
        ``"surroundings_um"``, a width in µm, it sees the mean embedding around each spot beside that of its crop; with
        ``"fields_um"``, sides in µm of which the first is the crop's, also those of all these squares. With
        ``"programs"``, a number, it has that many programs, in which expression is compared with images.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    patterns: torch.Tensor
    image_scale: torch.Tensor
    gene_scale: torch.Tensor

    def __init__(self, dim: int, n_genes: int, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.facts = dict(facts)
        self.register_buffer("weight", torch.zeros(n_genes, dim * _n_embeddings(self.facts)))
        self.register_buffer("bias", torch.zeros(n_genes))
        # Models of earlier versions have none.
        if n := int(self.facts.get("programs", 0)):
            self.register_buffer("patterns", torch.zeros(n, n_genes))
            self.register_buffer("image_scale", torch.zeros(n))
            self.register_buffer("gene_scale", torch.zeros(n))

    @classmethod
    def of(
        cls, coef: np.ndarray, intercept: np.ndarray, facts: Mapping[str, Any], programs: Programs | None = None
    ) -> Readout:
        """From coefficients (dim, genes), intercept (genes,), and the programs of its predictions."""
        found: dict[str, np.ndarray] = {"weight": coef.T, "bias": intercept}
        if programs is not None and len(programs):
            facts = dict(facts) | {"programs": len(programs)}
            found |= {name: getattr(programs, name) for name in _OF_PROGRAMS}
        made = cls(len(coef) // _n_embeddings(facts), coef.shape[1], facts)
        for name, values in found.items():
            getattr(made, name).copy_(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))
        return made

    @property
    def programs(self) -> Programs | None:
        """Programs of its predictions; None where it has none."""
        if not self.facts.get("programs"):
            return None
        return Programs(*(getattr(self, name).cpu().double().numpy() for name in _OF_PROGRAMS))

    @property
    def kind(self) -> str:
        """Its name, such as ``"ridge"``."""
        return str(self.facts["kind"])

    @property
    def width(self) -> float | None:
        """Width in µm of the surroundings that it sees; None where it sees the crop alone."""
        found = self.facts.get("surroundings_um")
        return None if found is None else float(found)

    @property
    def fields(self) -> tuple[float, ...]:
        """Sides in µm of the fields of view that it sees, the crop's first; empty where it sees one alone."""
        return tuple(map(float, self.facts.get("fields_um", ())))

    @property
    def sees_crop_alone(self) -> bool:
        """Whether it sees nothing but a spot's crop."""
        return _n_embeddings(self.facts) == 1

    def inputs(self, z: np.ndarray, xy: np.ndarray | None) -> np.ndarray:
        """What it sees of embeddings (n, dim) of crops whose centres, of one section, are at (n, 2), in µm.

        Of several fields, `z` are embeddings of all of them, (n, fields * dim).
        """
        if self.width is None:
            return z
        if xy is None:
            raise DataError(
                f"The readout {self.kind!r} sees what lies around each spot, so it needs `xy=`, the centres of the "
                f"crops in µm; or ask for `readout={RIDGE!r}`, which sees the crop alone."
            )
        return beside_surroundings(z, xy, self.width, dim=z.shape[1] // max(1, len(self.fields)))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """log1p-CP10k (B, genes) of embeddings (B, dim); may be below 0."""
        # In full precision: coefficients are small, and predictions differ by little.
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(z.float(), self.weight, self.bias)


def _n_embeddings(facts: Mapping[str, Any]) -> int:
    """How many embeddings side by side a readout sees."""
    return max(1, len(facts.get("fields_um", ()))) + ("surroundings_um" in facts)


def check_readout(name: str | None, names: Sequence[str]) -> str:
    """The readout that is asked for, or the model's first; an error where the model has none of that name."""
    if name is None:
        return names[0]
    if name not in names:
        raise DataError(f"`readout` {name!r} is none of this model's: {listed(names)}.")
    return name
