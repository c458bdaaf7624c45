"""Encoders of gene expression; a new one is a class of parameters and a line in `GENE_ENCODERS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sealst._validate import check_choice, resolve_params
from sealst.models._gene_base import GeneEncoderParams
from sealst.models._gene_mlp import GeneMAEParams, GeneMLPParams
from sealst.models._gene_transformer import GeneTransformerParams
from sealst.models._gene_vae import GeneVAEParams

#: gene encoders by the name that users give
GENE_ENCODERS: Mapping[str, type[GeneEncoderParams]] = MappingProxyType(
    {c.kind: c for c in (GeneVAEParams, GeneMLPParams, GeneMAEParams, GeneTransformerParams)}
)


def resolve_gene_encoder(given: GeneEncoderParams | Mapping[str, Any] | str | None) -> GeneEncoderParams:
    """Parameters from the name of a kind, from their fields (``"kind"`` by default ``"vae"``), or as they are."""
    if isinstance(given, GeneEncoderParams):
        return given
    if given is not None and not isinstance(given, (str, Mapping)):
        raise TypeError(
            f"`gene_encoder` must be a name, a mapping or a gene encoder's parameters, found {type(given).__name__}."
        )
    values: dict[str, Any] = {"kind": given} if isinstance(given, str) else dict(given or {})
    kind = values.pop("kind", GeneVAEParams.kind)
    check_choice("gene_encoder", kind, sorted(GENE_ENCODERS))
    made: GeneEncoderParams = resolve_params(GENE_ENCODERS[kind], values, name="gene_encoder")
    return made
