"""Linear prediction of expression from the embeddings of a trained encoder, which is fitted once training is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sealst._errors import DataError
from sealst._validate import listed

#: the network that is trained together with the encoder; every model has it
HEAD = "head"


class Readout(nn.Module):
    """Image embedding → log1p-CP10k, by one matrix; nothing of it is trained by gradient.

    Parameters
    ----------
    dim, n_genes
        Length of an embedding, and of the panel.
    facts
        ``"kind"`` (its name), and how it was chosen: penalty, target, scores of all candidates; plain values.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, dim: int, n_genes: int, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.facts = dict(facts)
        self.register_buffer("weight", torch.zeros(n_genes, dim))
        self.register_buffer("bias", torch.zeros(n_genes))

    @classmethod
    def of(cls, coef: np.ndarray, intercept: np.ndarray, facts: Mapping[str, Any]) -> Readout:
        """From coefficients (dim, genes) and intercept (genes,)."""
        made = cls(coef.shape[0], coef.shape[1], facts)
        made.weight.copy_(torch.from_numpy(np.ascontiguousarray(coef.T, dtype=np.float32)))
        made.bias.copy_(torch.from_numpy(np.asarray(intercept, dtype=np.float32)))
        return made

    @property
    def kind(self) -> str:
        """Its name, such as ``"ridge"``."""
        return str(self.facts["kind"])

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """log1p-CP10k (B, genes) of embeddings (B, dim); may be below 0."""
        # In full precision: coefficients are small, and predictions differ by little.
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(z.float(), self.weight, self.bias)


def check_readout(name: str | None, fitted: Readout | None) -> str:
    """The readout that is asked for, or the model's own; an error where the model has none of that name."""
    names = [HEAD] if fitted is None else [fitted.kind, HEAD]
    if name is None:
        return names[0]
    if name not in names:
        raise DataError(f"`readout` {name!r} is none of this model's: {listed(names)}.")
    return name
