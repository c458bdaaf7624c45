"""A gene encoder in which genes are tokens that a few latent vectors attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sealst._errors import DataError
from sealst._validate import check_positive
from sealst.models._genes.base import GeneCode, GeneEncoder, GeneEncoderParams, decoder


@dataclass(frozen=True)
class GeneTransformerParams(GeneEncoderParams):
    """Transformer whose few latent vectors attend to genes as tokens (after Perceiver; Jaegle et al. 2021).

    The token of a gene is an embedding of the gene plus its value times a second one. Genes whose standardised value is
    exactly 0 are left out: training hides them there, or a section does not measure them.
    """

    kind: ClassVar[str] = "transformer"
    _hidden_facts: ClassVar[tuple[str, ...]] = ("n_heads",)
    #: length of tokens and latents
    width: int = 128
    #: latent vectors
    n_latents: int = 8
    #: times that latents attend to genes, and then to each other
    n_layers: int = 2
    n_heads: int = 4
    #: hidden widths of the decoder
    hidden: tuple[int, ...] = (512, 1024)
    #: dropout in the decoder
    dropout: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "n_latents", "n_layers", "n_heads"):
            check_positive(f"gene_encoder.{name}", getattr(self, name))
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
