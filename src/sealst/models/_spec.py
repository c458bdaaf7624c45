"""Facts about an encoder, in one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sealst._errors import CheckpointError

#: how patch tokens become one vector
POOLS = ("cls", "mean", "cls+mean")


@dataclass(frozen=True)
class EncoderSpec:
    """What is needed to rebuild an encoder and to feed it correctly."""

    #: name given by the user: a timm model, or ``local-dir:<folder>``
    key: str
    #: timm architecture
    arch: str
    #: whether weights were loaded; False means random weights from `seed`
    pretrained: bool
    #: ``"cls"``, ``"mean"`` (of patch tokens) or ``"cls+mean"`` (concatenated)
    pool: str
    #: length of the embedding
    dim: int
    #: number of transformer blocks
    n_blocks: int
    #: class and register tokens before the patch tokens
    n_prefix: int
    #: side of a patch in pixels; crops must be a multiple of it
    patch_px: int
    #: channel means and standard deviations of the input, for values in [0, 1]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    #: licence as the weights' own configuration states it
    licence: str = "unknown"
    #: seed of random weights
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """Inverse of `to_dict`; unknown or missing fields raise."""
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise CheckpointError(
                f"Encoder record has fields {sorted(set(values) ^ known)} that are missing or unknown; it was written "
                "by another version of sealst."
            )
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
