"""Ways to adapt an encoder; a new one is a class here and a line in `ADAPTERS`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sealst._errors import CheckpointError, DataError
from sealst._given.schema import Blocks, Name, Positive, Rank, Share, Width, check_fields
from sealst._validate import listed, resolve_kind
from sealst.models._encoders.blocks import block_layers, parameter_depths
from sealst.models._encoders.encoder import Encoder
from sealst.models._low_rank import LowRankModel


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


#: what makes a regular expression slow where it fits nothing
_REPEATED_GROUP, _REPEATS, _MOST_REPEATS = re.compile(r"\)[*+{]"), re.compile(r"(?<!\\)[*+{]"), 6
#: linear layers of the attention pooler
_POOLER_TARGETS = ("q", "k", "v", "proj")


class Adapter(ABC):
    """What of an encoder is trained, and how. Subclasses are frozen dataclasses."""

    #: its name in `sealst.tl.finetune(adapter=...)` and in a model's ``config.json``
    kind: ClassVar[str]
    #: fields that matter in training alone
    _training_only: ClassVar[frozenset[str]] = frozenset({"dropout", "layer_decay", "lr_scale"})

    @abstractmethod
    def attach(self, encoder: Encoder) -> None:
        """Freeze the encoder, add what is trained, and mark it, in place."""

    def attach_stored(self, encoder: Encoder) -> None:
        """The same for what is filled from a file next."""
        self.attach(encoder)

    def n_trunk(self, n_blocks: int) -> int:
        """How many of the first blocks never change: all but the last ones, where it acts on a number of these."""
        return n_blocks - getattr(self, "n_blocks", 0)

    @abstractmethod
    def describe(self, n_blocks: int) -> str:
        """A few words for people."""

    def rates(self, encoder: Encoder) -> dict[str, float]:
        """Learning rates of the encoder's parameters relative to that of the run, where they are not 1."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What changes an embedding beside the trained weights themselves."""
        return {k: v for k, v in self.to_dict().items() if k not in self._training_only}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class LoraParams(Adapter):
    """Low-rank adaptation (Hu et al. 2021) of the layers in the last blocks.

    In vision transformers these are the attention's and the MLP's linear layers; in convolutional networks the
    convolutions over all channels (depthwise ones are left out).
    """

    kind: ClassVar[str] = "lora"
    #: rank
    r: Rank = 8
    #: scaling; the update is multiplied by alpha / r
    alpha: Positive = 8.0
    #: dropout on the adapter's input
    dropout: Share = 0.15
    #: how many of the last blocks are adapted
    n_blocks: Blocks = 1
    #: whether the attention pooler is adapted too, where the encoder has one (CONCH, CONCH v1.5)
    pooler: bool = False
    #: regular expression for the end of the names of adapted layers, e.g. ``"attn\\.qkv|attn\\.proj"``; None takes all
    targets: Name | None = None
    #: whether to multiply by alpha / √r instead (rank-stabilised; Kalajdzievski 2023)
    rslora: bool = False
    #: whether to learn the weights' magnitude and direction apart (DoRA; Liu et al. 2024)
    dora: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "adapter")
        if self.targets is not None:
            # A model's folder states it, too: what could be tried in endless ways is not tried.
            if _REPEATED_GROUP.search(self.targets) or len(_REPEATS.findall(self.targets)) > _MOST_REPEATS:
                raise DataError(
                    f"`adapter.targets` {self.targets!r} repeats a group, or has more than {_MOST_REPEATS} of '*', '+' "
                    r"and '{'; pass a simpler one, such as 'attn\..*'."
                )
            try:
                re.compile(self.targets)
            except re.error as error:
                raise DataError(
                    f"`adapter.targets` {self.targets!r} is not a regular expression: {error}; pass for example "
                    r"'attn\.qkv'."
                ) from error

    def attach(self, encoder: Encoder) -> None:
        """Put peft's low-rank layers into the last blocks."""
        # It takes seconds, and nothing but training needs it.
        from peft import LoraConfig, get_peft_model

        config = self._config(self.layers(encoder))
        encoder.requires_grad_(False)
        encoder.backbone = get_peft_model(encoder.vit, LoraConfig(**config))

    def attach_stored(self, encoder: Encoder) -> None:
        """Put low-rank layers that do the same into the last blocks."""
        names = self.layers(encoder)
        encoder.requires_grad_(False)
        encoder.backbone = LowRankModel(encoder.vit, names, self._config(names))

    def _config(self, names: Sequence[str]) -> dict[str, Any]:
        """What peft is told."""
        return {
            "r": self.r,
            "lora_alpha": int(self.alpha) if float(self.alpha).is_integer() else self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            # Names are written out: peft would match the end of bare ones, patch_embed.proj among them.
            "target_modules": "|".join(map(re.escape, names)),
        }

    def layers(self, encoder: Encoder) -> list[str]:
        """Names of the adapted layers."""
        offered = _last_blocks(encoder, self.n_blocks)
        names = [n for n in offered if self.targets is None or re.search(rf"(^|\.)({self.targets})$", n)]
        if not names:
            raise DataError(
                f"`adapter.targets` {self.targets!r} matches no layer of the last {self.n_blocks} blocks of "
                f"{encoder.spec.key!r}; they are {listed(offered, 8)}."
            )
        if not self.pooler:
            return names
        if not encoder.spec.pool.startswith("attn"):
            raise DataError(
                f"`adapter.pooler` is True, but embeddings of {encoder.spec.key!r} are pooled by "
                f"{encoder.spec.pool!r}, not by attention. Leave it out, or build the encoder with `pool='attn'` where "
                "it has an attention pooler."
            )
        return [*names, *(f"attn_pool.{name}" for name in _POOLER_TARGETS)]

    def describe(self, n_blocks: int) -> str:
        """Rank and place."""
        name = "DoRA" if self.dora else "rsLoRA" if self.rslora else "LoRA"
        pooler = " and the attention pooler" if self.pooler else ""
        return f"{name} r={self.r}, alpha={self.alpha:g}, on the last {self.n_blocks} of {n_blocks} blocks{pooler}"


@dataclass(frozen=True)
class _WeightParams(Adapter):
    """Finetuning of pretrained weights, which learn more slowly than new ones, and the more so the deeper they lie."""

    #: factor on the learning rate for each block further down (Clark et al. 2020)
    layer_decay: Positive = 0.7
    #: learning rate of pretrained weights relative to that of the run, which suits new ones
    lr_scale: Positive = 0.02

    def __post_init__(self) -> None:
        check_fields(self, "adapter")

    def rates(self, encoder: Encoder) -> dict[str, float]:
        """Lower for pretrained weights, the lower the deeper."""
        depths = parameter_depths(encoder.vit)
        return {f"backbone.{name}": self.lr_scale * self.layer_decay ** depths[name] for name in encoder.originals}


@dataclass(frozen=True)
class BlocksParams(_WeightParams):
    """Finetuning of the last blocks' own weights, and of all that follows them."""

    kind: ClassVar[str] = "blocks"
    #: how many of the last blocks are trained
    n_blocks: Blocks = 1

    def attach(self, encoder: Encoder) -> None:
        """Keep a copy of the weights that will change, and let them."""
        _last_blocks(encoder, self.n_blocks)
        depths = parameter_depths(encoder.vit)
        _train_weights(encoder, {name for name, depth in depths.items() if depth < self.n_blocks})

    def describe(self, n_blocks: int) -> str:
        """Place and decay."""
        return f"weights of the last {self.n_blocks} of {n_blocks} blocks, layer decay {self.layer_decay:g}"


@dataclass(frozen=True)
class FullParams(_WeightParams):
    """Finetuning of all weights; batch normalisation keeps its statistics."""

    kind: ClassVar[str] = "full"

    def attach(self, encoder: Encoder) -> None:
        """Keep a copy of all weights, and let them change."""
        _train_weights(encoder, {name for name, _ in encoder.vit.named_parameters()})

    def n_trunk(self, n_blocks: int) -> int:
        """None stays."""
        return 0

    def describe(self, n_blocks: int) -> str:
        """Decay."""
        return f"all weights, layer decay {self.layer_decay:g}"


@dataclass(frozen=True)
class BottleneckParams(Adapter):
    """A small residual network behind the frozen encoder (after Houlsby et al. 2019); starts as the identity."""

    kind: ClassVar[str] = "bottleneck"
    #: hidden width
    width: Width = 256
    #: dropout on the hidden values
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "adapter")

    def attach(self, encoder: Encoder) -> None:
        """Put the network behind the pooling."""
        encoder.requires_grad_(False)
        encoder.bottleneck = Bottleneck(encoder.spec.dim, self.width, self.dropout)

    def describe(self, n_blocks: int) -> str:
        """Width."""
        return f"bottleneck of {self.width} behind the frozen encoder"


@dataclass(frozen=True)
class FrozenParams(Adapter):
    """No adaptation: only the gene side and the expression head are trained."""

    kind: ClassVar[str] = "none"

    def attach(self, encoder: Encoder) -> None:
        """Freeze."""
        encoder.requires_grad_(False)

    def describe(self, n_blocks: int) -> str:
        """Say so."""
        return "none, the encoder stays as it is"


#: adapters by the name that users give
ADAPTERS: Mapping[str, type[Adapter]] = MappingProxyType(
    {c.kind: c for c in (LoraParams, BlocksParams, FullParams, BottleneckParams, FrozenParams)}
)


def resolve_adapter(given: Adapter | Mapping[str, Any] | str | None) -> Adapter:
    """Adapter from its name, its fields (``"kind"`` is its name, LoRA by default), or itself."""
    return resolve_kind(ADAPTERS, given, name="adapter", base=Adapter, default=LoraParams.kind)


def counts_blocks(adapter: Adapter) -> bool:
    """Whether it acts on a number of last blocks."""
    return any(f.name == "n_blocks" for f in fields(adapter))  # type: ignore[arg-type]


def add_adapter(encoder: Encoder, adapter: Adapter, *, stored: bool = False) -> Encoder:
    """Freeze an encoder and add what its adapter trains, in place; the encoder knows afterwards what that is.

    What is `stored` is filled from a file next: libraries that only training needs are left alone.
    """
    (adapter.attach_stored if stored else adapter.attach)(encoder)
    encoder.adapted = tuple(name for name, p in encoder.named_parameters() if p.requires_grad)
    return encoder


def _last_blocks(encoder: Encoder, n: int) -> list[str]:
    blocks = block_layers(encoder.vit)
    if n > len(blocks):
        raise DataError(
            f"`adapter.n_blocks` is {n}, but the encoder {encoder.spec.key!r} has only {len(blocks)} blocks."
        )
    return [name for block in blocks[-n:] for name in block]


def _train_weights(encoder: Encoder, names: set[str]) -> None:
    encoder.requires_grad_(False)
    for name, parameter in encoder.vit.named_parameters():
        if name in names:
            encoder.originals[name] = parameter.detach().clone().cpu()
            parameter.requires_grad_(True)


ADAPTER_FILE = "adapter_model.safetensors"


def save_adapter(encoder: Encoder, folder: Path) -> None:
    """Write what the adapter trains; nothing where it trains nothing."""
    if not encoder.adapted:
        return
    if isinstance(encoder.backbone, LowRankModel):
        folder.mkdir(exist_ok=True)
        encoder.backbone.for_peft().save_pretrained(str(folder))
        tensors = encoder.backbone.stored()
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / ADAPTER_FILE, {"format": "pt"})
        return
    if hasattr(encoder.backbone, "peft_config"):
        encoder.backbone.save_pretrained(folder, safe_serialization=True)
        # peft adds an empty card; the model has one of its own.
        (folder / "README.md").unlink(missing_ok=True)
        return
    folder.mkdir()
    save_file({k: v.cpu().contiguous() for k, v in encoder.adapted_state().items()}, folder / ADAPTER_FILE)


def load_adapter(encoder: Encoder, folder: Path) -> None:
    """Fill an encoder that has the adapter already, as `stored`, strictly, in place."""
    if not encoder.adapted:
        return
    if not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{str(folder / ADAPTER_FILE)!r} is missing; the model is not complete.")
    own: dict[str, Any] = encoder.adapted_state()
    if isinstance(encoder.backbone, LowRankModel):
        own = encoder.backbone.stored()
    stored = load_file(folder / ADAPTER_FILE)
    check_tensors(ADAPTER_FILE, own, stored)
    for name, tensor in stored.items():
        own[name].copy_(tensor)


def tensor_shapes(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file without their values."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return {name: torch.empty(one.get_shape(), device="meta") for name, one in slices.items()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"Weights in {str(path)!r} cannot be read: {error}") from error


def check_tensors(where: str, own: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Raise unless names and shapes are the same."""
    if differing := sorted(set(own) ^ set(found)):
        raise CheckpointError(f"{where} has missing or unexpected tensors: {listed(differing, 4)}.")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}."
            )
