"""Encoders of gene expression; a new one is a class of parameters and a line in `GENE_ENCODERS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sealst._validate import resolve_kind
from sealst.models._genes.base import GeneEncoderParams, GeneMAEParams, GeneMLPParams
from sealst.models._genes.transformer import GeneTransformerParams
from sealst.models._genes.vae import GeneVAEParams

#: gene encoders by the name that users give
GENE_ENCODERS: Mapping[str, type[GeneEncoderParams]] = MappingProxyType(
    {c.kind: c for c in (GeneVAEParams, GeneMLPParams, GeneMAEParams, GeneTransformerParams)}
)


def resolve_gene_encoder(given: GeneEncoderParams | Mapping[str, Any] | str | None) -> GeneEncoderParams:
    """Parameters from the name of a kind, from their fields (``"kind"`` by default ``"vae"``), or as they are."""
    return resolve_kind(GENE_ENCODERS, given, name="gene_encoder", base=GeneEncoderParams, default=GeneVAEParams.kind)
