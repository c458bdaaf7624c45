"""LoRA adapters on the last blocks of an encoder, through peft."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, get_peft_model

from sealst._errors import DataError
from sealst._validate import check_fraction, check_positive
from sealst.models._encoder import Encoder

#: linear layers of a timm block that get an adapter; anchored to a block, so that patch_embed.proj never matches
_TARGETS = r"(attn\.(qkv|proj)|mlp\.fc[12])"
#: those of the attention pooler
_POOLER_TARGETS = r"attn_pool\.(q|k|v|proj)"


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
    #: whether the attention pooler is adapted too, where the encoder has one (CONCH, CONCH v1.5)
    pooler: bool = False

    def __post_init__(self) -> None:
        check_positive("lora.r", self.r)
        check_positive("lora.alpha", self.alpha)
        check_fraction("lora.dropout", self.dropout)
        check_positive("lora.n_blocks", self.n_blocks)


def target_pattern(total: int, last: int, *, pooler: bool = False) -> str:
    """Regular expression for the adapted layers of the last blocks, and of the attention pooler."""
    if last > total:
        raise DataError(f"`n_blocks` is {last}, but the encoder has only {total} blocks.")
    blocks = rf"blocks\.({'|'.join(str(i) for i in range(total - last, total))})\.{_TARGETS}"
    return f"{blocks}|{_POOLER_TARGETS}" if pooler else blocks


def add_lora(encoder: Encoder, params: LoraParams) -> Encoder:
    """Freeze an encoder and put trainable LoRA layers into its last blocks, in place."""
    if not encoder.supports_trunk:
        raise DataError(
            f"{encoder.spec.key!r} is a convolutional network; LoRA needs a vision transformer. Embed with it as it is "
            "(`sl.tl.embed`), or finetune another encoder."
        )
    if params.pooler and not encoder.spec.pool.startswith("attn"):
        raise DataError(
            f"`lora.pooler` is True, but embeddings of {encoder.spec.key!r} are pooled by {encoder.spec.pool!r}, not "
            "by attention. Leave it out, or build the encoder with `pool='attn'` where it has an attention pooler."
        )
    config = LoraConfig(
        r=params.r,
        lora_alpha=int(params.alpha) if float(params.alpha).is_integer() else params.alpha,  # type: ignore[arg-type]
        lora_dropout=params.dropout,
        target_modules=target_pattern(encoder.spec.n_blocks, params.n_blocks, pooler=params.pooler),
    )
    encoder.backbone = get_peft_model(encoder.vit, config)
    return encoder
