"""A bottleneck behind a frozen encoder."""

from __future__ import annotations

import torch
from torch import nn


class Bottleneck(nn.Module):
    """z + up(GELU(down(LayerNorm(z)))), of embeddings (B, dim); the identity until it is trained."""

    def __init__(self, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.down = nn.LayerNorm(dim), nn.Linear(dim, width)
        self.act, self.drop, self.up = nn.GELU(), nn.Dropout(dropout), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Adapted embeddings (B, dim)."""
        return z + self.up(self.drop(self.act(self.down(self.norm(z)))))
