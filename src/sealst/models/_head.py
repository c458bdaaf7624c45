"""The expression head: image embedding → expression."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sealst._validate import check_positive


@dataclass(frozen=True)
class HeadParams:
    """The expression head: embedding → hidden → genes."""

    #: hidden width
    hidden: int = 512
    #: whether embeddings pass a LayerNorm first
    norm: bool = True
    #: whether the output is kept from being negative, for targets that are not standardised
    relu: bool = False

    def __post_init__(self) -> None:
        check_positive("head.hidden", self.hidden)


def image_head(dim: int, n_genes: int, params: HeadParams) -> nn.Sequential:
    """Network from embeddings (B, dim) to expression (B, genes)."""
    layers = [nn.LayerNorm(dim)] if params.norm else []
    body = [nn.Linear(dim, params.hidden), nn.ReLU(), nn.Linear(params.hidden, n_genes)]
    return nn.Sequential(*layers, *body, *([nn.ReLU()] if params.relu else []))
