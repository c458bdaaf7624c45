"""The gene side: a variational autoencoder with planar flows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from sealst._validate import check_fraction


@dataclass(frozen=True)
class GeneVAEParams:
    """Sizes of the gene autoencoder; defaults as in SEAL."""

    #: hidden widths of the encoder; the decoder mirrors them
    hidden: tuple[int, ...] = (1024, 512)
    #: planar flows after the posterior
    n_flows: int = 3
    #: dropout in the decoder
    dropout: float = 0.4
    #: whether the flows are kept invertible (Rezende & Mohamed 2015, appendix A.1)
    invertible: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(int(h) for h in self.hidden))
        check_fraction("gene_vae.dropout", self.dropout)

    def facts(self) -> dict[str, Any]:
        """What changes a code beside the weights themselves."""
        return {"invertible": self.invertible}


class GeneCode(NamedTuple):
    """Latent code of a batch of expression profiles."""

    #: code after the flows, (B, dim)
    z: torch.Tensor
    #: posterior mean and log variance before the flows, (B, dim)
    mu: torch.Tensor
    logvar: torch.Tensor
    #: summed log |det| of the flows, (B,)
    log_det: torch.Tensor


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


def _mlp(widths: Sequence[int], dropout: float, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers.append(nn.Linear(a, b))
        if norm:
            layers.append(nn.BatchNorm1d(b))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return layers


class GeneVAE(nn.Module):
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
        self.body = nn.Sequential(*_mlp([n_genes, *hidden], 0.0, norm=True))
        last = hidden[-1] if hidden else n_genes
        self.to_mu, self.to_logvar = nn.Linear(last, dim), nn.Linear(last, dim)
        self.flows = nn.ModuleList(PlanarFlow(dim, invertible=params.invertible) for _ in range(params.n_flows))
        widths = [dim, *reversed(hidden)]
        self.decoder = nn.Sequential(*_mlp(widths, params.dropout, norm=False), nn.Linear(widths[-1], n_genes))

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

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Standardised expression (B, genes) from codes (B, dim)."""
        return self.decoder(z)
