"""Encoders of gene expression; a new one is a class of parameters, its network and a line in `GENE_ENCODERS`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from sealst._errors import DataError
from sealst._given.schema import Blocks, MaybeBlocks, Share, Width, Widths, check_fields
from sealst._validate import resolve_kind


class GeneCode(NamedTuple):
    """Code of a batch of expression profiles; of encoders that are not variational, `z` alone."""

    #: code, (B, dim); of a variational encoder after the flows
    z: torch.Tensor
    #: posterior mean and log variance before the flows, (B, dim)
    mu: torch.Tensor | None = None
    logvar: torch.Tensor | None = None
    #: summed log |det| of the flows, (B,)
    log_det: torch.Tensor | None = None


class GeneEncoder(nn.Module, ABC):
    """Autoencoder of expression profiles, standardised per gene of the panel; `decoder` is its way back."""

    decoder: nn.Module

    @abstractmethod
    def forward(self, x: torch.Tensor, *, sample: bool = False) -> GeneCode:
        """Encode profiles (B, genes); deterministic in evaluation mode, unless a variational one is to `sample`."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Standardised expression (B, genes) from codes (B, dim)."""
        return self.decoder(z)


@dataclass(frozen=True)
class GeneEncoderParams(ABC):
    """Which gene encoder, and its sizes. Subclasses are frozen dataclasses."""

    #: its name in `sealst.tl.finetune(gene_encoder=...)` and in a model's ``config.json``
    kind: ClassVar[str]
    #: whether codes can be sampled, which the KL term needs
    variational: ClassVar[bool] = False
    #: fields that change a code though no weight shows them
    _hidden_facts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self, "gene_encoder")

    @abstractmethod
    def build(self, n_genes: int, dim: int) -> GeneEncoder:
        """Network from profiles of `n_genes` to codes of `dim`, and back."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""

    @property
    def mask_share(self) -> float:
        """Share of genes to hide in training, where the user does not say."""
        return 0.0

    def facts(self) -> dict[str, Any]:
        """What changes a code beside the weights themselves."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self._hidden_facts}}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"kind": self.kind, **values}


def layers(widths: Sequence[int], dropout: float, norm: bool) -> list[nn.Module]:
    """Linear layers between widths, each followed by batch normalisation (with `norm`), ReLU and dropout."""
    out: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        out.append(nn.Linear(a, b))
        if norm:
            out.append(nn.BatchNorm1d(b))
        out.append(nn.ReLU())
        if dropout:
            out.append(nn.Dropout(dropout))
    return out


def decoder(widths: Sequence[int], n_genes: int, dropout: float) -> nn.Sequential:
    """Network from codes (B, widths[0]) to standardised expression (B, genes)."""
    return nn.Sequential(*layers(widths, dropout, norm=False), nn.Linear(widths[-1], n_genes))


@dataclass(frozen=True)
class GeneMLPParams(GeneEncoderParams):
    """Plain autoencoder: no sampling, no flows."""

    kind: ClassVar[str] = "mlp"
    #: hidden widths of the encoder; the decoder mirrors them
    hidden: Widths = (1024, 512)
    #: dropout in the decoder
    dropout: Share = 0.4

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
    mask: Share = 0.3

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


@dataclass(frozen=True)
class GeneVAEParams(GeneEncoderParams):
    """Variational autoencoder with planar flows; defaults as in SEAL."""

    kind: ClassVar[str] = "vae"
    variational: ClassVar[bool] = True
    _hidden_facts: ClassVar[tuple[str, ...]] = ("invertible",)
    #: hidden widths of the encoder; the decoder mirrors them
    hidden: Widths = (1024, 512)
    #: planar flows after the posterior
    n_flows: MaybeBlocks = 3
    #: dropout in the decoder
    dropout: Share = 0.4
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


@dataclass(frozen=True)
class GeneTransformerParams(GeneEncoderParams):
    """Transformer whose few latent vectors attend to genes as tokens (after Perceiver; Jaegle et al. 2021).

    The token of a gene is an embedding of the gene plus its value times a second one. Genes whose standardised value is
    exactly 0 are left out: training hides them there, or a section does not measure them.
    """

    kind: ClassVar[str] = "transformer"
    _hidden_facts: ClassVar[tuple[str, ...]] = ("n_heads",)
    #: length of tokens and latents
    width: Width = 128
    #: latent vectors
    n_latents: Width = 8
    #: times that latents attend to genes, and then to each other
    n_layers: Blocks = 2
    n_heads: Blocks = 4
    #: hidden widths of the decoder
    hidden: Widths = (512, 1024)
    #: dropout in the decoder
    dropout: Share = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.n_heads:
            raise DataError(
                f"`gene_encoder.width` is {self.width}, not a multiple of `gene_encoder.n_heads`, {self.n_heads}; pass "
                "a width that is."
            )

    def build(self, n_genes: int, dim: int) -> GeneTransformer:
        """The network."""
        return GeneTransformer(n_genes, dim, self)

    def describe(self) -> str:
        """Sizes."""
        return f"transformer ({self.n_layers} layers, {self.n_latents} latents of {self.width})"


class GeneTransformer(GeneEncoder):
    """Latents attend to genes, then to each other, layer by layer; the code is a projection of all of them."""

    def __init__(self, n_genes: int, dim: int, params: GeneTransformerParams) -> None:
        super().__init__()
        width, heads = params.width, params.n_heads
        self.names = nn.Parameter(torch.randn(n_genes, width) * 0.02)
        self.values = nn.Parameter(torch.randn(n_genes, width) * width**-0.5)
        self.latents = nn.Parameter(torch.randn(params.n_latents, width) * width**-0.5)
        self.readers = nn.ModuleList(GeneAttention(width, heads) for _ in range(params.n_layers))
        self.mixers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(params.n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.to_code = nn.Linear(params.n_latents * width, dim)
        self.decoder = decoder([dim, *params.hidden], n_genes, params.dropout)

    def forward(self, x: torch.Tensor, *, sample: bool = False) -> GeneCode:
        """Encode profiles (B, genes); there is nothing to sample."""
        h = self.latents.expand(len(x), -1, -1)
        for reader, mixer in zip(self.readers, self.mixers, strict=True):
            h = mixer(h + reader(h, x, self.names, self.values))
        return GeneCode(self.to_code(self.norm(h).flatten(1)))


class GeneAttention(nn.Module):
    """Attention of latents to the tokens ``names + x * values``, which are never laid out.

    Keys and values are linear in a token, so scores and sums over genes split into a part without x and a part that x
    scales: memory grows with genes times latents, not with genes times width.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        # A bias of the key would add the same to all scores.
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        #: score of attending to nothing, so that a profile without any known gene has a code
        self.nothing = nn.Parameter(torch.zeros(n_heads))

    def forward(self, h: torch.Tensor, x: torch.Tensor, names: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What latents (B, latents, width) read from profiles (B, genes) and two embeddings (genes, width)."""
        q = self._heads(self.query(self.norm(h)))
        # (B, heads, latents, genes)
        x = x[:, None, None]
        scores = q @ self._heads(self.key(names)).mT + x * (q @ self._heads(self.key(values)).mT)
        scores = (scores * q.shape[-1] ** -0.5).masked_fill(x == 0, -torch.inf)
        nothing = self.nothing[:, None, None].expand(*scores.shape[:-1], 1).to(scores.dtype)
        share = torch.cat([scores, nothing], dim=-1).softmax(dim=-1)[..., :-1]
        read = share @ self._heads(self.value(names)) + (share * x) @ self._heads(self.value(values))
        return self.out(read.transpose(1, 2).flatten(2))

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)


#: gene encoders by the name that users give
GENE_ENCODERS: Mapping[str, type[GeneEncoderParams]] = MappingProxyType(
    {c.kind: c for c in (GeneVAEParams, GeneMLPParams, GeneMAEParams, GeneTransformerParams)}
)


def resolve_gene_encoder(given: GeneEncoderParams | Mapping[str, Any] | str | None) -> GeneEncoderParams:
    """Parameters from the name of a kind, from their fields (``"kind"`` by default ``"vae"``), or as they are."""
    return resolve_kind(GENE_ENCODERS, given, name="gene_encoder", base=GeneEncoderParams, default=GeneVAEParams.kind)
