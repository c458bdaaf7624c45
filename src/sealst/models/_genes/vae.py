"""The default gene encoder: a variational autoencoder with planar flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from sealst.models._genes.base import GeneCode, GeneEncoder, GeneEncoderParams, decoder, layers


@dataclass(frozen=True)
class GeneVAEParams(GeneEncoderParams):
    """Variational autoencoder with planar flows; defaults as in SEAL."""

    kind: ClassVar[str] = "vae"
    variational: ClassVar[bool] = True
    _hidden_facts: ClassVar[tuple[str, ...]] = ("invertible",)
    #: hidden widths of the encoder; the decoder mirrors them
    hidden: tuple[int, ...] = (1024, 512)
    #: planar flows after the posterior
    n_flows: int = 3
    #: dropout in the decoder
    dropout: float = 0.4
    #: whether the flows are kept invertible (Rezende & Mohamed 2015, appendix A.1)
    invertible: bool = True

    def build(self, n_genes: int, dim: int) -> GeneVAE:
        """The network."""
        return GeneVAE(n_genes, dim, self)

    def describe(self) -> str:
        """Widths and flows."""
        return f"variational autoencoder ({', '.join(map(str, self.hidden))}), {self.n_flows} planar flows"


class PlanarFlow(nn.Module):
    """z' = z + u·tanh(wᵀz + b) (Rezende & Mohamed 2015), `invertible` with u constrained so that it stays so."""

    def __init__(self, dim: int, *, invertible: bool = True) -> None:
        super().__init__()
        self.invertible = invertible
        self.w = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.u = nn.Parameter(torch.randn(dim) * 0.01)
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Transformed z (B, dim) and log |det| (B,)."""
        wu = self.w @ self.u
        shift = (F.softplus(wu) - 1 - wu) * self.w / (self.w @ self.w + 1e-12)
        u = self.u + shift if self.invertible else self.u
        t = torch.tanh(z @ self.w + self.b)
        return z + t[:, None] * u, torch.log((1 + (1 - t**2) * (self.w @ u)).abs() + 1e-12)


class GeneVAE(GeneEncoder):
    """Autoencoder of expression profiles, standardised per gene of the panel.

    Parameters
    ----------
    n_genes
        Genes in the panel.
    dim
        Size of the code; the image encoder's, so that both meet without projection.
    params
        Widths, flows, dropout.
    """

    def __init__(self, n_genes: int, dim: int, params: GeneVAEParams) -> None:
        super().__init__()
        hidden = list(params.hidden)
        self.body = nn.Sequential(*layers([n_genes, *hidden], 0.0, norm=True))
        last = hidden[-1] if hidden else n_genes
        self.to_mu, self.to_logvar = nn.Linear(last, dim), nn.Linear(last, dim)
        self.flows = nn.ModuleList(PlanarFlow(dim, invertible=params.invertible) for _ in range(params.n_flows))
        self.decoder = decoder([dim, *reversed(hidden)], n_genes, params.dropout)

    def forward(self, x: torch.Tensor, *, sample: bool = False) -> GeneCode:
        """Encode profiles (B, genes); the posterior mean goes through the flows unless `sample`."""
        h = self.body(x)
        mu, logvar = self.to_mu(h), self.to_logvar(h).clamp(-10, 10)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if sample else mu
        log_det = torch.zeros(len(z), device=z.device, dtype=z.dtype)
        for flow in self.flows:
            z, step = flow(z)
            log_det = log_det + step
        return GeneCode(z, mu, logvar, log_det)
