"""Plain autoencoders of expression, without and with knowledge of which genes are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sealst.models._genes.base import GeneCode, GeneEncoder, GeneEncoderParams, decoder, layers


@dataclass(frozen=True)
class GeneMLPParams(GeneEncoderParams):
    """Plain autoencoder: no sampling, no flows."""

    kind: ClassVar[str] = "mlp"
    #: hidden widths of the encoder; the decoder mirrors them
    hidden: tuple[int, ...] = (1024, 512)
    #: dropout in the decoder
    dropout: float = 0.4

    def build(self, n_genes: int, dim: int) -> GeneMLP:
        """The network."""
        return GeneMLP(n_genes, dim, self)

    def describe(self) -> str:
        """Widths."""
        return f"autoencoder ({', '.join(map(str, self.hidden))})"


@dataclass(frozen=True)
class GeneMAEParams(GeneMLPParams):
    """Masked autoencoder (after He et al. 2022): sees which genes are hidden, and learns from the others what they are.

    A second input channel marks hidden genes. A gene counts as hidden where its standardised value is exactly 0: there
    training hides it, or a section does not measure it.
    """

    kind: ClassVar[str] = "mae"
    #: share of genes that training hides, where `params.mask_genes` is not given
    mask: float = 0.3

    def build(self, n_genes: int, dim: int) -> GeneMLP:
        """The network."""
        return GeneMLP(n_genes, dim, self, marks_hidden=True)

    def describe(self) -> str:
        """Widths."""
        return f"masked autoencoder ({', '.join(map(str, self.hidden))})"

    @property
    def mask_share(self) -> float:
        """That of the field `mask`."""
        return self.mask


class GeneMLP(GeneEncoder):
    """Autoencoder with batch normalisation; with `marks_hidden` its input says which genes are 0, that is hidden."""

    def __init__(self, n_genes: int, dim: int, params: GeneMLPParams, *, marks_hidden: bool = False) -> None:
        super().__init__()
        hidden = list(params.hidden)
        widths = [2 * n_genes if marks_hidden else n_genes, *hidden]
        self.marks_hidden = marks_hidden
        self.body = nn.Sequential(*layers(widths, 0.0, norm=True), nn.Linear(widths[-1], dim))
        self.decoder = decoder([dim, *reversed(hidden)], n_genes, params.dropout)

    def forward(self, x: torch.Tensor, *, sample: bool = False) -> GeneCode:
        """Encode profiles (B, genes); there is nothing to sample."""
        return GeneCode(self.body(torch.cat([x, (x == 0).to(x.dtype)], dim=1) if self.marks_hidden else x))
