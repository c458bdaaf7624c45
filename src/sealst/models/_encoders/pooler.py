"""Attention pooling as in CONCH."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class AttentionPooler(nn.Module):
    """One learned query attends to all tokens (Lu et al. 2024), in plain linear layers that LoRA reaches.

    Parameters
    ----------
    width
        Length of a token.
    dim
        Length of the query and of the embedding.
    heads
        Attention heads.
    bias
        Whether the linear layers have a bias: CONCH's do, CONCH v1.5's do not.
    projected
        Whether there is a projection to the space shared with text.
    """

    to_text: torch.Tensor

    def __init__(self, width: int, dim: int, *, heads: int, bias: bool, projected: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q, self.ln_k, self.ln = nn.LayerNorm(dim), nn.LayerNorm(width), nn.LayerNorm(dim)
        self.q, self.proj = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.k, self.v = nn.Linear(width, dim, bias=bias), nn.Linear(width, dim, bias=bias)
        if projected:
            self.register_buffer("to_text", torch.randn(dim, dim) * dim**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) of tokens (B, tokens, width), class token included."""
        tokens = self.ln_k(tokens)
        query = self.q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, self.k(tokens), self.v(tokens)))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.ln(self.proj(pooled))[:, 0]

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) in the space shared with text."""
        return pooled @ self.to_text
