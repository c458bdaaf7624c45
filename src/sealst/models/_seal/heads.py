"""Projections of image embeddings and gene codes into the space in which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from sealst._given.schema import Width, check_fields, one_of
from sealst._validate import resolve_params


@dataclass(frozen=True)
class HeadParams:
    """The expression head: embedding → hidden → genes."""

    #: hidden width
    hidden: Width = 512
    #: whether embeddings pass a LayerNorm first
    norm: bool = True
    #: whether the output is kept from being negative, for targets that are not standardised
    relu: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "head")


def image_head(dim: int, n_genes: int, params: HeadParams) -> nn.Sequential:
    """Network from embeddings (B, dim) to expression (B, genes)."""
    layers = [nn.LayerNorm(dim)] if params.norm else []
    body = [nn.Linear(dim, params.hidden), nn.ReLU(), nn.Linear(params.hidden, n_genes)]
    return nn.Sequential(*layers, *body, *([nn.ReLU()] if params.relu else []))


@dataclass(frozen=True)
class ProjectionParams:
    """Heads that project image embedding and gene code before they are compared (after SimCLR; Chen et al. 2020).

    Embeddings themselves stay as they are, so the encoder is still a replacement of the one it came from.
    """

    #: ``"none"`` compares them as they are, ``"linear"`` projects linearly, ``"mlp"`` through one hidden layer
    kind: Annotated[str, one_of("none", "linear", "mlp")] = "none"
    #: length of what is compared; None is that of an embedding
    dim: Width | None = None

    def __post_init__(self) -> None:
        check_fields(self, "projection")

    def size(self, dim: int) -> int:
        """Length of what is compared, for embeddings of length `dim`."""
        return dim if self.kind == "none" or self.dim is None else self.dim

    def build(self, dim: int) -> nn.Module:
        """Network from embeddings (B, dim) to (B, size); the identity without projection."""
        size = self.size(dim)
        if self.kind == "none":
            return nn.Identity()
        first = nn.Linear(dim, size)
        return first if self.kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(size, size))


def resolve_projection(given: ProjectionParams | Mapping[str, Any] | str | None) -> ProjectionParams:
    """Parameters from the name of a kind, from their fields, or as they are."""
    return resolve_params(ProjectionParams, {"kind": given} if isinstance(given, str) else given, name="projection")
