"""Facts about an encoder, in one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from sealst._errors import CheckpointError, WeightsError
from sealst._given.schema import (
    Args,
    Channels,
    Deviations,
    FileName,
    MaybeBlocks,
    Name,
    Names,
    Number,
    Positive,
    Seed,
    Text,
    Width,
    check_fields,
)
from sealst._html import text_as_html

#: how tokens become one vector; ``"attn"`` and ``"attn-proj"`` only where an encoder has an attention pooler
POOLS = ("cls", "mean", "cls+mean", "attn", "attn-proj")

#: arguments by which timm fetches or opens files
FETCHING = ("pretrained", "checkpoint", "cache_dir", "weights")
#: facts that change what a model computes from a crop; all others may be corrected without making it another model
FEEDING = ("arch", "pool", "dim", "n_blocks", "n_prefix", "patch_px", "mean", "std")

#: those of them, and of the architecture's details, that change the tokens of the first blocks
TRUNK_FEEDING = ("arch", "n_prefix", "patch_px", "mean", "std", "model_args")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What is needed to rebuild an encoder and to feed it correctly, and what its licence says."""

    #: name given by the user: a key of `sealst.models.list_encoders`, a timm model, or ``local-dir:<folder>``
    key: Name
    #: timm architecture
    arch: Name
    #: ``"cls"``, ``"mean"`` (of patch tokens), ``"cls+mean"`` (concatenated), ``"attn"`` (attention pooler) or
    #: ``"attn-proj"`` (the pooler's vector in the space shared with text)
    pool: Name
    #: length of the embedding
    dim: Width
    #: number of blocks: those of a transformer, or timm's groups of layers in a convolutional network
    n_blocks: MaybeBlocks
    #: class and register tokens before the patch tokens
    n_prefix: Number
    #: side of a patch in pixels; crops must be a multiple of it
    patch_px: Width
    #: channel means and standard deviations of the input, for values in [0, 1]
    mean: Channels
    std: Deviations
    #: ``"vit"``, or ``"cnn"`` for encoders without tokens
    family: Name = "vit"
    #: constructor arguments beyond the architecture's own, all of them JSON values
    model_args: Args = field(default_factory=dict, hash=False)
    #: arguments of the attention pooler; empty without one
    pooler_args: Args = field(default_factory=dict, hash=False)
    #: length of a token
    width: Number = 0
    #: poolings that published users of the encoder take, the default first
    pools: Names = ()
    #: repository on the model hub and file in it; empty where timm itself knows
    hf_id: Text = ""
    filename: FileName | Literal[""] = ""
    #: layout of the published file, a key of `CONVERTERS`
    converter: Name = "timm"
    #: key of the encoder whose weights these are, pooled otherwise
    variant_of: Text = ""
    #: side of the crops it was published with, and their scale in µm per pixel (None where unknown)
    input_px: Width = 224
    native_mpp: Positive | None = None
    #: how its published users resize
    interpolation: Name = "bicubic"
    #: precision in which its published users run it, kept on CUDA devices; ``"auto"`` where none is published: bf16
    #: where the device is fast at it, else float32
    precision: Name = "auto"
    #: parameters that the embedding needs
    n_params: Number = 0
    #: licence as the weights' own page or configuration states it
    licence: Text = "unknown"
    #: whether access must be granted; whether commercial use and derivatives (merged weights) are allowed, None where
    #: the licence has to be read for it
    gated: bool = False
    commercial: bool | None = None
    derivatives: bool | None = None
    citation: Text = ""
    #: whether weights were loaded; False means random weights from `seed`
    pretrained: bool = True
    #: seed of random weights
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "encoder", kind=WeightsError)
        if not self.width:
            object.__setattr__(self, "width", self.dim // len(self.pool.split("+")))
        if not self.pools:
            object.__setattr__(self, "pools", (self.pool,))

    def dim_of(self, pool: str) -> int:
        """Length of the embedding under another pooling."""
        return sum(int(self.pooler_args["dim"]) if p.startswith("attn") else self.width for p in pool.split("+"))

    def feeding(self) -> dict[str, Any]:
        """Facts that change what a model computes from a crop, as plain types."""
        values = self.to_dict()
        return {name: values[name] for name in FEEDING}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """Inverse of `to_dict`; fields that older versions did not write take defaults, unknown ones raise."""
        known = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if wrong := sorted((set(values) - known) | (needed - set(values))):
            raise CheckpointError(
                f"Encoder record has fields {wrong} that are missing or unknown; it was written by another version of "
                "sealst."
            )
        # A record may come from anywhere, and timm fetches what these name.
        args = values.get("model_args")
        named = map(str, args if isinstance(args, Mapping) else ())
        unsafe = [k for k in named if k.startswith(FETCHING)] + [":"] * (":" in str(values["arch"]))
        if unsafe:
            raise CheckpointError(
                f"Encoder record names weights to fetch ({unsafe[0]!r} in its architecture), which is never done."
            )
        return cls(**values)

    def __repr__(self) -> str:
        size = f"{self.n_params / 1e6:.1f} M parameters" if self.n_params else "size unknown"
        shape = f"{self.n_blocks} blocks, {self.patch_px} px patches" if self.family == "vit" else "convolutional"
        scale = "" if self.native_mpp is None else f" at {self.native_mpp:g} µm per pixel"
        use = [text for flag, text in ((self.gated, "gated"), (self.commercial is False, "non-commercial")) if flag]
        weights = self.hf_id or self.filename or "timm" if self.pretrained else f"random, seed {self.seed}"
        return (
            f"EncoderSpec {self.key!r}: {self.pool} → {self.dim}\n"
            f"  arch:    {self.arch} ({shape}, {size})\n"
            f"  input:   {self.input_px} px{scale}, mean {self.mean}, std {self.std}\n"
            f"  weights: {weights}\n"
            f"  licence: {', '.join([self.licence, *use])}"
        )

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))
