"""Encoders by key: the published records and their pooling variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from sealst.models._encoders.records import RECORDS
from sealst.models._encoders.spec import EncoderSpec

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = [
    *("dim", "input_px", "native_mpp", "pool", "pools", "patch_px", "n_blocks", "precision", "licence", "gated"),
    *("commercial", "derivatives", "n_params", "variant_of", "hf_id", "citation"),
]


def _registry() -> Mapping[str, EncoderSpec]:
    found = {}
    for record in RECORDS:
        found[record.key] = record
        # The same weights give vectors of another meaning under another pooling, so these have names of their own.
        for pool in record.pools[1:]:
            key = f"{record.key}-{pool}"
            found[key] = replace(record, key=key, pool=pool, dim=record.dim_of(pool), variant_of=record.key)
    return MappingProxyType(found)


#: every key that `build_encoder` takes beside timm's names
REGISTRY = _registry()


def list_encoders() -> pd.DataFrame:
    """Published pathology encoders that `build_encoder` knows by key.

    Any timm vision transformer and any local timm folder work too; they are not listed.

    Returns
    -------
    Table, one row per key (the index): dim (length of the embedding), input_px, native_mpp (µm per pixel), pool (the
    key's own), pools (others that are published), patch_px, n_blocks, precision, licence, gated, commercial,
    derivatives (whether changed weights may be shared; None where the licence has to be read), n_params, variant_of
    (the key whose weights these are, pooled otherwise), hf_id, citation.

    Examples
    --------
    >>> import sealst as sl
    >>> int(sl.models.list_encoders().loc["conch", "dim"])
    512
    """
    import pandas as pd

    rows = {
        key: {c: getattr(spec, c) for c in _COLUMNS} | {"pools": ", ".join(spec.pools)}
        for key, spec in REGISTRY.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("key")
