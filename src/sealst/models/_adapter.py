"""LoRA adapters on the last blocks of an encoder, through peft."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, get_peft_model

from sealst._errors import DataError
from sealst._validate import check_fraction, check_positive
from sealst.models._encoder import Encoder

#: linear layers of a timm block that get an adapter; anchored to a block, so that patch_embed.proj never matches
_TARGETS = r"(attn\.(qkv|proj)|mlp\.fc[12])"


@dataclass(frozen=True)
class LoraParams:
    """Low-rank adaptation (Hu et al. 2021) of attention and MLP layers."""

    #: rank
    r: int = 8
    #: scaling; the update is multiplied by alpha / r
    alpha: float = 8.0
    #: dropout on the adapter's input
    dropout: float = 0.15
    #: how many of the last blocks are adapted
    n_blocks: int = 1

    def __post_init__(self) -> None:
        check_positive("lora.r", self.r)
        check_positive("lora.alpha", self.alpha)
        check_fraction("lora.dropout", self.dropout)
        check_positive("lora.n_blocks", self.n_blocks)


def target_pattern(total: int, last: int) -> str:
    """Regular expression for the adapted layers of the last blocks."""
    if last > total:
        raise DataError(f"`n_blocks` is {last}, but the encoder has only {total} blocks.")
    return rf"blocks\.({'|'.join(str(i) for i in range(total - last, total))})\.{_TARGETS}"


def add_lora(encoder: Encoder, params: LoraParams) -> Encoder:
    """Freeze an encoder and put trainable LoRA layers into its last blocks, in place."""
    config = LoraConfig(
        r=params.r,
        lora_alpha=int(params.alpha) if float(params.alpha).is_integer() else params.alpha,  # type: ignore[arg-type]
        lora_dropout=params.dropout,
        target_modules=target_pattern(encoder.spec.n_blocks, params.n_blocks),
    )
    encoder.backbone = get_peft_model(encoder.vit, config)
    return encoder
